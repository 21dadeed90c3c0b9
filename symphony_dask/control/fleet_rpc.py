"""Answers what a controller of the fleet asks of the scheduler: who is here, drains, and the ledger of launches.

RPCs, each answering {"ok": value}; ``autoscale.fleet.scheduler_view`` calls them, and ``Serving.drain`` and its like.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from symphony_dask.control.drains import Drains
from symphony_dask.control.launch_ledger import Ledger
from symphony_dask.dispatcher.dispatcher import Dispatcher
from symphony_dask.errors import BadInput
from symphony_dask.names import name_list
from symphony_dask.text import MOST_NAME, plain, shown
from symphony_dask.wire.rpc_replies import Reply, failure

if TYPE_CHECKING:
    from distributed import Scheduler


class Fleets:
    """Of one scheduler.

    admit: called with the address of each worker that is drained no more. loading: models that are not served yet.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        dispatcher: Dispatcher,
        *,
        admit: Callable[[str], None],
        loading: Callable[[], list[str]],
    ) -> None:
        self.drains = Drains(scheduler, dispatcher)
        self._scheduler = scheduler
        self._dispatcher = dispatcher
        self._admit = admit
        self._loading = loading
        self._ledgers: dict[str, Ledger] = {}
        self._started_s = time.monotonic()

    def status(self) -> dict[str, Any]:
        """For people: the drains, and what controllers last said of their fleets."""
        reports = {name: report for name, kept in self._ledgers.items() if (report := kept.last_report())}
        return {"drains": self.drains.status(), "fleets": reports}

    async def drain(self, workers: object, why: str = "asked", known: bool = False) -> Reply:
        """Batches in flight by the names given, which ``drains`` explains.

        known: refuse, as the others do, names that nobody has (yet).
        """
        try:
            names = self._named(workers, known)
        except BadInput as error:
            return failure(error)
        self.drains.drain(names, plain(why, MOST_NAME))
        drains = self.drains.status()
        return {"ok": {key: drains[key]["in_flight"] for key in names}}

    async def undrain(self, workers: object, known: bool = False) -> Reply:
        """The names of those that take batches again."""
        try:
            done = self.drains.undrain(self._named(workers, known))
        except BadInput as error:
            return failure(error)
        for address in {address for key in done for address in self.drains.addresses(key)}:
            self._admit(address)
        return {"ok": done}

    async def retire(self, workers: object, force: bool = False, wait_s: float = 0.0, known: bool = False) -> Reply:
        """The state of each drain."""
        try:
            names = self._named(workers, known)
        except BadInput as error:
            return failure(error)
        states = await self.drains.retire(names, force=force, wait_s=wait_s)
        idle = [name for name in names if known and name not in states]
        if idle:
            return failure(BadInput(f"worker {shown(idle[0])} is not drained: drain it first"))
        return {"ok": states}

    def _named(self, workers: object, known: bool) -> list[str]:
        names = name_list(workers, "worker")
        if known:
            self.drains.check(names)
        return names

    async def fleet(self, fleet: str, report: dict[str, Any] | None = None) -> Reply:
        """All that a controller has to know (``autoscale.fleet.view.View``). report: what it has to say itself."""
        ledger = self._ledger(fleet)
        if report is not None:
            ledger.set_report(report)
        status = self._dispatcher.status()
        workers = [
            {
                "name": str(self._scheduler.workers[address].name),
                "gpus": worker["serving"],
                "rank": min(worker["ranks"], default=-1),
                "in_flight": worker["in_flight"],
                "draining": worker["draining"],
            }
            for address, worker in status["workers"].items()
            if address in self._scheduler.workers
        ]
        found = {
            "workers": workers,
            "drains": self.drains.status(),
            "launches": ledger.entries(),
            "version": ledger.version,
            "age_s": time.monotonic() - self._started_s,
            "loading": self._loading(),
        }
        return {"ok": found}

    async def intend(self, fleet: str, version: int, slot: int, generation: int, launch: dict[str, Any]) -> Reply:
        """The ledger's new version, None where ``version`` is not the present one."""
        return {"ok": self._ledger(fleet).intend(version, slot, generation, launch)}

    async def forget(self, fleet: str, slot: int, generation: int) -> Reply:
        self._ledger(fleet).forget(slot, generation)
        return {"ok": None}

    def _ledger(self, fleet: str) -> Ledger:
        return self._ledgers.setdefault(fleet, Ledger())
