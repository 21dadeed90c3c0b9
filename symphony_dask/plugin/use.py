"""Counts serving as use, for those settings of Dask's that judge by tasks.

A scheduler or worker without tasks is idle to Dask, however many requests it answers:
* ``distributed.scheduler.idle-timeout`` counts from the last request, or the last change of what is deployed. Without
  either the scheduler closes as it would without us. Time in which its event loop stood still does not count: nobody
  could be heard.
* Adaptive scaling (Dask's own, ``cluster.adapt()``) is offered no worker that runs batches, loads a model or did so
  within ``KEEP_S``. Which of the others go is Dask's business.
* Workers that Dask retires (a scale-down, the end of a worker's ``lifetime``, ``Client.retire_workers``) end their
  batches first.
* ``distributed.scheduler.no-workers-timeout`` does not touch graph tasks, which wait for a batch, no worker: they
  end by their requests' deadlines.
Work stealing leaves graph tasks where they are, as they may run on no worker but theirs.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from distributed.core import Status
from distributed.metrics import monotonic, time

from symphony_dask.clock import now_ns
from symphony_dask.control.drains import Drains
from symphony_dask.control.loader import until
from symphony_dask.dispatcher.dispatcher import Dispatcher
from symphony_dask.units import NS_PER_S

if TYPE_CHECKING:
    from distributed import Scheduler

    pass

logger = logging.getLogger(__name__)

#: Between looks, s: less than any idle time-out that makes sense.
_LOOK_S = 0.1

#: A worker that served so recently is in use, s.
KEEP_S = 60.0

#: How long batches may hold up the retirement of their worker, s; then they run elsewhere.
RETIRE_S = 30.0


async def keep_awake(scheduler: Scheduler) -> None:
    """A scheduler is in use while this runs."""
    while True:
        if scheduler.idle_since and scheduler.idle_timeout:
            scheduler.idle_since = time()
        await asyncio.sleep(_LOOK_S)


class Use:
    """Of one scheduler, from ``start`` to ``stop``.

    is_loading: whether models are being loaded, at a worker of that address or (None) for somebody who waits for it.
    is_graph_task: whether that key is one's. admit: called with the address of a worker that is to serve again.
    """

    def __init__(
        self,
        scheduler: Any,
        dispatcher: Dispatcher,
        drains: Drains,
        *,
        is_loading: Callable[[str | None], bool],
        is_graph_task: Callable[[Any], bool],
        admit: Callable[[str], None],
    ) -> None:
        self._scheduler, self._dispatcher, self._drains = scheduler, dispatcher, drains
        self._is_loading, self._is_graph_task, self._admit = is_loading, is_graph_task, admit
        self._task: asyncio.Task[None] | None = None
        self._looked_s = monotonic()

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._follow())
        self._retire = self._scheduler.retire_workers
        # Dask tells no plugin that it retires workers. Workers and clients call the one, its HTTP API the other.
        self._scheduler.retire_workers = self._scheduler.handlers["retire_workers"] = self.retire_workers
        self._check_idle = self._scheduler.check_idle
        self._replace_check_idle(self.check_idle)

    def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            self._scheduler.retire_workers = self._scheduler.handlers["retire_workers"] = self._retire
            self._replace_check_idle(self._check_idle)

    def _replace_check_idle(self, check: Callable[[], float | None]) -> None:
        self._scheduler.check_idle = self._scheduler.handlers["check_idle"] = check
        self._scheduler.periodic_callbacks["idle-timeout"].callback = check

    def check_idle(self) -> float | None:
        """As ``Scheduler.check_idle``, which may close the scheduler, after a look at what serving does."""
        self._check_safely()
        since: float | None = self._check_idle()
        return since

    async def _follow(self) -> None:
        while True:
            self._check_safely()
            await asyncio.sleep(_LOOK_S)

    def _check_safely(self) -> None:
        try:
            self.look()
        except Exception:
            logger.exception("Dask could not be told that it is in use")

    def look(self) -> None:
        """Tell the scheduler of the last use, and put off its time-outs for graph tasks."""
        scheduler = self._scheduler
        now = monotonic()
        stood_still_s = max(now - self._looked_s - 2 * _LOOK_S, 0.0)
        self._looked_s = now
        if scheduler.idle_since:  # else it has tasks
            scheduler.idle_since = max(min(scheduler.idle_since + stood_still_s, time()), self._last_use_s())
        limit_s = scheduler.no_workers_timeout
        if limit_s is not None:
            old = []
            for ts, since in scheduler.unrunnable.items():  # the oldest first, as it has to stay
                if now - since < limit_s / 2:
                    break
                old.append(ts)
            for ts in old:
                if self._is_graph_task(ts.key):
                    del scheduler.unrunnable[ts]
                    scheduler.unrunnable[ts] = now

    def _last_use_s(self) -> float:
        """On Dask's clock; 0 if there was none."""
        if self._dispatcher.is_busy() or self._is_loading(None):
            return time()
        asked_ns = self._dispatcher.asked_ns
        return time() - (now_ns() - asked_ns) / NS_PER_S if asked_ns else 0.0

    def serves(self, address: str) -> bool:
        """Whether a worker is in use."""
        if address not in self._dispatcher.workers:
            return False
        if self._drains.is_busy(address) or self._is_loading(address):
            return True
        return now_ns() - self._dispatcher.used_ns(address) < KEEP_S * NS_PER_S

    async def retire_workers(self, workers: Any = None, **options: Any) -> Any:
        """As ``Scheduler.retire_workers``, after the workers' batches have ended."""
        try:
            addresses = await self._end_batches(workers, options)
        except Exception:
            logger.exception("workers that are retired could not end their batches first")
            return await self._retire(workers, **options)
        if not addresses:
            return await self._retire(workers, **options)
        try:
            return await self._retire(workers, **options)
        finally:
            self._drains.undrain([a for a in addresses if self._is_running(a)])
            for address in addresses:
                if self._is_running(address):  # what it holds had nowhere to go
                    self._admit(address)
            self._drains.forget([a for a in addresses if a not in self._scheduler.workers])

    async def _end_batches(self, workers: Iterable[str] | None, options: dict[str, Any]) -> list[str]:
        """Drain those on the lane that will be retired; returns their addresses."""
        known = self._scheduler.workers
        names = options.get("names")
        if workers is not None:
            retired = set(workers)
        elif names is not None:
            wanted = {str(name) for name in names}
            retired = {address for address, worker in known.items() if str(worker.name) in wanted}
        else:
            chosen = {k: v for k, v in options.items() if k not in ("close_workers", "remove", "stimulus_id", "names")}
            retired = set(self._scheduler.workers_to_close(**chosen))
        serving = [a for a in self._dispatcher.workers if a in retired and self._drains.of(a) is None]
        if serving:
            self._drains.drain(serving, "Dask retires it")
            with suppress(TimeoutError):
                async with asyncio.timeout(RETIRE_S):
                    await until(lambda: not any(map(self._drains.is_busy, serving)))
        return serving

    def _is_running(self, address: str) -> bool:
        worker = self._scheduler.workers.get(address)
        return worker is not None and worker.status == Status.running
