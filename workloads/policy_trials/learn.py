"""Learns from recorded runs before a policy begins: how demand goes, which forecast suits it, how bursts exceed it."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np

from autoscale.policies.decision import Memory, Settings
from autoscale.policies.forecast import (
    DAY_STEPS,
    LEVEL_STEPS,
    MOST_STEPS,
    STEP_S,
    Course,
    Floats,
    Shortfall,
    backtest,
    growth,
)
from symphony_dask.engine.latency_profile import LatencyProfile
from workloads.policy_trials.runs import demand_by_minute


def learn(
    folders: Sequence[str | os.PathLike[str]],
    settings: Settings,
    now: datetime | None = None,
    profiles: Mapping[str, LatencyProfile] | None = None,
) -> Memory:
    """The memory of a policy that had seen the recorded runs in ``folders``.

    now: UTC, by default the present. Each run's requests are placed by its ``started_at``, and the last two days count.
        Minutes without a run have the demand of the day before where it is known, else none.
    profiles: l(b) by model name, in place of the runs' own. A model of which no profile is known counts for nothing.

    The forecast is the one that a backtest on these days finds best; the margin is what would have been learned in
    them. Raises ``BadInput`` if a folder is no run.
    """
    past = _past(folders, (now or datetime.now(UTC)).timestamp(), profiles or {})
    if not len(past):
        return Memory()
    ahead = max(1, round(settings.boot_s / STEP_S))
    window = max(1, round(settings.scale_in_window_s / STEP_S))
    costs = backtest(past, ahead=ahead, window=window, miss=settings.burst_miss, skip=min(60, len(past) // 4))
    method = min(costs, key=costs.__getitem__)
    made = [float(past[i]) * growth(past[: i + 1], ahead, method) for i in range(len(past))]
    shortfall = Shortfall()
    for i in range(ahead, len(past)):
        earlier = made[max(0, i - ahead - window + 1) : i - ahead + 1]
        level = float(np.median(past[max(0, i - LEVEL_STEPS) : i]))
        shortfall = shortfall.add(STEP_S, float(past[i]), max(earlier), min(level, max(earlier)))
    return Memory(course=replace(Course(tuple(past.tolist())), shortfall=shortfall, method=method))


def _past(folders: Sequence[str | os.PathLike[str]], end_s: float, profiles: Mapping[str, LatencyProfile]) -> Floats:
    """Demand by minute up to ``end_s`` (POSIX), from the first minute on of which something is known."""
    first_s = end_s - MOST_STEPS * STEP_S
    past = np.full(MOST_STEPS, np.nan)
    for folder in folders:
        start_s, demand = demand_by_minute(folder, profiles)
        at = math.floor((start_s - first_s) / STEP_S)
        for i in range(max(0, -at), min(len(demand), MOST_STEPS - at)):
            past[at + i] = demand[i] if np.isnan(past[at + i]) else past[at + i] + demand[i]
    unknown = np.isnan(past[DAY_STEPS:])
    past[DAY_STEPS:][unknown] = past[:DAY_STEPS][unknown]
    known = np.flatnonzero(~np.isnan(past))
    return np.nan_to_num(past[known[0] :]) if len(known) else np.empty(0)
