"""Runs a cluster of real processes on this machine whose parts are stopped, killed, cut off and replaced."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from symphony_dask.errors import NotServing
from workloads.faults.proxy import Link, Proxies

#: How long a process may take to start where the machine is busy, s.
START_S = 120.0

_ROOT = Path(__file__).parents[2]

_STANDBY = (sys.executable, "-m", "workloads.faults.standby")


@dataclass(eq=False)
class Part:
    """One process of the cluster, and what stands between it and the scheduler."""

    kind: str
    number: int
    process: subprocess.Popen[bytes]
    link: Link | None = None
    stopped: bool = False

    @property
    def name(self) -> str:
        return f"{self.kind}-{self.number}"

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def stop(self) -> None:
        self.stopped = True
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self.stopped = False
        self.process.send_signal(signal.SIGCONT)

    def end(self, how: signal.Signals = signal.SIGKILL, within_s: float = 10.0) -> None:
        """Send a signal that ends it, and wait until it has ended."""
        if self.stopped:
            self.go_on()
        self.process.send_signal(how)
        try:
            self.process.wait(within_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class FaultyCluster:
    """A scheduler, ``workers`` workers of one emulated GPU each, and what is added; all end with the context.

    Each worker, and the client of this process, reaches the scheduler through a link of its own (``proxy.Link``).
    standby: whether another process of each kind that is started is made ready beside the cluster.
    settings: Dask configuration of all processes, as environment variables. A scheduler that is started again serves
        what was deployed (``symphony.state``).
    """

    def __init__(self, workers: int, *, standby: bool = True, settings: dict[str, str] | None = None) -> None:
        self._n_workers = workers
        self._standby = standby
        self._directory = tempfile.TemporaryDirectory(prefix="symphony-faults-", ignore_cleanup_errors=True)
        self.folder = Path(self._directory.name)
        self._port, self._lane_port, self._gateway_port = _free_ports(3)
        self._environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
            "OMP_NUM_THREADS": "1",
            "DASK_SYMPHONY__GPU_CLASS": "emulated",
            "DASK_SYMPHONY__LANE__PORT": str(self._lane_port),
            "DASK_SYMPHONY__STATE": str(self.folder / "state"),
            **(settings or {}),
        }
        self.workers: list[Part] = []
        self.scheduler: Part | None = None
        self.gateway: Part | None = None
        self.victim: Part | None = None
        self._ready: dict[str, list[tuple[subprocess.Popen[bytes], BinaryIO]]] = {}
        self._started = 0
        self._linked: list[Part] = []
        self.proxies = Proxies()

    def __enter__(self) -> FaultyCluster:
        try:
            self.proxies.__enter__()
            self.client_link = self.proxies.link("127.0.0.9", self.ports)
            self.start_scheduler()
            for _ in range(self._n_workers):
                self.add_worker()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        for kind in self._ready.values():
            for process, _ in kind:
                process.kill()
                process.wait()
        for part in (self.victim, self.gateway, *self.workers, self.scheduler):
            if part is not None:
                part.end()
        self.proxies.__exit__()
        self._directory.cleanup()

    @property
    def ports(self) -> tuple[int, int]:
        """Of the scheduler and of its lane."""
        return self._port, self._lane_port

    @property
    def address(self) -> str:
        """The scheduler's, past all links."""
        return f"tcp://127.0.0.1:{self._port}"

    @property
    def linked_address(self) -> str:
        """The scheduler's, through the link of this process."""
        return f"tcp://{self.client_link.host}:{self._port}"

    @property
    def url(self) -> str:
        """The gateway's."""
        return f"http://127.0.0.1:{self._gateway_port}"

    @property
    def parts(self) -> list[Part]:
        """All processes of the cluster that run."""
        given = (self.scheduler, *self.workers, self.gateway, self.victim)
        return [part for part in given if part is not None and part.alive]

    # Starting and replacing

    def start_scheduler(self) -> None:
        """Start the scheduler, the first or another; returns when it answers."""
        file = self.folder / "scheduler.json"
        file.unlink(missing_ok=True)
        where = ["--host", "127.0.0.1", "--port", str(self._port), "--scheduler-file", str(file), "--no-dashboard"]
        self.scheduler = self._start("scheduler", [*where, "--preload", "symphony_dask"])
        self._wait_for(file.exists, "the scheduler")

    def add_worker(self) -> Part:
        """Start another worker; returns before it has joined."""
        host = f"127.0.{1 + self._started // 200}.{10 + self._started % 200}"
        link = self.proxies.link(host, self.ports)
        self.proxies.stall(link, False)
        where = ["--host", "127.0.0.1", "--nthreads", "1", "--memory-limit", "0", "--local-directory", str(self.folder)]
        name = ["--name", f"worker-{self._started + 1}"]
        arguments = [
            f"tcp://{host}:{self._port}",
            "--no-nanny",
            "--no-dashboard",
            *name,
            *where,
            "--resources",
            "GPU=1",
        ]
        part = self._start("worker", arguments)
        part.link = link
        for ended in [other for other in self._linked if not other.alive]:
            self._linked.remove(ended)
            assert ended.link is not None
            self.proxies.close(ended.link)
        self._linked.append(part)
        self.workers.append(part)
        return part

    def start_gateway(self) -> Part:
        arguments = ["symphony", "gateway", "--scheduler", self.address, "--port", str(self._gateway_port)]
        self.gateway = self._start("gateway", arguments)
        return self.gateway

    def start_victim(self, model: str) -> Part:
        self.victim = self._start("client", [self.address, model])
        return self.victim

    def prepare(self, kind: str) -> None:
        """Have a process ready that becomes a "scheduler", "worker" or "client" at once."""
        if self._standby and not self._ready.get(kind):
            process, pipe = self._spawn([*_STANDBY, kind, "wait"], f"{kind}-standby")
            self._ready.setdefault(kind, []).append((process, pipe))

    def logs(self) -> str:
        """The end of what each process wrote."""
        return "\n".join(f"{log.name}:\n{log.read_text()[-4000:]}" for log in self.folder.glob("*.log"))

    def _start(self, kind: str, arguments: Sequence[str]) -> Part:
        self._started += 1
        ready = self._ready.get(kind)
        if ready:
            process, pipe = ready.pop()
            pipe.write(json.dumps(arguments).encode() + b"\n")
            pipe.close()
        elif kind == "gateway":
            process, pipe = self._spawn([sys.executable, "-m", "dask", *arguments], kind)
        else:
            process, pipe = self._spawn([*_STANDBY, kind], kind)
            pipe.write(json.dumps(arguments).encode() + b"\n")
            pipe.close()
        return Part(kind, self._started, process)

    def _spawn(self, command: Sequence[str], name: str) -> tuple[subprocess.Popen[bytes], BinaryIO]:
        log = self.folder / f"{name}-{len(list(self.folder.glob('*.log')))}.log"
        with log.open("wb") as out:
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=out, stderr=subprocess.STDOUT, env=self._environment, cwd=_ROOT
            )
        assert process.stdin is not None
        return process, process.stdin  # type: ignore[return-value]

    def _wait_for(self, condition: Callable[[], Any], what: str, limit_s: float = START_S) -> None:
        end = time.monotonic() + limit_s
        while not condition():
            ended = self.scheduler is not None and not self.scheduler.alive
            if ended or time.monotonic() > end:
                raise NotServing(f"{what} did not start within {limit_s:g} s:\n{self.logs()}")
            time.sleep(0.02)


def _free_ports(n: int) -> list[int]:
    sockets = [socket.socket() for _ in range(n)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()
