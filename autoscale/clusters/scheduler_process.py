"""Runs a Dask scheduler with Symphony in a process of its own, which ends with the process that started it.

Run as ``python -m autoscale.clusters.scheduler_process ARGUMENTS`` with the arguments of ``dask scheduler``. It ends
when its standard input does: so a controller that is killed leaves no scheduler behind that would keep
instances busy, and the instances' watchdogs end them (``infra.worker.watchdog``).
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from symphony_dask.errors import BadInput

if TYPE_CHECKING:
    from distributed import Security

#: Includes compiling the engine, where numba's disk cache is empty.
START_S = 180.0


class SchedulerProcess:
    """host, port: where it listens; lane_port: where the lane does. 0 takes any free port. security: Dask's."""

    def __init__(self, *, host: str | None, port: int, lane_port: int, security: Security | None) -> None:
        self._where = ["--port", str(port), *(["--host", host] if host else [])]
        self._lane_port = lane_port
        self._security = security
        self._directory = tempfile.TemporaryDirectory(prefix="symphony-scheduler-", ignore_cleanup_errors=True)
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> str:
        """Its address, once it answers; raises ``RuntimeError`` with what it wrote if it ends, or takes too long."""
        file, log = Path(self._directory.name) / "scheduler.json", Path(self._directory.name) / "scheduler.log"
        tls = tls_options(self._security, Path(self._directory.name))
        options = [*self._where, "--scheduler-file", str(file), "--preload", "symphony_dask", *tls]
        with log.open("wb") as out:
            self._process = await asyncio.create_subprocess_exec(
                *[sys.executable, "-m", "autoscale.clusters.scheduler_process", *options],
                stdin=asyncio.subprocess.PIPE,
                stdout=out,
                stderr=out,
                env={**os.environ, "DASK_SYMPHONY__LANE__PORT": str(self._lane_port)},
            )
        try:
            async with asyncio.timeout(START_S):
                while not (address := _address(file)):
                    if self._process.returncode is not None:
                        raise RuntimeError(f"the scheduler ended:\n{log.read_text()}")
                    await asyncio.sleep(0.05)
        except TimeoutError:
            await self.stop()
            raise RuntimeError(f"the scheduler did not start within {START_S:g} s:\n{log.read_text()}") from None
        return address

    async def stop(self) -> None:
        """End it, and wait until it has ended."""
        if self._process is not None and self._process.returncode is None:
            self._process.terminate()
            try:
                async with asyncio.timeout(10):
                    await self._process.wait()
            except TimeoutError:
                self._process.kill()
                await self._process.wait()
        self._directory.cleanup()

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid


def tls_options(security: Security | None, directory: Path) -> Sequence[str]:
    """Arguments of ``dask scheduler`` for a ``Security``; what it has as text is written into ``directory``.

    Raises ``BadInput`` where it has some of what a scheduler needs.
    """
    found: Mapping[str, Any] = security.get_tls_config_for_role("scheduler") if security is not None else {}
    given = {name: found.get(name) for name in ("ca_file", "cert", "key")}
    if not any(given.values()):
        return []
    fields = {"ca_file": "tls_ca_file", "cert": "tls_scheduler_cert", "key": "tls_scheduler_key"}
    missing = [fields[name] for name, value in given.items() if not value]
    if missing:
        raise BadInput(f"security has no {', '.join(missing)}: the scheduler that is started here needs them")
    options = ["--protocol", "tls"]
    for name, option in (("ca_file", "--tls-ca-file"), ("cert", "--tls-cert"), ("key", "--tls-key")):
        value = str(given[name])
        if "\n" in value:
            path = directory / f"{name}.pem"
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                file.write(value)
            value = str(path)
        options += [option, value]
    return options


def _address(file: Path) -> str:
    try:
        return str(json.loads(file.read_text())["address"])
    except (FileNotFoundError, json.JSONDecodeError):
        return ""


def _end_with_parent() -> None:
    # Not by sys.stdin: an interpreter that ends while a thread reads it aborts.
    while os.read(0, 1024):
        pass
    os._exit(0)


if __name__ == "__main__":
    from distributed.cli.dask_scheduler import main

    threading.Thread(target=_end_with_parent, daemon=True).start()
    main()
