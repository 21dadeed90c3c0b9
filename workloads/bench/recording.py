"""Measures what recording a run costs, in pairs of closed loops with and without it: ``symphony bench recording``.

Two measures: answers a second, which is what a user loses, but varies with whatever else the machine does; and the
scheduler's CPU time for each request, its writer thread included. Both are medians over pairs that follow each other.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from distributed import Client

from symphony_dask.backends import Emulated
from symphony_dask.client.serving import Serving
from symphony_dask.errors import BadInput
from workloads.bench.live import WORKERS
from workloads.live import load_generator
from workloads.live.local_cluster import ProcessCluster


def bench_recording(
    *,
    pairs: int = 8,
    seconds: float = 3.0,
    batch: int = 8,
    alpha_ms: float = 0.0,
    beta_ms: float = 0.0,
    on_progress: Callable[[str], None] = lambda s: None,
) -> dict[str, Any]:
    """Answers a second and scheduler CPU with and without a recording, on emulated GPUs of l(b) = alpha b + beta.

    With l(b) = 0 the CPU is what there is too little of, and recording costs its share of it; with that of a model the
    GPUs are. Raises ``BadInput`` on values not above 0.
    """
    if pairs < 1 or batch < 1 or not seconds > 0:
        raise BadInput(f"pairs={pairs}, batch={batch}, seconds={seconds}: all must be above 0")
    rows: list[dict[str, float]] = []
    with (
        tempfile.TemporaryDirectory() as folder,
        ProcessCluster(WORKERS) as cluster,
        Client(cluster.address) as client,
        Serving(client) as serving,
    ):
        serving.set_policy("eager")
        model = serving.deploy("null", Emulated(alpha_ms, beta_ms), slo="1s", max_batch=batch)
        under_way = WORKERS * batch * 4

        def measure(length: float) -> tuple[float, float]:
            cpu = client.run_on_scheduler(time.process_time)
            loaded = load_generator.keep_under_way(serving, model, under_way, length, sample=bytes(100))
            answered = float(loaded.answered.sum())
            return answered / length, (client.run_on_scheduler(time.process_time) - cpu) / answered * 1e6

        measure(1.0)
        for i in range(pairs):
            found: dict[str, tuple[float, float]] = {}
            for how in ("plain", "recorded") if i % 2 else ("recorded", "plain"):
                if how == "recorded":
                    serving.record(str(Path(folder) / f"run-{i}"))
                found[how] = measure(seconds)
                if how == "recorded":
                    serving.stop_recording()
            row = {f"{how}_hz": hz for how, (hz, _) in found.items()}
            row |= {f"{how}_us": us for how, (_, us) in found.items()}
            on_progress(f"pair {i + 1} of {pairs}: {row['plain_hz']:,.0f} and recorded {row['recorded_hz']:,.0f} req/s")
            rows.append(row)
    return {
        "label": f"measured; GPUs emulated, l(b) = {alpha_ms:g} b + {beta_ms:g} ms, everything else real",
        "plain_hz": median(row["plain_hz"] for row in rows),
        "recorded_hz": median(row["recorded_hz"] for row in rows),
        "cost": 1 - median(row["recorded_hz"] / row["plain_hz"] for row in rows),
        "plain_cpu_us": median(row["plain_us"] for row in rows),
        "recorded_cpu_us": median(row["recorded_us"] for row in rows),
        "batch": batch,
        "pairs": rows,
    }
