"""``symphony bench graph``: tasks a second of ``client.map(model, xs)``, beside a plain function in the same run.

The model takes no time (l(b) = 0), and neither does the function, so what is measured is Dask's scheduler and what
holding tasks adds to it. Both maps are of the same inputs, alternate, and run on the same workers; client and cluster
share this machine's cores.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from distributed import Client

from symphony_dask.backends import Emulated
from symphony_dask.client import Serving
from symphony_dask.errors import BadInput
from workloads.processes import ProcessCluster

WORKERS = 2


def bench_graph(
    *, tasks: int = 1000, rounds: int = 5, batch: int = 64, on_progress: Callable[[str], None] = lambda s: None
) -> dict[str, Any]:
    """Tasks a second of both, the best of ``rounds`` maps of ``tasks`` inputs each, after one that is not counted.

    batch: the largest batch of the model.

    Raises ``BadInput`` on values below 1.
    """
    if min(tasks, rounds, batch) < 1:
        raise BadInput(f"tasks={tasks}, rounds={rounds}, batch={batch}: all must be at least 1")
    with ProcessCluster(WORKERS) as cluster, Client(cluster.address) as client, Serving(client) as serving:
        serving.set_policy("eager")
        model = serving.deploy("null", Emulated(0.0, 0.0), slo="60s", max_batch=batch, queue_limit=tasks)
        rates: dict[str, list[float]] = {"model": [], "function": []}
        for i in range(rounds + 1):
            on_progress(f"round {i} of {rounds}")
            for name, function in (("model", model), ("function", _nothing)):
                hz = _map_hz(client, function, tasks)
                if i:
                    rates[name].append(hz)
        status = serving.status()["models"]["null"]
    best = {name: max(hz) for name, hz in rates.items()}
    return {
        "label": "measured; a model and a function that take no time, everything else real",
        "model_hz": best["model"],
        "function_hz": best["function"],
        "ratio": best["model"] / best["function"],
        "rounds": rates,
        "mean_batch": status["mean_batch"],
        "outcomes": status["outcomes"],
        "tasks": tasks,
        "workers": WORKERS,
    }


def _map_hz(client: Client, function: Any, tasks: int) -> float:
    start = time.perf_counter()
    futures = client.map(function, range(tasks), pure=False)
    client.gather(futures)
    return tasks / (time.perf_counter() - start)


def _nothing(i: int) -> None:
    return None
