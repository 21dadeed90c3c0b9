"""``symphony bench pipeline``: what it costs that the client leads requests through the stages of a pipeline.

All models take no time (l(b) = 0) and batches leave at once, so what is measured is the way: lane, scheduler, worker,
and the client's own work between stages. Client and cluster share this machine's cores.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from distributed import Client

from symphony_dask.backends import Emulated
from symphony_dask.client import Serving
from symphony_dask.errors import BadInput
from symphony_dask.stages import Ensemble
from workloads.processes import ProcessCluster

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


class _After:
    """A second request once the first is answered."""

    def __init__(self, x: Any, submit: Callable[[Any], Any]) -> None:
        self._future = submit(x)

    def result(self) -> Any:
        return self._future.result()


def _round_trips(submit: Callable[[Any], Any], x: Any, requests: int) -> dict[str, float]:
    times_ms = []
    for _ in range(max(requests, 1)):
        begin = time.perf_counter()
        submit(x).result()
        times_ms.append((time.perf_counter() - begin) * 1e3)
    p50, p99 = np.percentile(times_ms, [50, 99])
    return {"p50_ms": float(p50), "p99_ms": float(p99)}


def _rate(submit: Callable[[Any], Any], x: Any, requests: int) -> dict[str, float]:
    begin, cpu = time.perf_counter(), time.process_time()
    for start in range(0, requests, AT_ONCE):
        for future in [submit(x) for _ in range(min(AT_ONCE, requests - start))]:
            future.result()
    seconds = time.perf_counter() - begin
    return {"rate_hz": requests / seconds, "client_cpu_us": (time.process_time() - cpu) / requests * 1e6}
