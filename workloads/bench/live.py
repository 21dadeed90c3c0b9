"""Measures requests a second through one scheduler process, beside plain Dask in the same run: ``symphony bench live``.

The model takes no time (l(b) = 0), so what is measured is the path: generator, lane, engine, worker and back, and all
latency is added latency. The cluster is real processes over TCP; load generator and cluster share this machine's cores.
Batches are formed eagerly, up to ``batch``: with l(b) = 0 deferral would only wait for the deadline.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

import numpy as np
from distributed import Client

from symphony_dask.backends import Emulated
from symphony_dask.client.model import Model
from symphony_dask.client.serving import Serving
from symphony_dask.errors import BadInput
from workloads.live import load_generator
from workloads.live.local_cluster import ProcessCluster
from workloads.traces.synthetic_arrivals import poisson

WORKERS = 2

#: Requests that the closed loop keeps under way, in batches for each slot: one runs, one waits, two are in between.
_BATCHES_UNDER_WAY = 4

#: Rates of the open loop, req/s.
OPEN_LOOP_HZ = (1_000.0, 4_000.0, 8_000.0, 20_000.0)


def bench_live(
    *,
    batch: int = 8,
    payload_bytes: int = 100,
    seconds: float = 5.0,
    open_loop_hz: Sequence[float] = OPEN_LOOP_HZ,
    on_progress: Callable[[str], None] = lambda s: None,
) -> dict[str, Any]:
    """Closed loops over the lane, plain ``client.submit``, then open loops; see ``../shared/cli.md`` for the keys.

    lane_hz: offered by the load generator, which keeps columns. client_hz: by ``model.submit`` with a future for each
        request, in this process, which is then what limits it. scheduler_cpu_us: of the scheduler process for each
        request of the first, and of each open loop.
    seconds: length of each measurement.

    Raises ``BadInput`` on sizes below 1 or ``seconds`` not above 0.
    """
    if batch < 1 or payload_bytes < 1 or not seconds > 0 or not all(rate > 0 for rate in open_loop_hz):
        rates = ", ".join(f"{rate:g}" for rate in open_loop_hz)
        raise BadInput(f"batch={batch}, payload={payload_bytes}, seconds={seconds}, rates={rates}: all must be above 0")
    sample = bytes(payload_bytes)
    under_way = WORKERS * batch * _BATCHES_UNDER_WAY
    with ProcessCluster(WORKERS) as cluster, Client(cluster.address) as client, Serving(client) as serving:
        serving.set_policy("eager")
        model = serving.deploy("null", Emulated(0.0, 0.0), slo="1s", max_batch=batch)
        on_progress("closed loop over the lane")
        load_generator.keep_under_way(serving, model, under_way, min(1.0, seconds), sample=sample)
        before, cpu_before = _served(serving), client.run_on_scheduler(time.process_time)
        loaded = load_generator.keep_under_way(serving, model, under_way, seconds, sample=sample)
        cpu_s = client.run_on_scheduler(time.process_time) - cpu_before
        requests, batches = (now - then for now, then in zip(_served(serving), before, strict=True))
        lane_hz = float(loaded.answered.sum()) / seconds
        on_progress("closed loop of futures")
        client_hz = closed_loop_hz(model, sample, under_way, seconds)
        on_progress("plain client.submit")
        dask_hz = plain_submit(client, seconds)
        open_loop = []
        for rate in open_loop_hz:
            on_progress(f"open loop, {rate:,.0f} req/s")
            arrivals = poisson(rate, seconds, seed=0)
            choices = np.zeros(len(arrivals), np.int32)
            cpu_before = client.run_on_scheduler(time.process_time)
            seen = load_generator.offer(serving, [model], arrivals, choices, samples=[sample]).to_dict()
            cpu = client.run_on_scheduler(time.process_time) - cpu_before
            open_loop.append(
                {
                    "rate_hz": seen["offered_hz"],
                    "p50_ms": seen["p50_ms"],
                    "p99_ms": seen["p99_ms"],
                    "answered": seen["ok"] + seen["late"],
                    "requests": seen["requests"],
                    "generator_lateness_p50_ms": seen["lateness_p50_ms"],
                    "generator_lateness_p99_ms": seen["lateness_p99_ms"],
                    "scheduler_cpu_us": cpu / len(arrivals) * 1e6,
                }
            )
    return {
        "label": "measured; a model that takes no time, everything else real",
        "lane_hz": lane_hz,
        "client_hz": client_hz,
        "dask_submit_hz": dask_hz,
        "ratio": lane_hz / dask_hz,
        "client_ratio": client_hz / dask_hz,
        "scheduler_cpu_us": cpu_s / requests * 1e6 if requests else None,
        "mean_batch": requests / batches if batches else None,
        "batch": batch,
        "payload_bytes": payload_bytes,
        "workers": WORKERS,
        "open_loop": open_loop,
    }


def closed_loop(model: Model, sample: object, under_way: int, count: int) -> int:
    """Futures of ``count`` requests, each answer setting off the next, with ``under_way`` of them at any time.

    Returns how many were answered. Raises the first error that a request ends with.
    """
    return _closed_loop(model, sample, under_way, lambda answered: answered < count)


def closed_loop_hz(model: Model, sample: object, under_way: int, seconds: float) -> float:
    """Answers a second of such a loop that goes on for ``seconds``."""
    start = time.perf_counter()
    end = start + seconds
    answered = _closed_loop(model, sample, under_way, lambda answered: time.perf_counter() < end)
    return answered / (time.perf_counter() - start)


def _closed_loop(model: Model, sample: object, under_way: int, goes_on: Callable[[int], bool]) -> int:
    finished = threading.Event()
    lock = threading.Lock()
    left = under_way
    answered = 0
    failure: list[BaseException] = []

    def again(future: Future[Any]) -> None:
        nonlocal left, answered
        error = future.exception()
        if error is not None:
            failure.append(error)
        elif goes_on(answered):
            answered += 1
            model.submit(sample).add_done_callback(again)
            return
        with lock:
            left -= 1
            if left == 0:
                finished.set()

    for _ in range(under_way):
        model.submit(sample).add_done_callback(again)
    before = -1
    while not finished.wait(30):
        if answered == before:
            raise TimeoutError(f"{left} requests had no answer within 30 s")
        before = answered
    if failure:
        raise failure[0]
    return answered


def plain_submit(client: Client, seconds: float, at_once: int = 200) -> float:
    """Tasks a second of plain ``client.submit``, gathered ``at_once`` at a time."""
    client.gather([client.submit(_nothing, -i, pure=False) for i in range(at_once)])
    start = time.perf_counter()
    n = 0
    while time.perf_counter() - start < seconds:
        client.gather([client.submit(_nothing, n + i, pure=False) for i in range(at_once)])
        n += at_once
    return n / (time.perf_counter() - start)


def _nothing(i: int) -> None:
    return None


def _served(serving: Serving) -> tuple[int, int]:
    """Requests and batches of the one model so far."""
    (model,) = serving.status()["models"].values()
    return sum(model["outcomes"].values()), model["batches"]
