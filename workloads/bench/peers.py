"""Compares Ray Serve, Mosec and LitServe with ours, on the same emulated GPUs in the same run: ``symphony bench
peers``.

Each peer is installed by this command into an environment of its own and serves over HTTP, its usual way in; the GPUs
are ``peer_servers/emulated_gpu.py``, which sleeps as our emulated workers do. The generator, the arrivals, the rule of
counting (good within the SLO of the time due) and the search are those of ``fidelity``. Every peer is tried with each
of ``KNOBS`` and its best is reported.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from symphony_dask.errors import BadInput, NotServing
from workloads.bench.fidelity import ATTAINMENT, GPUS, SETTINGS, Live, Setting, highest_rate, live_goodput
from workloads.live import load_generator
from workloads.traces.synthetic_arrivals import poisson

_SERVERS = Path(__file__).with_name("peer_servers")

#: In the environment of all that a server starts.
_MARK = "SYMPHONY_PEER"

#: How long a server may take to answer its first request, s.
_START_S = 240.0


class Peer(NamedTuple):
    """A serving system: what to install, the file that serves, what a request looks like, and its environment."""

    requirement: str
    server: str
    body: bytes
    content_type: str
    settings: Mapping[str, str] = {}


#: Ray's own switches for high throughput; and its workers are to be no nicer than everybody else on this machine.
RAY_SETTINGS = {
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    "RAY_worker_niceness": "0",
}

_BYTES = "application/octet-stream"

PEERS = {
    "mosec": Peer("mosec==0.9.8", "mosec_server.py", bytes(100), _BYTES),
    "ray-serve": Peer("ray[serve,haproxy]==2.60.0", "ray_server.py", bytes(100), _BYTES, RAY_SETTINGS),
    "litserve": Peer("litserve==0.2.19", "litserve_server.py", b'{"x": "%s"}' % (b"x" * 91), "application/json"),
}


class Knobs(NamedTuple):
    """The largest batch, as that whose l(b) is this share of the SLO, and how long to wait for it, as another."""

    batch_share: float
    wait_share: float


#: Settings tried of each peer. A batch must wait for the one before it: half the SLO for each is the textbook setting.
KNOBS = (Knobs(0.45, 0.0), Knobs(0.45, 0.2), Knobs(0.7, 0.0), Knobs(0.7, 0.2))


def bench_peers(
    settings: Sequence[Setting] = SETTINGS[:3],
    peers: Sequence[str] = tuple(PEERS),
    *,
    folder: str | os.PathLike[str] = "~/.cache/symphony-dask/peers",
    seconds: float = 5.0,
    on_progress: Callable[[str], None] = lambda s: None,
) -> dict[str, Any]:
    """The live goodput of each system in each setting, on ``fidelity.GPUS`` emulated GPUs.

    folder: where the peers' environments are made and kept. seconds: length of each live run.

    Raises ``BadInput`` on an unknown peer, ``NotServing`` when one does not start.
    """
    for name in peers:
        if name not in PEERS:
            raise BadInput(f"peer {name!r} is unknown: choose of {', '.join(PEERS)}")
    if any(setting.models > 1 for setting in settings) or not seconds > 0:
        raise BadInput("peers serve one model at a time, for more than 0 s")
    pythons = {name: _environment(name, Path(folder).expanduser(), on_progress) for name in peers}
    rows: list[dict[str, Any]] = []
    for setting in settings:
        common = {"setting": setting.name, "bound_hz": setting.bound_hz, "label": "live"}
        on_progress(f"{setting.name}: symphony-dask")
        with Live(setting, "adaptive") as live:
            live.run(setting.bound_hz / 2, min(seconds, 4.0), seed=1)
            ours = live_goodput(live, seconds, setting.bound_hz, on_progress)
        rows.append({**common, "system": "symphony-dask", "goodput_hz": ours})
        for name in peers:
            tried: list[dict[str, Any]] = []
            for knobs in KNOBS:
                server = _Server(PEERS[name], pythons[name], setting, knobs)
                on_progress(f"{setting.name}: {name}, batch {server.max_batch}, wait {server.wait_ms:g} ms")
                row = {"max_batch": server.max_batch, "wait_ms": server.wait_ms}
                try:
                    with server:
                        tried.append({**row, "goodput_hz": server.goodput_hz(seconds, on_progress)})
                except NotServing as error:
                    on_progress(f"  {error}")
                    tried.append({**row, "goodput_hz": 0.0, "error": str(error)})
            best = max(tried, key=lambda t: t["goodput_hz"])
            rows.append({**common, "system": name, **best, "tried": tried})
    return {
        "label": "live: measured, GPUs emulated; peers over HTTP, each with the best of its settings",
        "gpus": GPUS,
        "rows": rows,
    }


def null_rates(
    peers: Sequence[str],
    folder: Path,
    connections: int,
    seconds: float,
    rounds: int,
    on_progress: Callable[[str], None] = lambda s: None,
) -> list[dict[str, Any]]:
    """Each peer's requests a second over HTTP with a model that takes no time; the median of closed loops."""
    rows = []
    setting = Setting("null", 0.0, 0.0, 1000)
    for name in peers:
        peer = PEERS[name]
        python = _environment(name, folder, on_progress)
        with _Server(peer, python, setting, Knobs(0.45, 0.0)) as server:
            request: dict[str, Any] = {"body": peer.body, "content_type": peer.content_type}
            load_generator.keep_http_under_way(server.url, connections, min(seconds, 1.0), setting.slo_ns, **request)
            runs = []
            for _ in range(rounds):
                seen = load_generator.keep_http_under_way(server.url, connections, seconds, setting.slo_ns, **request)
                runs.append((float(seen.answered.sum()) / seconds, seen.to_dict()))
                on_progress(f"{name}, l(b) = 0, closed loop: {runs[-1][0]:,.0f} req/s")
        runs.sort(key=lambda run: run[0])
        rate, counts = runs[len(runs) // 2]
        kept = {key: counts[key] for key in ("p50_ms", "p99_ms", "failed")}
        rows.append({"system": name, "label": "live", "rate_hz": rate, "rates_hz": [r for r, _ in runs], **kept})
    return rows


def _environment(name: str, folder: Path, on_progress: Callable[[str], None]) -> Path:
    """The Python of an environment that has the peer; made if it is not there."""
    python = folder / name / "bin" / "python"
    done = folder / name / PEERS[name].requirement.replace("/", "_")
    if not done.exists():
        on_progress(f"installing {PEERS[name].requirement} into {folder / name}")
        for command in (
            [sys.executable, "-m", "venv", str(folder / name)],
            [str(python), "-m", "pip", "install", "--quiet", PEERS[name].requirement],
        ):
            made = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
            if made.returncode != 0:
                raise NotServing(f"{' '.join(command)} failed:\n{made.stderr[-2000:]}")
        done.touch()
    return python


class _Server:
    """A peer that serves a setting; a context manager."""

    def __init__(self, peer: Peer, python: Path, setting: Setting, knobs: Knobs) -> None:
        self._peer, self._python, self._setting = peer, python, setting
        latency = setting.profile.latency_ns()
        fits = [b for b in range(1, len(latency) - 1) if latency[b] <= knobs.batch_share * setting.slo_ns]
        self.max_batch = max(fits, default=1)
        self.wait_ms = knobs.wait_share * setting.slo_ms
        self._mark = uuid.uuid4().hex
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]

    def __enter__(self) -> _Server:
        environment = {
            **os.environ,
            **self._peer.settings,
            _MARK: self._mark,
            "ALPHA_MS": str(self._setting.alpha_ms),
            "BETA_MS": str(self._setting.beta_ms),
            "GPUS": str(GPUS),
            "MAX_BATCH": str(self.max_batch),
            "WAIT_MS": str(self.wait_ms),
            "PORT": str(self._port),
            "OMP_NUM_THREADS": "1",
        }
        environment.pop("PYTHONPATH", None)
        self._process = subprocess.Popen(
            [str(self._python), str(_SERVERS / self._peer.server)],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        end = time.monotonic() + _START_S
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > end:
                self.__exit__()
                raise NotServing(f"{self._peer.server} did not answer on port {self._port} within {_START_S:g} s")
            time.sleep(0.2)
        return self

    def __exit__(self, *exc: object) -> None:
        for kind in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(self._process.pid, kind)
                self._process.wait(10)
            except (ProcessLookupError, subprocess.TimeoutExpired):
                continue
        # Peers start daemons in sessions of their own, which outlive them and would be found by the next server.
        for process in psutil.process_iter():
            try:
                if process.environ().get(_MARK) == self._mark:
                    process.kill()
                    process.wait(10)
            except (psutil.Error, OSError):
                continue

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}/inference"

    def _answers(self) -> bool:
        request = urllib.request.Request(
            self.url, self._peer.body, {"Content-Type": self._peer.content_type}, method="POST"
        )
        try:
            with urllib.request.urlopen(request, timeout=2) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def goodput_hz(self, seconds: float, on_progress: Callable[[str], None]) -> float:
        """As ``fidelity.live_goodput``."""

        def good(rate_hz: float) -> float:
            loaded = load_generator.offer_http(
                self.url,
                poisson(rate_hz, seconds, seed=0),
                self._setting.slo_ns,
                body=self._peer.body,
                content_type=self._peer.content_type,
            )
            share = float(loaded.ok.mean())
            on_progress(f"  {rate_hz:,.0f} req/s, {share:.2%} good")
            return share

        good(self._setting.bound_hz / 10)
        return highest_rate(good, self._setting.bound_hz, ATTAINMENT)
