"""Measures whether scheduler, workers and client keep their size over millions of requests: ``symphony bench memory``.

Futures in a closed loop, as a user's program submits them, over real processes; a model that takes no time. Resident
memory is read between rounds. What a process takes while it warms up (the first tenth of the requests) is not counted:
the growth is of the largest size after that over the size at its end.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import psutil
from distributed import Client

from symphony_dask.backends import Emulated
from symphony_dask.client.serving import Serving
from symphony_dask.errors import BadInput
from workloads.bench.live import WORKERS, closed_loop
from workloads.live.local_cluster import ProcessCluster

#: Rounds between which memory is read.
ROUNDS = 40

#: Share of the requests before the first reading that counts.
WARM_UP = 0.1

_MIB = 1 << 20


def bench_memory(
    *,
    requests: int = 2_000_000,
    batch: int = 32,
    payload_bytes: int = 100,
    on_progress: Callable[[str], None] = lambda s: None,
) -> dict[str, Any]:
    """Resident memory of each process over at least so many requests.

    Raises ``BadInput`` on values below 1, or fewer requests than rounds.
    """
    if min(requests, batch, payload_bytes) < 1 or requests < ROUNDS:
        raise BadInput(f"requests={requests}, batch={batch}, payload={payload_bytes}: at least {ROUNDS}, 1 and 1")
    with ProcessCluster(WORKERS) as cluster, Client(cluster.address) as client, Serving(client) as serving:
        serving.set_policy("eager")
        model = serving.deploy("null", Emulated(0.0, 0.0), slo="60s", max_batch=batch)
        sample = os.urandom(payload_bytes)
        under_way = WORKERS * batch * 4
        names = ["scheduler", *(f"worker {i}" for i in range(WORKERS)), "client"]
        processes = [psutil.Process(pid) for pid in (*cluster.pids, os.getpid())]
        sizes: list[list[int]] = []
        done = 0
        start = time.perf_counter()
        for i in range(ROUNDS):
            while done < requests * (i + 1) / ROUNDS:
                done += closed_loop(model, sample, under_way, count=-(-requests // ROUNDS))
            sizes.append([process.memory_info().rss for process in processes])
            on_progress(f"{done:,} requests, {' + '.join(f'{size / _MIB:.0f}' for size in sizes[-1])} MiB")
        elapsed = time.perf_counter() - start
    first = max(1, round(WARM_UP * ROUNDS)) - 1
    rows: list[dict[str, Any]] = []
    for name, column in zip(names, np.array(sizes).T, strict=True):
        begin, most, end = int(column[first]), int(column[first:].max()), int(column[-1])
        rows.append(
            {
                "process": name,
                "begin_mib": begin / _MIB,
                "most_mib": most / _MIB,
                "end_mib": end / _MIB,
                "growth": most / begin - 1,
            }
        )
    return {
        "label": "measured; a model that takes no time, everything else real",
        "requests": done,
        "rate_hz": done / elapsed,
        "warm_up": WARM_UP,
        "payload_bytes": payload_bytes,
        "batch": batch,
        "growth": max(row["growth"] for row in rows),
        "rows": rows,
    }
