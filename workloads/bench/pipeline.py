"""Measures what it costs that the client leads requests through a pipeline; with ``--split``, what the split of the SLO
gains: ``symphony bench pipeline``.

All models take no time (l(b) = 0) and batches leave at once, so what is measured is the way: lane, scheduler, worker,
and the client's own work between stages. Client and cluster share this machine's cores.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import wait
from dataclasses import replace
from typing import Any

import numpy as np
from distributed import Client

from symphony_dask.backends import Emulated
from symphony_dask.client.pipeline import Pipeline
from symphony_dask.client.serving import Serving
from symphony_dask.client.stages import Ensemble
from symphony_dask.errors import BadInput
from symphony_dask.units import NS_PER_MS
from workloads.live.local_cluster import ProcessCluster

WORKERS = 2

#: Requests under way at once where a rate is measured.
AT_ONCE = 256


def bench_pipeline(
    *, requests: int = 2000, payload_bytes: int = 1024, on_progress: Callable[[str], None] = lambda s: None
) -> dict[str, Any]:
    """Round trips one by one, and requests a second with many under way, of a model and of pipelines.

    Raises ``BadInput`` on values below 1.
    """
    if min(requests, payload_bytes) < 1:
        raise BadInput(f"requests={requests}, payload_bytes={payload_bytes}: both must be at least 1")
    x = bytes(payload_bytes)
    with ProcessCluster(WORKERS) as cluster, Client(cluster.address) as client, Serving(client) as serving:
        serving.set_policy("eager")
        serving.wait_ready(gpus=WORKERS)
        a, b = (serving.deploy(name, Emulated(0.0, 0.0), slo="60s", queue_limit=4096) for name in "ab")
        # An emulated model answers None, which the next one takes.
        cases: dict[str, Callable[[Any], Any]] = {
            "model": a.submit,
            "two stages": serving.pipeline("chain", [a, b], slo="60s").submit,
            "ensemble of two": serving.pipeline("both", Ensemble([a, b], combine=len), slo="60s").submit,
        }
        rows = []
        for name, submit in cases.items():
            on_progress(name)
            _round_trips(submit, x, requests // 10)
            rows.append({"case": name, **_round_trips(submit, x, requests), **_rate(submit, x, requests)})
        by_hand = _round_trips(lambda x: _After(a.submit(x).result(), b.submit), x, requests)
        rows.append({"case": "two models by hand", **by_hand})
    return {"label": "measured; models that take no time, everything else real", "rows": rows, "requests": requests}


def bench_split(
    *,
    rates_hz: Sequence[float] = (300.0, 340.0, 380.0),
    gpus: int = 4,
    seconds: float = 10.0,
    seed: int = 0,
    on_progress: Callable[[str], None] = lambda s: None,
) -> dict[str, Any]:
    """Attainment of the paper's Inception-ResNet-v2 followed by its ResNet-50 within 100 ms, Poisson arrivals.

    With budgets from the split, and with halves. Raises ``BadInput`` on values that are not above 0.
    """
    if min(*rates_hz, gpus, seconds) <= 0:
        raise BadInput(f"rates_hz={rates_hz}, gpus={gpus}, seconds={seconds}: all must be above 0")
    rows = []
    with ProcessCluster(gpus) as cluster, Client(cluster.address) as client, Serving(client) as serving:
        serving.wait_ready(gpus=gpus)
        first = serving.deploy("inception", Emulated(5.090, 18.368), slo="100ms")
        second = serving.deploy("resnet", Emulated(1.053, 5.072), slo="100ms")
        for rate_hz in rates_hz:
            pipeline = serving.pipeline("both", [first, second], slo="100ms", rate_hz=rate_hz)
            best = pipeline.split
            half = pipeline.slo_ns // 2
            halves = replace(best, parts=tuple(replace(part, budget_ns=half) for part in best.parts))
            for name, used in (("split", best), ("halves", halves)):
                on_progress(f"{rate_hz:g} req/s, {name}")
                pipeline.split = used
                _offer(pipeline, rate_hz, 2.0, seed + 1)
                budgets_ms = [part.budget_ns / NS_PER_MS for part in used.parts]
                row = {"rate_hz": rate_hz, "case": name, "budgets_ms": budgets_ms}
                rows.append(row | _offer(pipeline, rate_hz, seconds, seed))
    label = "measured; emulated GPUs, everything else real, client and cluster on one machine"
    return {"label": label, "rows": rows, "gpus": gpus, "seconds": seconds}


def _offer(pipeline: Pipeline, rate_hz: float, seconds: float, seed: int) -> dict[str, Any]:
    """Poisson arrivals, sent on time whatever becomes of those before."""
    rng = np.random.default_rng(seed)
    at_s = np.cumsum(rng.exponential(1 / rate_hz, round(rate_hz * seconds)))
    futures, lateness_s = [], []
    begin = time.perf_counter()
    for due_s in at_s:
        wait_s = begin + due_s - time.perf_counter()
        if wait_s > 0:
            time.sleep(wait_s)
        lateness_s.append(time.perf_counter() - begin - due_s)
        futures.append(pipeline.submit(b""))
    wait(futures)
    in_time = sum(future.outcome == "ok" for future in futures)
    return {
        "attainment": in_time / len(futures),
        "goodput_hz": in_time / float(at_s[-1]),
        "lateness_p99_ms": float(np.percentile(lateness_s, 99) * 1e3),
    }


class _After:
    """A second request once the first is answered."""

    def __init__(self, x: object, submit: Callable[[Any], Any]) -> None:
        self._future = submit(x)

    def result(self) -> Any:
        return self._future.result()


def _round_trips(submit: Callable[[Any], Any], x: object, requests: int) -> dict[str, float]:
    times_ms = []
    for _ in range(max(requests, 1)):
        begin = time.perf_counter()
        submit(x).result()
        times_ms.append((time.perf_counter() - begin) * 1e3)
    p50, p99 = np.percentile(times_ms, [50, 99])
    return {"p50_ms": float(p50), "p99_ms": float(p99)}


def _rate(submit: Callable[[Any], Any], x: object, requests: int) -> dict[str, float]:
    begin, cpu = time.perf_counter(), time.process_time()
    for start in range(0, requests, AT_ONCE):
        for future in [submit(x) for _ in range(min(AT_ONCE, requests - start))]:
            future.result()
    seconds = time.perf_counter() - begin
    return {"rate_hz": requests / seconds, "client_cpu_us": (time.process_time() - cpu) / requests * 1e6}
