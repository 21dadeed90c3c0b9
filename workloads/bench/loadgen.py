"""Has MLCommons' LoadGen offer requests in its Server scenario, and judge their latencies: ``symphony bench loadgen``.

LoadGen (PyPI's mlcommons-loadgen, the extra ``loadgen``) draws Poisson arrivals, and counts the latency of a request
from when it was scheduled to arrive until it is told of the answer. A run is VALID if 99 % of its requests, with some
confidence, are within the latency that is also the model's SLO here: none is kept back for the way. The cluster is real
processes; the GPUs are emulated, and LoadGen and the client share one process. There what was made before the runs is
frozen (``gc.freeze``): to look through it for garbage would stop both for some 100 ms, and make a run invalid.

A request that ends without an answer is told to LoadGen only when its latency is over: else it would count as quick.
"""

from __future__ import annotations

import asyncio
import gc
import json
import math
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from distributed import Client

from symphony_dask.backends import Emulated
from symphony_dask.client.future import InferenceFuture
from symphony_dask.client.model import Model
from symphony_dask.client.serving import Serving
from symphony_dask.clock import now_ns
from symphony_dask.errors import BadInput, SymphonyError
from symphony_dask.units import NS_PER_MS, NS_PER_S, format_duration
from workloads.live.local_cluster import ProcessCluster

#: Of the requests that have to be in time.
PERCENTILE = 0.99

#: Samples that LoadGen draws from; all are alike here.
_SAMPLES, _SAMPLE = 1024, bytes(100)

#: The length of a run that is not counted: until then nothing has been measured, and code is new to its caches.
_WARM_UP_S = 2.0

#: How often the caller looks whether a run has ended, s: Ctrl-C is heard as often.
_LOOK_S = 0.2


class _UnderTest:
    """What LoadGen asks: a model, each of whose answers it is told of in the callback of its future.

    took_ns: from submit to the callback, of requests that were answered. ends: requests by how they ended.
    """

    def __init__(self, loadgen: Any, model: Model, loop: asyncio.AbstractEventLoop, slo_ns: int) -> None:
        self._loadgen, self._model, self._loop, self._slo_ns = loadgen, model, loop, slo_ns
        self.took_ns: list[int] = []
        self.ends: Counter[str] = Counter()
        self.error: SymphonyError | None = None

    def issue(self, queries: Sequence[Any]) -> None:
        """Called by LoadGen, in its own thread, with the queries that are due."""
        for query in queries:
            begun_ns = now_ns()
            try:
                future = self._model.submit(_SAMPLE)
            except SymphonyError as error:  # raised into LoadGen it would end the process
                self.error = error
                self._tell(query.id)
            else:
                future.add_done_callback(partial(self._ended, query.id, begun_ns))  # type: ignore[arg-type]

    def _ended(self, query: int, begun_ns: int, future: InferenceFuture) -> None:
        self.ends[future.outcome or "failed"] += 1
        if future.exception() is None:
            self.took_ns.append(now_ns() - begun_ns)
            self._tell(query)  # last: with the last of all queries the run ends
        else:
            late_s = 2 * self._slo_ns / NS_PER_S
            self._loop.call_soon_threadsafe(self._loop.call_later, late_s, self._tell, query)

    def _tell(self, query: int) -> None:
        self._loadgen.QuerySamplesComplete([self._loadgen.QuerySampleResponse(query, 0, 0)])


def bench_loadgen(
    rates_hz: Sequence[float] = (900.0,),
    *,
    slo_ns: int = 50 * NS_PER_MS,
    profile: Emulated = Emulated(1.053, 5.072),  # noqa: B008 - frozen
    gpus: int = 2,
    runs: int = 5,
    seconds: float = 10.0,
    on_progress: Callable[[str], None] = lambda s: None,
) -> dict[str, Any]:
    """A row for each run: whether LoadGen takes it for valid, its p50 and p99 as LoadGen counts and as the client does.

    rates_hz: of arrivals. seconds: the least length of a run (official runs have 600). Each of the ``runs`` runs at a
    rate has a seed of its own.

    Raises ``BadInput`` on sizes that are not above 0, and where LoadGen is not installed.
    """
    if not rates_hz or min(*rates_hz, gpus, runs, seconds, 1) <= 0:
        rates = ", ".join(f"{rate:g}" for rate in rates_hz)
        raise BadInput(f"rates={rates or 'none'}, gpus={gpus}, runs={runs}, seconds={seconds:g}: all must be above 0")
    loadgen = _loadgen()
    rows: list[dict[str, Any]] = []
    with ExitStack() as resources:
        cluster = resources.enter_context(ProcessCluster(gpus))
        client = resources.enter_context(Client(cluster.address))
        serving = resources.enter_context(Serving(client))
        serving.wait_ready(gpus=gpus, timeout="120s")
        model = serving.deploy("model", profile, slo=format_duration(slo_ns))
        asked = partial(_UnderTest, loadgen, model, serving.lane.loop, slo_ns)
        resources.callback(gc.unfreeze)
        gc.collect()
        gc.freeze()
        for rate in rates_hz:
            on_progress(f"{rate:g} req/s, warm-up")
            _run(loadgen, asked(), slo_ns, rate, min(seconds, _WARM_UP_S), seed=0)
            for run in range(1, runs + 1):
                row = _run(loadgen, asked(), slo_ns, rate, seconds, seed=run)
                status = serving.status()
                row["in_hand_ms"] = status["client_in_hand_ns"] / NS_PER_MS
                row["round_trip_ms"] = status["client_round_trip_ns"] / NS_PER_MS
                rows.append({"rate_hz": rate, "run": run, **row})
                valid = "VALID" if row["valid"] else "INVALID"
                on_progress(f"{rate:g} req/s, run {run} of {runs}: {valid}, p99 {row['loadgen_p99_ms']:.1f} ms")
    return {
        "label": "emulated GPUs; LoadGen, client, network and scheduler are real",
        "scenario": "Server",
        "slo_ms": slo_ns / NS_PER_MS,
        "percentile": PERCENTILE,
        "profile_ms": [profile.alpha_ms, profile.beta_ms],
        "gpus": gpus,
        "seconds": seconds,
        "valid": sum(row["valid"] for row in rows),
        "runs": len(rows),
        "rows": rows,
    }


def _loadgen() -> Any:
    """LoadGen's module; raises ``BadInput`` where it is not installed."""
    try:
        import mlperf_loadgen
    except ImportError as error:
        text = f"LoadGen (mlcommons-loadgen) cannot be imported ({error})"
        raise BadInput(f"{text}: pip install 'symphony-dask[loadgen]'") from None
    return mlperf_loadgen


def _run(loadgen: Any, asked: _UnderTest, slo_ns: int, rate_hz: float, seconds: float, *, seed: int) -> dict[str, Any]:
    settings = loadgen.TestSettings()
    settings.scenario, settings.mode = loadgen.TestScenario.Server, loadgen.TestMode.PerformanceOnly
    settings.server_target_qps = rate_hz
    settings.server_target_latency_ns = slo_ns
    settings.server_target_latency_percentile = PERCENTILE
    settings.min_duration_ms = math.ceil(seconds * 1000)
    settings.min_query_count = math.ceil(seconds * rate_hz)
    settings.schedule_rng_seed = settings.sample_index_rng_seed = settings.qsl_rng_seed = seed
    with tempfile.TemporaryDirectory(prefix="symphony-loadgen-") as folder:
        logs = loadgen.LogSettings()
        logs.log_output.outdir = folder
        logs.enable_trace = False
        sut = loadgen.ConstructSUT(asked.issue, lambda: None)
        qsl = loadgen.ConstructQSL(_SAMPLES, _SAMPLES, lambda samples: None, lambda samples: None)
        # Not in this thread: an exception of Ctrl-C, raised into LoadGen, would end the process without a word.
        arguments = (sut, qsl, settings, logs, f"{folder}/audit.config")
        thread = threading.Thread(target=loadgen.StartTestWithLogSettings, args=arguments, daemon=True)
        thread.start()
        while thread.is_alive():
            thread.join(_LOOK_S)
        loadgen.DestroyQSL(qsl)
        loadgen.DestroySUT(sut)
        found = read_results(Path(folder) / "mlperf_log_detail.txt")
    if asked.error is not None:
        raise asked.error
    p50, p99 = np.quantile(asked.took_ns, [0.5, 0.99]).tolist() if asked.took_ns else (math.nan, math.nan)
    return {
        "valid": found["result_validity"] == "VALID",
        "requests": found["result_query_count"],
        "over_latency": found["result_overlatency_query_count"],
        "loadgen_p50_ms": found["result_50.00_percentile_latency_ns"] / NS_PER_MS,
        "loadgen_p99_ms": found["result_99.00_percentile_latency_ns"] / NS_PER_MS,
        "p50_ms": p50 / NS_PER_MS,
        "p99_ms": p99 / NS_PER_MS,
        "outcomes": dict(asked.ends),
    }


def read_results(file: Path) -> dict[str, Any]:
    """What LoadGen's detailed log says of a run, by key. Raises ``BadInput`` where it has no result."""
    mark = ":::MLLOG "
    entries = [json.loads(line.removeprefix(mark)) for line in file.read_text().splitlines() if line.startswith(mark)]
    found = {entry["key"]: entry["value"] for entry in entries}
    if "result_validity" not in found:
        errors = [str(entry["value"]) for entry in entries if entry["key"] == "error_runtime"]
        raise BadInput(f"LoadGen gave no result ({'; '.join(errors) or 'it does not say why'}): run it for longer")
    return found
