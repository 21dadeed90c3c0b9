"""Records overloaded simulations on a mixed fleet that changes: ``python -m tests.helpers.runs.mixed_fleet FOLDER``."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from symphony_dask.engine.latency_profile import LatencyProfile
from workloads.simulation.fleet import AddGpu, DrainGpu, RemoveGpu
from workloads.simulation.record import record
from workloads.simulation.result import SimModel
from workloads.simulation.simulate import simulate

MS = 1_000_000
CASES = [(policy, noise) for policy in ("deferred", "adaptive", "eager") for noise in (0.0, 0.2)]


def write(folder: Path, policy: str, noise: float) -> None:
    """1,500 requests of three models on a mixed fleet that changes, more than it can serve."""
    rng = np.random.default_rng(1)
    models = [
        SimModel(f"m{i}", LatencyProfile(1, 5), slo * MS, {"slow": LatencyProfile(2, 10)})
        for i, slo in enumerate((20, 30, 50))
    ]
    arrivals_ns = np.sort(rng.integers(0, 1_000 * MS, 1_500))
    choices = rng.integers(0, 3, 1_500).astype(np.int32)
    events = [AddGpu(200 * MS), DrainGpu(400 * MS, 1), RemoveGpu(600 * MS, 0), AddGpu(700 * MS, "slow", -1)]
    gpus = [("slow", 1), ("gpu", 2)]
    result = simulate(models, gpus, arrivals_ns, choices, policy=policy, noise=noise, events=events, reply_ns=MS)
    record(result, folder)


def write_all(folder: Path) -> None:
    for policy, noise in CASES:
        write(folder / f"{policy}-{noise}", policy, noise)


if __name__ == "__main__":
    write_all(Path(sys.argv[1]))
