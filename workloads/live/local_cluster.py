"""Starts a real Dask cluster of processes on this machine, for demos and benchmarks."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from symphony_dask.errors import NotServing

_START_S = 240.0


class ProcessCluster:
    """A context manager: starts ``dask scheduler`` and ``workers`` single-slot workers, and ends them.

    They run on uvloop where it is installed.

    gpu: whether the workers have a GPU resource, and so become slots; emulated GPUs, no device is looked for.
    preload: whether the scheduler loads the Symphony plugin.
    settings: Dask configuration of all processes, as environment variables (``DASK_SYMPHONY__POLICY``).
    threads: of each worker's libraries (OMP_NUM_THREADS); None: as they choose. Then GPUs are real, and named as such.
    """

    def __init__(
        self,
        workers: int,
        *,
        gpu: bool = True,
        preload: bool = True,
        nthreads: int = 1,
        threads: int | None = 1,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        self._processes: list[subprocess.Popen[bytes]] = []
        self._directory = tempfile.TemporaryDirectory(prefix="symphony-")
        self._workers = workers
        self._resources = ["--resources", "GPU=1"] if gpu else []
        self._preload = ["--preload", "symphony_dask"] if preload else []
        self._nthreads = nthreads
        self._environment = dict(os.environ) | dict(settings or {})
        if threads is not None:
            self._environment |= {"OMP_NUM_THREADS": str(threads), "DASK_SYMPHONY__GPU_CLASS": "emulated"}
        # Dask's own setting; what the user chose stays.
        if find_spec("uvloop") is not None:
            self._environment.setdefault("DASK_DISTRIBUTED__ADMIN__EVENT_LOOP", "uvloop")
        self.address = ""

    @property
    def pids(self) -> list[int]:
        """Of the scheduler, then of the workers."""
        return [process.pid for process in self._processes]

    def __enter__(self) -> ProcessCluster:
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        # Workers first: Dask's workers may hang when their scheduler goes while they are being ended.
        for processes in (self._processes[1:], self._processes[:1]):
            for process in processes:
                process.send_signal(signal.SIGTERM)
            for process in processes:
                try:
                    process.wait(10)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
        self._directory.cleanup()

    def _start(self) -> None:
        path = Path(self._directory.name)
        file = path / "scheduler.json"
        common = ["--no-dashboard"]
        self._spawn(
            "scheduler",
            ["scheduler", "--host", "127.0.0.1", "--port", "0", "--scheduler-file", str(file), *common, *self._preload],
        )
        self._wait_for(file.exists, "the Dask scheduler")
        for i in range(self._workers):
            where = ["--scheduler-file", str(file), "--local-directory", str(path), "--nthreads", str(self._nthreads)]
            self._spawn(f"worker-{i}", ["worker", *where, "--no-nanny", *common, *self._resources])
        self.address = _address(file)

    def _spawn(self, name: str, arguments: Sequence[str]) -> None:
        log = Path(self._directory.name) / f"{name}.log"
        with log.open("wb") as out:
            command = [sys.executable, "-m", "dask", *arguments]
            process = subprocess.Popen(
                command, stdout=out, stderr=subprocess.STDOUT, env=self._environment, process_group=0
            )  # Ctrl-C is for this process
        self._processes.append(process)

    def _wait_for(self, condition: Callable[[], bool], what: str) -> None:
        end = time.monotonic() + _START_S
        while not condition():
            dead = [p for p in self._processes if p.poll() is not None]
            if dead or time.monotonic() > end:
                logs = "\n".join(p.read_text()[-2000:] for p in Path(self._directory.name).glob("*.log"))
                raise NotServing(f"{what} did not start within {_START_S:g} s:\n{logs}")
            time.sleep(0.02)


def _address(file: Path) -> str:
    import json

    found: dict[str, Any] = json.loads(file.read_text())
    return str(found["address"])
