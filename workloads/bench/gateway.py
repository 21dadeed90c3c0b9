"""Measures requests over HTTP, from a real generator through the gateway to emulated GPUs and back: ``symphony bench
gateway``.

Everything is real processes on this machine, which share its cores: generator, gateway, scheduler, workers. With
l(b) = 0 the path itself is measured; the settings of ``fidelity`` say what goodput is left of what the lane gives.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from distributed import Client

from symphony_dask.backends import Emulated
from symphony_dask.client.serving import Serving
from symphony_dask.errors import BadInput, NotServing
from symphony_dask.units import NS_PER_S
from workloads.bench.fidelity import ATTAINMENT, GPUS, SETTINGS, Live, Setting, highest_rate
from workloads.bench.peers import PEERS, null_rates
from workloads.live import load_generator
from workloads.live.local_cluster import ProcessCluster
from workloads.traces.synthetic_arrivals import poisson

#: A body without JSON: the bytes are the sample (``gateway.infer``).
BODY = bytes(100)
HEADERS = ("Inference-Header-Content-Length: 0",)

#: Connections of the closed loop, each with a request under way.
CONNECTIONS = 64

#: Rates of the open loop with l(b) = 0, req/s.
OPEN_LOOP_HZ = (1_000.0, 2_500.0, 5_000.0)

_WORKERS = 2
_START_S = 60.0


def bench_gateway(
    settings: Sequence[Setting] = SETTINGS[:3],
    *,
    seconds: float = 5.0,
    processes: int = 1,
    rounds: int = 3,
    open_loop_hz: Sequence[float] = OPEN_LOOP_HZ,
    peers: Sequence[str] = (),
    folder: str = "~/.cache/symphony-dask/peers",
    on_progress: Callable[[str], None] = lambda s: None,
) -> dict[str, Any]:
    """Closed loops at l(b) = 0 (the median of ``rounds``), open loops, and goodput in each setting.

    seconds: length of each measurement. processes: of the gateway. peers: of ``peers.PEERS``, asked the same closed
    loops in this run, each installed into ``folder``.

    Raises ``BadInput`` on numbers not above 0 or an unknown peer, ``NotServing`` when something does not start.
    """
    if not seconds > 0 or processes < 1 or rounds < 1 or not all(rate > 0 for rate in open_loop_hz):
        raise BadInput(f"seconds={seconds}, processes={processes}, rounds={rounds}: all must be above 0")
    for name in peers:
        if name not in PEERS:
            raise BadInput(f"peer {name!r} is unknown: choose of {', '.join(PEERS)}")
    found = _null(seconds, processes, rounds, open_loop_hz, on_progress)
    rows = [_goodput(setting, seconds, processes, on_progress) for setting in settings]
    beside = null_rates(peers, Path(folder).expanduser(), CONNECTIONS, seconds, rounds, on_progress) if peers else []
    return {
        "label": "live: measured, GPUs emulated, everything else real, over HTTP",
        "gateway_processes": processes,
        "connections": CONNECTIONS,
        "body_bytes": len(BODY),
        **found,
        "rows": rows,
        "peers": beside,
    }


@contextmanager
def gateway(scheduler: str, processes: int = 1) -> Any:
    """A gateway of its own for ``scheduler``; gives its URL."""
    command = [sys.executable, "-m", "dask", "symphony", "gateway", "--scheduler", scheduler, "--port", "0"]
    process = subprocess.Popen(
        [*command, "--processes", str(processes), "--notice", "10ms", "--grace", "2s"],
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stderr is not None
        line = process.stderr.readline()
        if not line.startswith("gateway at "):
            raise NotServing(f"the gateway did not start: {line}{process.stderr.read()}")
        url = line.split()[2].rstrip(",")
        end = time.monotonic() + _START_S
        while not _ready(url):
            if process.poll() is not None or time.monotonic() > end:
                raise NotServing(f"the gateway at {url} was not ready within {_START_S:g} s")
            time.sleep(0.05)
        yield url
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stderr is not None:
            process.stderr.close()


def _ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/v2/health/ready", timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def _null(
    seconds: float, processes: int, rounds: int, open_loop_hz: Sequence[float], on_progress: Callable[[str], None]
) -> dict[str, Any]:
    """Rates and latencies of a model that takes no time."""
    slo_ns = NS_PER_S
    with ProcessCluster(_WORKERS) as cluster, Client(cluster.address) as client, Serving(client) as serving:
        serving.set_policy("eager")  # deferral would only wait for the deadline
        serving.deploy("null", Emulated(0.0, 0.0), slo="1s")
        with gateway(cluster.address, processes) as base:
            url = f"{base}/v2/models/null/infer"
            load_generator.keep_http_under_way(url, CONNECTIONS, min(seconds, 1.0), slo_ns, body=BODY, headers=HEADERS)
            closed = []
            for _ in range(rounds):
                seen = load_generator.keep_http_under_way(url, CONNECTIONS, seconds, slo_ns, body=BODY, headers=HEADERS)
                closed.append(seen.to_dict() | {"rate_hz": float(seen.answered.sum()) / seconds})
                on_progress(f"l(b) = 0, closed loop: {closed[-1]['rate_hz']:,.0f} req/s")
            open_loop = []
            for rate in open_loop_hz:
                arrivals = poisson(rate, seconds, seed=0)
                offered = load_generator.offer_http(url, arrivals, slo_ns, body=BODY, headers=HEADERS).to_dict()
                on_progress(f"l(b) = 0, {rate:,.0f} req/s offered: p50 {offered['p50_ms']}, p99 {offered['p99_ms']} ms")
                open_loop.append({"rate_hz": rate, **offered})
    closed.sort(key=lambda row: row["rate_hz"])
    median = closed[len(closed) // 2]
    return {
        "rate_hz": median["rate_hz"],
        "p50_ms": median["p50_ms"],
        "p99_ms": median["p99_ms"],
        "rates_hz": [row["rate_hz"] for row in closed],
        "failed": sum(row["failed"] for row in closed),
        "open_loop": open_loop,
    }


def _goodput(setting: Setting, seconds: float, processes: int, on_progress: Callable[[str], None]) -> dict[str, Any]:
    """The highest rate at which enough are good, counted from when each was due to when its answer was read."""
    with Live(setting, "adaptive") as live, gateway(live.address, processes) as base:
        url = f"{base}/v2/models/{live.models[0].name}/infer"

        def good(rate_hz: float) -> float:
            arrivals = poisson(rate_hz, seconds, seed=0)
            loaded = load_generator.offer_http(url, arrivals, setting.slo_ns, body=BODY, headers=HEADERS)
            share = float(loaded.ok.mean())
            on_progress(f"{setting.name}: {rate_hz:,.0f} req/s, {share:.2%} good")
            return share

        good(setting.bound_hz / 2)  # delays are measured meanwhile
        holds = highest_rate(good, setting.bound_hz, ATTAINMENT)
    return {
        "setting": setting.name,
        "system": "symphony-dask gateway",
        "label": "live",
        "gpus": GPUS,
        "bound_hz": setting.bound_hz,
        "goodput_hz": holds,
    }
