"""Measures tasks a second of ``client.map(model, xs)``, beside a plain function in the same run: ``symphony bench
graph``.

The model takes no time (l(b) = 0), and neither does the function, so what is measured is Dask's own work for each task
and what holding tasks adds to it. Both maps are of the same inputs, alternate, and run on the same workers; client and
cluster share this machine's cores. Rates suffer from whatever else runs there, so the CPU time of each task is
measured too.

A plain task waits at the scheduler until its worker has a thread for it, and with one thread that wait is most of its
time. So there is a row for workers of one thread and one for workers of eight, where plain Dask is at its best.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from distributed import Client

from symphony_dask.backends import Emulated
from symphony_dask.client.serving import Serving
from symphony_dask.errors import BadInput
from workloads.live.local_cluster import ProcessCluster

WORKERS = 2
THREADS = (1, 8)


def bench_graph(
    *, tasks: int = 1000, rounds: int = 5, batch: int = 64, on_progress: Callable[[str], None] = lambda s: None
) -> dict[str, Any]:
    """Tasks a second of both, the best of ``rounds`` maps of ``tasks`` inputs each, after one that is not counted.

    batch: the largest batch of the model.

    Raises ``BadInput`` on values below 1.
    """
    if min(tasks, rounds, batch) < 1:
        raise BadInput(f"tasks={tasks}, rounds={rounds}, batch={batch}: all must be at least 1")
    return {
        "label": "measured; a model and a function that take no time, everything else real",
        "rows": [_row(threads, tasks, rounds, batch, on_progress) for threads in THREADS],
        "tasks": tasks,
        "workers": WORKERS,
    }


def _row(threads: int, tasks: int, rounds: int, batch: int, on_progress: Callable[[str], None]) -> dict[str, Any]:
    cluster = ProcessCluster(WORKERS, nthreads=threads)
    with cluster, Client(cluster.address) as client, Serving(client) as serving:
        serving.set_policy("eager")
        model = serving.deploy("null", Emulated(0.0, 0.0), slo="60s", max_batch=batch, queue_limit=tasks)
        seen: dict[str, list[tuple[float, float, float]]] = {"model": [], "function": []}
        for i in range(rounds + 1):
            on_progress(f"{threads} threads a worker, round {i} of {rounds}")
            for name, function in (("model", model), ("function", _nothing)):
                measured = _measure(client, function, tasks)
                if i:
                    seen[name].append(measured)
        status = serving.status()["models"]["null"]
    row: dict[str, Any] = {"threads": threads}
    for name, rows in seen.items():
        rates, scheduler, workers = zip(*rows, strict=True)
        row |= {
            f"{name}_hz": max(rates),
            f"{name}_rounds_hz": rates,
            f"{name}_scheduler_cpu_us": min(scheduler),
            f"{name}_worker_cpu_us": min(workers),
        }
    return row | {
        "ratio": row["model_hz"] / row["function_hz"],
        "mean_batch": status["mean_batch"],
        "outcomes": status["outcomes"],
    }


def _measure(client: Client, function: Callable[..., object], tasks: int) -> tuple[float, float, float]:
    """Tasks a second of one map, and the CPU time for each task in the scheduler and in all workers, us."""
    before = _cpu_s(client)
    start = time.perf_counter()
    client.gather(client.map(function, range(tasks), pure=False))
    rate = tasks / (time.perf_counter() - start)
    scheduler, workers = (1e6 * (now - then) / tasks for now, then in zip(_cpu_s(client), before, strict=True))
    return rate, scheduler, workers


def _cpu_s(client: Client) -> tuple[float, float]:
    return client.run_on_scheduler(time.process_time), sum(client.run(time.process_time).values())


def _nothing(i: int) -> None:
    return None
