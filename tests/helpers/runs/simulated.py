"""Records short simulations: of arrivals that a test names, and of more requests than two GPUs can serve."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from symphony_dask.engine.latency_profile import LatencyProfile
from symphony_dask.trace import Run, open_run
from workloads.simulation.record import record
from workloads.simulation.result import SimModel
from workloads.simulation.simulate import simulate

MS = 1_000_000
#: l(1) = 6 ms, l(2) = 7 ms, l(3) = 8 ms.
MODEL = SimModel("m", LatencyProfile(1, 5), 25 * MS)


def simulated(folder: Path, *arrivals_ms: float, gpus: int = 1, **options: Any) -> Run:
    arrivals = np.array([round(t * MS) for t in arrivals_ms], np.int64)
    record(simulate([MODEL], gpus, arrivals, np.zeros(len(arrivals), np.int32), **options), folder)
    return open_run(folder)


def crowd(folder: Path, **options: Any) -> Run:
    """3,000 requests of two models in 2 s on two GPUs, more than these can serve."""
    rng = np.random.default_rng(1)
    models = [SimModel(f"m{i}", LatencyProfile(1, 5), slo * MS) for i, slo in enumerate((20, 50))]
    arrivals = np.sort(rng.integers(0, 2_000 * MS, 3_000))
    record(simulate(models, 2, arrivals, rng.integers(0, 2, 3_000).astype(np.int32), **options), folder)
    return open_run(folder)
