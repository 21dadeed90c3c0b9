"""Lists the faults: how each begins and how it is cleared. ``KINDS`` has them by name, with what they are in words."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from symphony_dask.client.serving import Serving
from workloads.faults import clock
from workloads.faults.cluster import FaultyCluster, Part
from workloads.faults.models import MODES, set_mode


@dataclass(frozen=True)
class Fault:
    """One fault of a plan: its kind, when it begins, for how long, and which of several parts it meets."""

    kind: str
    at_s: float
    for_s: float
    target: int = 0


@dataclass
class Scene:
    """Where faults happen.

    control: a serving of its own, past all links, for what has to be asked of the cluster. models: the folder that
    ``Scripted`` models are told from, odd: the one that misbehaves. disk: a file system of its own for recordings.
    reconnect: called when there is another scheduler.
    lost: processes of workers that were lost, as far as the scheduler may see. spared: workers that no fault is for.
    under_way: what a fault has to remember.
    """

    cluster: FaultyCluster
    control: Serving
    models: str
    odd: str
    disk: Path | None = None
    reconnect: Callable[[], None] = lambda: None
    lost: set[int] = field(default_factory=set)
    spared: list[Part] = field(default_factory=list)
    under_way: dict[Fault, Any] = field(default_factory=dict)

    def worker(self, fault: Fault) -> Part | None:
        """The worker that a fault is for; None when there is none left."""
        workers = [part for part in self.cluster.workers if part.alive and part not in self.spared]
        return workers[fault.target % len(workers)] if workers else None


@dataclass(frozen=True)
class Kind:
    """words: what happens. needs_process: a process has to start before all is as it was. cuts_off: this process's
    client loses its connection, or does not hear of what it asked for."""

    words: str
    begin: Callable[[Scene, Fault], None]
    clear: Callable[[Scene, Fault], None]
    needs_process: bool = False
    cuts_off: bool = False


def begin(scene: Scene, fault: Fault) -> None:
    KINDS[fault.kind].begin(scene, fault)


def clear(scene: Scene, fault: Fault) -> None:
    KINDS[fault.kind].clear(scene, fault)


# Processes


def _lose(scene: Scene, part: Part) -> None:
    scene.lost.add(part.process.pid)


def _end_worker(how: signal.Signals, scene: Scene, fault: Fault) -> None:
    part = scene.worker(fault)
    if part is None:
        return
    _lose(scene, part)
    scene.cluster.workers.remove(part)
    scene.under_way[fault] = part
    if how == signal.SIGKILL:
        part.end()
    else:
        part.process.send_signal(how)


def _replace_worker(scene: Scene, fault: Fault) -> None:
    part = scene.under_way.pop(fault, None)
    if part is not None:
        part.end()
        scene.cluster.add_worker()
        scene.cluster.prepare("worker")


def _stop_worker(scene: Scene, fault: Fault) -> None:
    part = scene.worker(fault)
    if part is not None:
        _lose(scene, part)
        part.stop()
        scene.under_way[fault] = part


def _go_on(scene: Scene, fault: Fault) -> None:
    part = scene.under_way.pop(fault, None)
    if part is not None and part.alive:
        part.go_on()


def _ask_scheduler(call: Callable[[], object]) -> None:
    """Ask for something, and do not wait for a scheduler that stands still: it is this thread that has it go on."""

    def ask() -> None:
        with suppress(Exception):  # another fault has ended it
            call()

    asked = threading.Thread(target=ask, daemon=True)
    asked.start()
    asked.join(_ASKED_S)


def _drain_worker(scene: Scene, fault: Fault) -> None:
    part = scene.worker(fault)
    if part is not None:
        scene.under_way[fault] = part
        _ask_scheduler(lambda: scene.control.drain([part.name]))


def _undrain_worker(scene: Scene, fault: Fault) -> None:
    part = scene.under_way.pop(fault, None)
    if part is not None:
        scene.under_way[fault] = part
        _ask_scheduler(lambda: scene.control.undrain([part.name]))


def _join_worker(scene: Scene, fault: Fault) -> None:
    scene.under_way[fault] = scene.cluster.add_worker()


def _leave_worker(scene: Scene, fault: Fault) -> None:
    part = scene.under_way.pop(fault, None)
    if part is not None:
        _lose(scene, part)
        if part in scene.cluster.workers:
            scene.cluster.workers.remove(part)
        part.end()
        scene.cluster.prepare("worker")


def _part(scene: Scene, name: str) -> Part | None:
    part: Part | None = getattr(scene.cluster, name)
    return part if part is not None and part.alive else None


def _end_part(name: str, how: signal.Signals, scene: Scene, fault: Fault) -> None:
    part = _part(scene, name)
    if part is not None:
        scene.under_way[fault] = part
        part.process.send_signal(how)


def _replace_gateway(scene: Scene, fault: Fault) -> None:
    part = scene.under_way.pop(fault, None)
    if part is not None:
        part.end()
        scene.cluster.start_gateway()


def _replace_victim(scene: Scene, fault: Fault) -> None:
    part = scene.under_way.pop(fault, None)
    if part is not None:
        part.end()
        scene.cluster.start_victim("steady")
        scene.cluster.prepare("client")


def _stop_part(name: str, scene: Scene, fault: Fault) -> None:
    part = _part(scene, name)
    if part is not None:
        part.stop()
        scene.under_way[fault] = part


def _replace_scheduler(scene: Scene, fault: Fault) -> None:
    """Another scheduler, which serves what was deployed; Dask's workers end with theirs, and are started again too."""
    part = scene.under_way.pop(fault, None)
    if part is None:
        return
    cluster = scene.cluster
    part.end()
    workers, cluster.workers = cluster.workers, []
    for worker in workers:
        _lose(scene, worker)
        worker.end()
    cluster.start_scheduler()
    for _ in workers:
        cluster.add_worker()
    scene.reconnect()


# The network


def _reset_lane(scene: Scene, fault: Fault) -> None:
    part = scene.worker(fault)
    if part is not None and part.link is not None:
        _lose(scene, part)
        scene.cluster.proxies.reset(part.link, scene.cluster.ports[1])


def _reset_worker(scene: Scene, fault: Fault) -> None:
    part = scene.worker(fault)
    if part is not None and part.link is not None:
        _lose(scene, part)
        scene.cluster.workers.remove(part)  # Dask's workers end without their scheduler
        scene.under_way[fault] = part
        scene.cluster.proxies.reset(part.link)


def _cut_off(scene: Scene, fault: Fault) -> None:
    part = scene.worker(fault)
    if part is not None and part.link is not None:
        _lose(scene, part)
        scene.under_way[fault] = part.link
        scene.cluster.proxies.stall(part.link, True)


def _reset_client(scene: Scene, fault: Fault) -> None:
    scene.cluster.proxies.reset(scene.cluster.client_link, scene.cluster.ports[1])


def _cut_off_client(scene: Scene, fault: Fault) -> None:
    scene.under_way[fault] = scene.cluster.client_link
    scene.cluster.proxies.stall(scene.cluster.client_link, True)


def _connect_again(scene: Scene, fault: Fault) -> None:
    link = scene.under_way.pop(fault, None)
    if link is not None:
        scene.cluster.proxies.stall(link, False)


def _slow_link(delay_s: float, loss: float, of_client: bool, scene: Scene, fault: Fault) -> None:
    part = scene.worker(fault)
    link = scene.cluster.client_link if of_client else part.link if part is not None else None
    if link is not None:
        link.delay_s, link.loss = delay_s, loss
        scene.under_way[fault] = link


def _mend_link(scene: Scene, fault: Fault) -> None:
    link = scene.under_way.pop(fault, None)
    if link is not None:
        link.delay_s = link.loss = 0.0


# The recorder's disk


def _fill_disk(scene: Scene, fault: Fault) -> None:
    if scene.disk is None:
        return
    file = scene.under_way[fault] = scene.disk / "ballast"
    with file.open("wb", buffering=0) as out:
        try:
            while out.write(bytes(1 << 16)):
                pass
        except OSError:
            pass


def _empty_disk(scene: Scene, fault: Fault) -> None:
    file = scene.under_way.pop(fault, None)
    if file is not None:
        file.unlink(missing_ok=True)


def _remount(how: str, scene: Scene, fault: Fault) -> None:
    if scene.disk is not None and os.geteuid() == 0:
        # Fails while a file is open for writing, which is once every two seconds for a moment.
        subprocess.run(["mount", "-o", f"remount,{how}", str(scene.disk)], check=how == "rw", capture_output=True)


# Clocks


def _jump_clock(by_s: float, scene: Scene, fault: Fault) -> None:
    """Of the scheduler and a worker, as far as they answer; this process's, where deadlines are judged, as well."""
    part = scene.worker(fault)
    names = [part.name] if part is not None and not part.stopped else []
    scene.under_way[fault] = names
    _set_clocks(scene, names, by_s)


def _set_clock(scene: Scene, fault: Fault) -> None:
    """Which is a jump, too."""
    names = scene.under_way.pop(fault, None)
    if names is not None:
        _set_clocks(scene, names, 0.0)


def _set_clocks(scene: Scene, names: list[str], by_s: float) -> None:
    def shift_clocks() -> None:
        scene.control.client.run_on_scheduler(clock.shift, by_s)
        scene.control.client.run(clock.shift, by_s, workers=names, on_error="ignore")

    clock.shift(by_s)
    _ask_scheduler(shift_clocks)


# Models


def _misbehave(mode: str, scene: Scene, fault: Fault) -> None:
    if mode in ("exit", "gil"):
        for part in scene.cluster.workers:
            _lose(scene, part)
    set_mode(scene.models, scene.odd, mode)


def _replace_exited(scene: Scene, fault: Fault) -> None:
    _misbehave("", scene, fault)
    for part in [part for part in scene.cluster.workers if not part.alive]:
        _lose(scene, part)
        scene.cluster.workers.remove(part)
        scene.cluster.add_worker()


def _nothing(scene: Scene, fault: Fault) -> None:
    scene.under_way.pop(fault, None)


#: How far clocks jump, s.
_JUMP_S = 3600.0

#: How long to wait for the scheduler to do what it was asked for, s.
_ASKED_S = 1.0

_KILL, _TERM = signal.SIGKILL, signal.SIGTERM

KINDS: dict[str, Kind] = {
    "kill-worker": Kind("a worker is killed", partial(_end_worker, _KILL), _replace_worker, True),
    "end-worker": Kind("a worker gets SIGTERM", partial(_end_worker, _TERM), _replace_worker, True),
    "stop-worker": Kind("a worker stands still (SIGSTOP, SIGCONT)", _stop_worker, _go_on),
    "drain-worker": Kind("a worker is drained, and let work again", _drain_worker, _undrain_worker),
    "flap-worker": Kind("a worker joins, and is killed", _join_worker, _leave_worker),
    "kill-client": Kind("another client is killed", partial(_end_part, "victim", _KILL), _replace_victim),
    "end-client": Kind("another client gets SIGTERM", partial(_end_part, "victim", _TERM), _replace_victim),
    "stop-client": Kind("another client stands still", partial(_stop_part, "victim"), _go_on),
    "kill-gateway": Kind("the gateway is killed", partial(_end_part, "gateway", _KILL), _replace_gateway, True),
    "end-gateway": Kind("the gateway gets SIGTERM", partial(_end_part, "gateway", _TERM), _replace_gateway, True),
    "stop-gateway": Kind("the gateway stands still", partial(_stop_part, "gateway"), _go_on),
    "stop-scheduler": Kind("the scheduler stands still", partial(_stop_part, "scheduler"), _go_on, cuts_off=True),
    "kill-scheduler": Kind(
        "the scheduler is killed", partial(_end_part, "scheduler", _KILL), _replace_scheduler, True, True
    ),
    "end-scheduler": Kind(
        "the scheduler gets SIGTERM", partial(_end_part, "scheduler", _TERM), _replace_scheduler, True, True
    ),
    "reset-lane": Kind("a worker's lane connection is reset", _reset_lane, _nothing),
    "reset-worker": Kind("all connections of a worker are reset", _reset_worker, _replace_worker, True),
    "cut-off-worker": Kind("nothing passes between a worker and the scheduler", _cut_off, _connect_again),
    "slow-worker-link": Kind("a worker's network takes 50 ms", partial(_slow_link, 0.05, 0.0, False), _mend_link),
    "lossy-worker-link": Kind("a worker's network loses 3 %", partial(_slow_link, 0.0, 0.03, False), _mend_link),
    "reset-client": Kind("the client's lane connection is reset", _reset_client, _nothing, cuts_off=True),
    "cut-off-client": Kind(
        "nothing passes between the client and the scheduler", _cut_off_client, _connect_again, cuts_off=True
    ),
    "slow-client-link": Kind("the client's network takes 50 ms", partial(_slow_link, 0.05, 0.0, True), _mend_link),
    "lossy-client-link": Kind("the client's network loses 3 %", partial(_slow_link, 0.0, 0.03, True), _mend_link),
    "full-disk": Kind("the recorder's disk is full", _fill_disk, _empty_disk),
    "read-only-disk": Kind("the recorder's disk is read-only", partial(_remount, "ro"), partial(_remount, "rw")),
    "clock-ahead": Kind("wall clocks jump an hour ahead, and back", partial(_jump_clock, _JUMP_S), _set_clock),
    "clock-behind": Kind("wall clocks jump an hour back, and ahead", partial(_jump_clock, -_JUMP_S), _set_clock),
    **{
        f"model-{mode}": Kind(
            f"a model {words}",
            partial(_misbehave, mode),
            _replace_exited if mode == "exit" else partial(_misbehave, ""),
            mode == "exit",
        )
        for mode, words in MODES.items()
        if mode
    },
}  # fmt: skip
