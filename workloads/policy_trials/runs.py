"""Reads demand over time from a recorded run or trace."""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import datetime

import numpy as np
import numpy.typing as npt

from symphony_dask.dispatcher.load_signals import gpu_seconds_per_request
from symphony_dask.engine.latency_profile import LatencyProfile
from symphony_dask.trace import Names, arrival_chunks, open_run
from symphony_dask.units import NS_PER_S
from workloads.simulation.result import check_length

_STEP_NS = 60 * NS_PER_S


def demand_by_minute(
    folder: str | os.PathLike[str], profiles: Mapping[str, LatencyProfile]
) -> tuple[float, npt.NDArray[np.float64]]:
    """When a run began (POSIX, s), and its demand in GPUs by minute from then on; see ``learn.learn``."""
    info = open_run(folder).info
    names = Names()
    counts = np.zeros((0, 0))
    for rows in arrival_chunks(folder, names, ["model", "arrival_ns"]):
        check_length(np.append(0, rows["arrival_ns"]))
        minutes = rows["arrival_ns"] // _STEP_NS
        size = (max(len(names), counts.shape[0]), max(int(minutes.max()) + 1, counts.shape[1]))
        counts = np.pad(counts, [(0, n - have) for n, have in zip(size, counts.shape, strict=True)])
        np.add.at(counts, (rows["model"], minutes), 1)
    described = {model["name"]: model for model in info.get("models", [])}
    demand = np.zeros(counts.shape[1])
    for m, name in enumerate(names.names):
        model = described.get(name, {})
        own = model.get("profiles", {})
        profile = profiles.get(name) or (LatencyProfile.from_dict(next(iter(own.values()))) if own else None)
        if profile is None or not model.get("slo_ns"):
            continue
        table = profile.latency_ns()
        for minute in np.flatnonzero(counts[m]).tolist():
            rate_hz = counts[m, minute] / 60
            demand[minute] += rate_hz * gpu_seconds_per_request(table, model["slo_ns"], rate_hz)
    return datetime.fromisoformat(info["started_at"]).timestamp(), demand
