"""Keeps which workers are drained, why and since when, until their machine is gone.

A drain is of an *instance*, named by its id. Its workers are called ID, or ID-0, ID-1, ...; where their names say
nothing, a worker's address or name will do. Who is drained before having joined takes no batch when it joins, so that
a machine can be ended without asking first whether its worker has just come up.

    draining -> retiring -> retired       retiring: out of the lane, Dask moves what it holds; retired: it may be ended
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from symphony_dask.dispatcher.dispatcher import Dispatcher
from symphony_dask.names import not_there

if TYPE_CHECKING:
    from distributed import Scheduler
    from distributed.scheduler import WorkerState

logger = logging.getLogger(__name__)

#: Drains older than this are forgotten, s: their machines are gone.
KEEP_S = 86_400.0


@dataclass
class Drain:
    """Since when (monotonic, s), and why, for people and for who may take it back."""

    since_s: float
    why: str
    retiring: asyncio.Task[None] | None = None

    @property
    def state(self) -> str:
        if self.retiring is None:
            return "draining"
        return "retired" if self.retiring.done() else "retiring"


class Drains:
    """All drains of a scheduler."""

    def __init__(self, scheduler: Scheduler, dispatcher: Dispatcher) -> None:
        self._scheduler = scheduler
        self._dispatcher = dispatcher
        self._drains: dict[str, Drain] = {}

    def of(self, address: str) -> Drain | None:
        """The drain that a worker is in."""
        worker = self._scheduler.workers.get(address)
        if not self._drains or worker is None:
            return self._drains.get(address)
        return next((self._drains[name] for name in _names(worker) if name in self._drains), None)

    def addresses(self, key: str) -> list[str]:
        """The workers that a drain's name speaks of, of those that have joined."""
        return [address for address, worker in self._scheduler.workers.items() if key in _names(worker)]

    def check(self, keys: list[str]) -> None:
        """Raise ``BadInput`` for a name that no worker and no drain has."""
        workers = list(self._scheduler.workers.values())
        known = self._drains.keys() | {name for worker in workers for name in _names(worker)}
        for key in keys:
            if key not in known:
                raise not_there(key, {str(worker.name) for worker in workers}, "worker")

    def drain(self, keys: list[str], why: str) -> None:
        """Have workers take no more batches; again changes nothing."""
        now = time.monotonic()
        self._drains = {k: d for k, d in self._drains.items() if now - d.since_s < KEEP_S}
        for key in keys:
            self._drains.setdefault(key, Drain(now, why))
        self._dispatcher.drain_workers([address for key in keys for address in self.addresses(key)])

    def undrain(self, keys: list[str]) -> list[str]:
        """Let workers take batches again; returns which do. One that still runs batches of before does not yet."""
        done = []
        for key in keys:
            drain = self._drains.get(key)
            if drain is None or drain.retiring is not None:
                continue
            addresses = self.addresses(key)
            held = [a for a in addresses if self._dispatcher.is_draining(a) and not self._dispatcher.undrain_worker(a)]
            if held:
                self._dispatcher.drain_workers(addresses)
            else:
                del self._drains[key]
                done.append(key)
        return done

    def forget(self, keys: list[str]) -> None:
        """What these names stood for has gone, and others may be called so."""
        for key in keys:
            self._drains.pop(key, None)

    async def retire(self, keys: list[str], *, force: bool, wait_s: float) -> dict[str, str]:
        """Take drained workers off the cluster; returns the state of each drain after ``wait_s`` at most.

        What is in flight at a worker keeps it from being retired, unless ``force``: then it goes back to the queues.
        """
        for key in keys:
            drain = self._drains.get(key)
            addresses = self.addresses(key)
            if drain is not None and drain.retiring is None and (force or not any(map(self.is_busy, addresses))):
                drain.retiring = asyncio.get_running_loop().create_task(self._retire(addresses))
        tasks = [d.retiring for key in keys if (d := self._drains.get(key)) is not None and d.retiring is not None]
        if tasks and wait_s > 0:
            await asyncio.wait(tasks, timeout=wait_s)
        return {key: self._drains[key].state for key in keys if key in self._drains}

    def status(self) -> dict[str, dict[str, Any]]:
        """Each drain by name: its age, reason and state, batches in flight, and whether it still takes queued ones."""
        now = time.monotonic()
        return {
            key: {
                "age_s": now - drain.since_s,
                "why": drain.why,
                "state": drain.state,
                "in_flight": sum(self._dispatcher.in_flight(a) for a in self.addresses(key)),
                "closing": any(self._dispatcher.is_closing(a) for a in self.addresses(key)),
            }
            for key, drain in self._drains.items()
        }

    def is_busy(self, address: str) -> bool:
        """Whether a worker runs batches, or still takes queued ones."""
        return self._dispatcher.in_flight(address) > 0 or self._dispatcher.is_closing(address)

    async def _retire(self, addresses: list[str]) -> None:
        for address in addresses:
            self._dispatcher.drop_worker(address)
        present = [a for a in addresses if a in self._scheduler.workers]
        if present:
            try:
                await self._scheduler.retire_workers(workers=present, close_workers=True, remove=True)
            except Exception:
                logger.exception("workers %s could not be retired; what they hold is computed again", present)


def _names(worker: WorkerState) -> tuple[str, str, str]:
    """What a drain may call a Dask worker: by address, name, or name without its number."""
    name = str(worker.name)
    stem, dash, number = name.rpartition("-")
    return worker.address, name, stem if dash and number.isdecimal() else name
