"""Runs a fleet of ``dask worker`` processes on this machine: for trials, tests, and a machine with several GPUs.

Kept in a folder, a file for each launch (SLOT-GENERATION), whose lock the worker process holds as long as it lives; its
pid stands in it. So whoever looks sees what runs, two launches of one slot and generation make one process, and a
controller may be killed at any time.
"""

from __future__ import annotations

import fcntl
import os
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from autoscale.fleet.fleet import (
    ENDED,
    LAUNCHING,
    RUNNING,
    STOPPING,
    FleetError,
    Instance,
    InstanceType,
    Launch,
    Offer,
    SlotEnded,
)
from symphony_dask.errors import BadInput
from symphony_dask.names import name_list

#: A worker that was asked to end has so long before it is killed, s.
GRACE_S = 10.0

#: What has ended stays listed so long, s, as on EC2.
KEEP_S = 3600.0


def _shared() -> Path:
    """The folder of all fleets of this user; raises ``BadInput`` if somebody else could write there, who could then
    have processes of this user ended.
    """
    folder = Path(tempfile.gettempdir()) / f"symphony-fleet-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise BadInput(f"folder {folder} is not this user's alone: remove it, or give LocalFleet(folder=...)")
    return folder


class LocalFleet:
    """Single-slot or several-slot workers of the scheduler at ``scheduler``.

    gpus: units of the GPU resource of each. usd_per_hour: what one is taken to cost.
    boot_s: how long a worker waits before it starts, to stand for a machine that boots.
    environment: of the workers, beside this process's own; their GPUs are of the class "emulated" unless it says.
    arguments: more of them for ``dask worker``. folder: where the fleet is kept; all users of one name share it.
    """

    def __init__(
        self,
        name: str,
        scheduler: str,
        *,
        gpus: int = 1,
        usd_per_hour: float = 0.0,
        boot_s: float = 0.0,
        environment: Mapping[str, str] | None = None,
        arguments: Sequence[str] = (),
        folder: str | os.PathLike[str] | None = None,
    ) -> None:
        if not name or "/" in name:
            raise BadInput(f"fleet name {name!r}: give one without a slash")
        self.name = name
        self._scheduler = scheduler
        self._gpus = gpus
        self._usd_per_hour = usd_per_hour
        self._boot_s = boot_s
        self._environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "DASK_SYMPHONY__GPU_CLASS": "emulated",
            **(environment or {}),
        }
        self._arguments = list(arguments)
        self._folder = Path(folder) if folder is not None else _shared() / name
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._children: list[subprocess.Popen[bytes]] = []

    def offers(self) -> Sequence[Offer]:
        return [Offer("process", "local", "on-demand", self._gpus, self._usd_per_hour)]

    def describe_types(self, names: Sequence[str]) -> Mapping[str, InstanceType]:
        wrong = [n for n in names if n != "process"]
        if wrong:
            raise BadInput(f"instance types {wrong} are not local: the only one is process")
        return {n: InstanceType(n, self._gpus, "emulated", self._usd_per_hour) for n in names}

    def launch(self, launch: Launch) -> Instance:
        path = self._folder / f"{launch.slot}-{launch.generation}"
        with open(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "r+b", buffering=0) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:  # it runs
                return self._instance(path, LAUNCHING)
            if file.read():
                raise SlotEnded(f"the process of slot {launch.slot}, generation {launch.generation} has ended")
            self._spawn(path, file.fileno())
        return self._instance(path, LAUNCHING)

    def _spawn(self, path: Path, descriptor: int) -> None:
        """Start a worker that takes over the lock: locks belong to the open file, which it inherits."""
        worker = [sys.executable, "-m", "dask", "worker", self._scheduler, "--name", self._id(path), "--no-nanny"]
        worker += ["--no-dashboard", "--nthreads", "1", "--memory-limit", "0", "--death-timeout", "60"]
        worker += ["--local-directory", str(self._folder / "spill"), "--resources", f"GPU={self._gpus}"]
        shell = f'echo $$ > "$0"; sleep {self._boot_s:g}; exec "$@"'
        with path.with_suffix(".log").open("ab") as log:
            self._children.append(
                subprocess.Popen(
                    ["/bin/sh", "-c", shell, str(path), *worker, *self._arguments],
                    pass_fds=[descriptor],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=self._environment,
                    start_new_session=True,
                )
            )

    def list(self) -> Sequence[Instance]:
        self._children = [c for c in self._children if c.poll() is None]  # reaps those that have ended
        found = []
        for path in self._folder.iterdir():
            if not path.suffix and path.is_file():
                state = self._state(path)
                if state == ENDED and not path.stat().st_size:  # about to start, or never did
                    continue
                if state == ENDED and time.time() - path.stat().st_mtime > KEEP_S:
                    for file in (path, path.with_suffix(".log"), path.with_suffix(".end")):
                        file.unlink(missing_ok=True)
                    continue
                found.append(self._instance(path, state))
        return sorted(found, key=lambda i: (i.slot, i.generation))

    def terminate(self, ids: Sequence[str]) -> None:
        ids = name_list(ids, "instance")
        for path in (p for p in self._folder.iterdir() if not p.suffix and p.is_file() and self._id(p) in ids):
            if self._state(path) != ENDED:
                path.with_suffix(".end").touch(exist_ok=True)
                self._signal(path, signal.SIGTERM)

    def _state(self, path: Path) -> str:
        with path.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                return ENDED
            except BlockingIOError:
                pass
        end = path.with_suffix(".end")
        if not end.exists():
            return RUNNING
        if time.time() - end.stat().st_mtime > GRACE_S:
            self._signal(path, signal.SIGKILL)
        return STOPPING

    def _signal(self, path: Path, what: int) -> None:
        """Signal the process that holds a lock, and those it started."""
        text = path.read_text().strip()
        if text:
            try:
                os.killpg(int(text), what)
            except ProcessLookupError:
                pass
            except PermissionError as error:
                raise FleetError(f"process {text} of {self._id(path)} is not ours to end: {error}") from error

    def _id(self, path: Path) -> str:
        slot, generation = path.name.split("-")
        return f"{self.name}.{slot}.{generation}"

    def _instance(self, path: Path, state: str) -> Instance:
        slot, generation = (int(n) for n in path.name.split("-"))
        return Instance(
            id=self._id(path),
            slot=slot,
            generation=generation,
            instance_type="process",
            zone="local",
            market="on-demand",
            state=state,
            launched_s=path.stat().st_ctime if state == LAUNCHING else generation / 1000,
            gpus=self._gpus,
            usd_per_hour=self._usd_per_hour,
        )
