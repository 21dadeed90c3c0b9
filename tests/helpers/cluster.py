"""A Dask cluster of real processes on this machine: a scheduler and workers that talk TCP on 127.0.0.1."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from distributed import Client

#: Includes compiling the engine, where numba's disk cache is empty.
START_S = 120.0

_ROOT = Path(__file__).parents[2]


def wait_until(condition: Callable[[], Any], what: str, limit_s: float = 30.0) -> Any:
    """The first true value of ``condition()``; raises ``TimeoutError`` naming ``what`` after ``limit_s``."""
    end = time.monotonic() + limit_s
    while not (value := condition()):
        if time.monotonic() > end:
            raise TimeoutError(f"{what}: not within {limit_s:g} s")
        time.sleep(0.01)
    return value


class Cluster:
    """A scheduler and ``workers`` workers of one slot each, which all end with the context.

    gpu: whether the workers have a GPU resource.
    preload: whether the scheduler is started with ``--preload symphony_dask``.
    settings: Dask configuration of all processes, as environment variables (``DASK_SYMPHONY__POLICY``).
    dashboard: whether the scheduler has Dask's dashboard, at its client's ``dashboard_link``.
    final_logs: what the processes wrote, once they have ended.
    tls: arguments for the processes (``--tls-ca-file`` and so on); clients then need ``security``.
    """

    def __init__(
        self,
        workers: int = 2,
        *,
        gpu: bool = True,
        preload: bool = True,
        dashboard: bool = False,
        settings: Mapping[str, str] | None = None,
        tls: Sequence[str] = (),
        security: Any = None,
    ) -> None:
        self.workers: list[subprocess.Popen[bytes]] = []
        self.address = self.final_logs = ""
        self._n_workers = workers
        self._gpu = gpu
        self._tls = list(tls)
        self._dashboard = ["--dashboard-address", "127.0.0.1:0"] if dashboard else ["--no-dashboard"]
        self._security = security
        self._preload = ["--preload", "symphony_dask"] if preload else []
        self._directory = tempfile.TemporaryDirectory(prefix="symphony-test-", ignore_cleanup_errors=True)
        self._clients: list[Client] = []
        self._processes: list[subprocess.Popen[bytes]] = []
        self._environment = {
            **os.environ,
            "PYTHONPATH": str(_ROOT),
            "OMP_NUM_THREADS": "1",
            "DASK_SYMPHONY__GPU_CLASS": "cpu",
            **(settings or {}),
        }

    def __enter__(self) -> Cluster:
        try:
            file = Path(self._directory.name) / "scheduler.json"
            self.scheduler = self._spawn(self._scheduler_arguments(file, "0"))
            self.address = wait_until(lambda: self._address(file), "the scheduler's address", START_S)
            for _ in range(self._n_workers):
                self.add_worker()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        for client in self._clients:
            client.close(timeout=2)
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.wait()
        self.final_logs = self.logs()
        self._directory.cleanup()

    def add_worker(self, *, gpu: bool | None = None) -> subprocess.Popen[bytes]:
        """Start another worker; returns before it has joined."""
        resources = ["--resources", "GPU=1"] if (self._gpu if gpu is None else gpu) else []
        where = ["--nthreads", "1", "--memory-limit", "0", "--local-directory", self._directory.name]
        worker = self._spawn(["worker", self.address, "--no-nanny", "--no-dashboard", *where, *resources])
        self.workers.append(worker)
        return worker

    def restart_scheduler(self) -> None:
        """Kill the scheduler and start it again on the same port; returns when it answers."""
        self.scheduler.kill()
        self.scheduler.wait()
        file = Path(self._directory.name) / "scheduler.json"
        file.unlink()
        port = self.address.rpartition(":")[2]
        self.scheduler = self._spawn(self._scheduler_arguments(file, port))
        wait_until(lambda: self._address(file), "the scheduler's address", START_S)

    def client(self) -> Client:
        """A new client, closed with the cluster."""
        client = Client(self.address, security=self._security, timeout=START_S, set_as_default=False)
        self._clients.append(client)
        return client

    def logs(self) -> str:
        """What the processes wrote."""
        return "\n".join(f"{log.name}:\n{log.read_text()}" for log in Path(self._directory.name).glob("*.log"))

    def _scheduler_arguments(self, file: Path, port: str) -> list[str]:
        protocol = ["--protocol", "tls"] if self._tls else []
        where = ["--host", "127.0.0.1", "--port", port, "--scheduler-file", str(file)]
        return ["scheduler", *where, *self._dashboard, *protocol, *self._preload]

    def _spawn(self, arguments: list[str]) -> subprocess.Popen[bytes]:
        log = Path(self._directory.name) / f"{arguments[0]}-{len(self._processes)}.log"
        with log.open("wb") as out:
            command = [sys.executable, "-m", "dask", *arguments, *self._tls]
            process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=self._environment, cwd=_ROOT)
        self._processes.append(process)
        return process

    def _address(self, file: Path) -> str:
        if self.scheduler.poll() is not None:
            raise RuntimeError(f"the scheduler ended:\n{self.logs()}")
        try:
            return str(json.loads(file.read_text())["address"])
        except (FileNotFoundError, json.JSONDecodeError):
            return ""
