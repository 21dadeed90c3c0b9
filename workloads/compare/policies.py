"""Finds what simulates a policy by its name: the engine, or a baseline."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from symphony_dask.engine.batching import AS_ALL, PREFER, Batching
from symphony_dask.engine.engine import POLICIES
from symphony_dask.engine.latency_profile import LatencyProfile
from symphony_dask.errors import BadInput
from symphony_dask.units import NS_PER_S
from workloads.baselines import BASELINES, offline
from workloads.simulation.fleet import Gpus, groups
from workloads.simulation.result import SimModel, Simulated
from workloads.simulation.simulate import Ints, Scheduler, Slots, simulate


def scheduler(policy: str, **options: Any) -> Scheduler:
    """What simulates ``policy``: the engine, or a baseline of that name; raises ``BadInput`` when there is neither.

    options: of ``simulate``; baselines do without them, and refuse ``noise``.
    """
    if policy in POLICIES:
        return partial(simulate, policy=policy, **options)
    if policy not in BASELINES:
        raise BadInput(f"policy {policy!r} is unknown: choose one of {', '.join([*POLICIES, *BASELINES])}")
    if options.get("noise", 0) != 0:
        raise BadInput(f"policy {policy!r} is a baseline, whose batches take exactly l(b): leave noise out")

    def baseline(models: Sequence[SimModel], gpus: Gpus, arrivals_ns: Ints, choices: Slots) -> Simulated:
        given = groups(gpus)
        classes = {group.gpu_class for group in given}
        if len(classes) != 1:
            raise BadInput(f"policy {policy!r} is a baseline, for GPUs of one class: {sorted(classes)} were given")
        name = classes.pop()
        alike = [replace(model, profile=model.profile_on(name)) for model in models]
        return BASELINES[policy](alike, sum(group.number for group in given), arrivals_ns, choices)

    return baseline


def batching_of(prefer: str | None, policies: Iterable[str]) -> Batching:
    """How models form their batches that prefer this, None for what is not said; raises ``BadInput`` where no policy
    looks at it.
    """
    if prefer is None:
        return AS_ALL
    if prefer not in PREFER:
        raise BadInput(f"prefer is {prefer!r:.60}: choose {' or '.join(PREFER)}")
    if "adaptive" not in (names := list(policies)):
        raise BadInput(
            f"prefer is {prefer!r}: only policy 'adaptive' looks at it, not {', '.join(names)}; leave it out"
        )
    return Batching(prefer=prefer)


def check_size(policy: str, requests: int, gpus: Gpus, models: int) -> None:
    """Raise ``BadInput`` for a cell that the policy takes too long for: before a search finds out step by step."""
    if policy == "offline":
        offline.check_size(requests, sum(group.number for group in groups(gpus)), models)


def compile_policies(policies: Iterable[str]) -> None:
    """Compile what simulates these policies, so that processes load it from the cache and none compiles it again.

    Raises ``BadInput`` when there is no such policy.
    """
    model = SimModel("model", LatencyProfile(1, 5), NS_PER_S)
    # Two, at a distance: from a single arrival a planner cannot tell a rate.
    arrivals_ns = np.array([0, NS_PER_S // 2])
    for simulated in [scheduler(policy) for policy in policies]:
        simulated([model], 1, arrivals_ns, np.zeros(2, np.int32))
