"""Presents a fleet as a Dask cluster object: ``Client(cluster)``, ``scale``, ``adapt``, ``close``, synchronous or not.

The cluster object only says how many GPUs there should be. A controller (``autoscale.fleet.controller``) takes
the fleet there, with all that this implies: one instance a slot, caps, drains before terminations, the highest ranks
first. One Dask worker is one GPU.
"""

from __future__ import annotations

import asyncio
import atexit
import logging
import time
import weakref
from collections.abc import Callable, Generator, Hashable, Iterable
from contextlib import suppress
from typing import Any

import distributed
from distributed.core import Status, rpc
from distributed.protocol.pickle import dumps
from distributed.security import Security

from autoscale.clusters.adaptive import Adaptive
from autoscale.clusters.scheduler_process import SchedulerProcess
from autoscale.fleet.act import Step
from autoscale.fleet.controller import Controller, Decision, Notices
from autoscale.fleet.fleet import FleetProtocol, Instance
from autoscale.fleet.scheduler_view import DaskCluster
from autoscale.fleet.view import Settings
from symphony_dask.errors import BadInput, NotServing
from symphony_dask.plugin.scheduler_plugin import SymphonyPlugin
from symphony_dask.units import NS_PER_S, parse_duration_ns

logger = logging.getLogger(__name__)


_OPEN: weakref.WeakSet[FleetCluster] = weakref.WeakSet()


class FleetAdaptive(Adaptive):
    """``Adaptive`` for a cluster that chooses and drains by itself whom it lets go: only the number is passed on."""

    async def recommendations(self, target: int) -> dict[str, Any]:
        wanted = len(self.plan)
        self._fewer_wanted = self._fewer_wanted + 1 if target < wanted else 0
        if target == wanted or 0 < self._fewer_wanted < self.wait_count:
            return {"status": "same"}
        return {"status": "up", "n": target}

    async def scale_up(self, n: int) -> None:
        self.cluster.scale(n)


#: Dask's own, which is untyped.
_DaskCluster: Any = distributed.deploy.cluster.Cluster


class FleetCluster(_DaskCluster):
    """The instances of any fleet (``autoscale.fleet.fleet``) as a Dask cluster. ``EC2GPUCluster`` is the one on EC2.

    fleet: makes the fleet, given the scheduler's address.
    settings: caps and times (``autoscale.fleet.view.Settings``).
    notices: where the cloud says what it takes back.
    n_workers: GPUs to start with.
    scheduler: address of a scheduler that runs already; by default one is started in a process of its own on this
        machine, and ends with this object, or with this process.
    host, port, lane_port: where that one listens; 0 takes any free port. security: its TLS material.
    interval: how often the fleet is looked at.
    close_timeout: how long ``close`` waits for batches in flight and for instances to end.
    """

    def __init__(
        self,
        fleet: Callable[[str], FleetProtocol],
        settings: Settings,
        *,
        name: str,
        notices: Notices | None = None,
        n_workers: int = 0,
        scheduler: str | None = None,
        host: str | None = None,
        port: int = 8786,
        lane_port: int = 8788,
        security: Security | None = None,
        interval: str = "5s",
        close_timeout: str = "2min",
        asynchronous: bool = False,
        loop: Any = None,
    ) -> None:
        if not isinstance(n_workers, int) or n_workers < 0:
            raise BadInput(f"n_workers={n_workers!r}: give a whole number of GPUs, at least 0")
        self.settings = settings
        self.security = security or Security()
        self.wanted = n_workers
        self.last: Step | None = None
        self._fleet = fleet
        self._notices = notices
        self._address = scheduler
        self._process: SchedulerProcess | None = None
        self._where = {"host": host, "port": port, "lane_port": lane_port}
        self._interval_s = parse_duration_ns(interval, "interval") / NS_PER_S
        self._close_s = parse_duration_ns(close_timeout, "close_timeout") / NS_PER_S
        self._connection: DaskCluster | None = None
        self._controller: Controller | None = None
        self._following: asyncio.Task[None] | None = None
        super().__init__(asynchronous=asynchronous, loop=loop, quiet=True, name=name)
        if not self.called_from_running_loop:
            self._loop_runner.start()
            try:
                self.sync(self._start)
            except BaseException:
                self._loop_runner.stop()
                raise

    #: Dask's own.
    status: Any

    @property
    def plan(self) -> set[Hashable]:
        """Names of the workers that there should be; a number stands for one that has no instance yet."""
        names = sorted(self.requested, key=str)[: self.wanted]
        return {*names, *range(self.wanted - len(names))}

    @property
    def requested(self) -> set[Hashable]:
        """Names of the workers of all instances that are to stay."""
        if self.last is None:
            return set()
        remaining = [i for i in self.last.instances if self.last.phases.get(i.id) in ("launching", "booting", "joined")]
        return {name for instance in remaining for name in worker_names(instance)}

    def scale(self, n: int) -> Any:
        """Have ``n`` GPUs: returns at once. Raises ``BadInput``."""
        if not isinstance(n, int) or n < 0:
            raise BadInput(f"scale({n!r}): give a whole number of GPUs, at least 0")
        self.wanted = n
        self.loop.add_callback(self._look_now)
        return distributed.utils.NoOpAwaitable() if self.asynchronous else None

    def scale_down(self, workers: Iterable[Hashable]) -> Any:
        """Have as many GPUs fewer as there are ``workers``; those of the highest ranks go, whoever is named."""
        return self.scale(max(self.wanted - len(set([workers] if isinstance(workers, (str, int)) else workers)), 0))

    def adapt(self, Adaptive: Any = FleetAdaptive, **options: Any) -> Any:
        """Follow the load of the models; the options are those of ``autoscale.Adaptive``."""
        return super().adapt(Adaptive=Adaptive, **options)

    def close(self, timeout: float | None = None) -> Any:
        """Drain and end all instances, then the scheduler, if it was started here."""
        closing = super().close(timeout)
        if not self.asynchronous:
            self._loop_runner.stop()
        return closing

    def __await__(self) -> Generator[Any, None, FleetCluster]:
        async def started() -> FleetCluster:
            if self.status == Status.created:
                await self._start()
            return self

        return started().__await__()

    def __enter__(self) -> FleetCluster:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    async def __aenter__(self) -> FleetCluster:
        return await self

    async def __aexit__(self, *exc: object) -> None:
        await self._close()

    async def _start(self) -> None:
        if self.status == Status.running:
            return
        if self.status != Status.created:
            raise NotServing(f"the cluster is {self.status.name}: make another one")
        self.status = Status.starting
        self._wake = asyncio.Event()
        try:
            ours = self._address is None
            if self._address is None:
                self._process = SchedulerProcess(security=self.security, **self._where)  # type: ignore[arg-type]
                self._address = await self._process.start()
            self.scheduler_comm = rpc(self._address, connection_args=self.security.get_connection_args("client"))
            if not ours:
                await self._install()
            await super()._start()
            self._connection = DaskCluster(self._address, security=self.security)
            self._controller = Controller(
                self.settings, self._fleet(self._address), self._connection, self._decide, notices=self._notices
            )
            self._following = asyncio.ensure_future(self._follow())
            _OPEN.add(self)
        except BaseException:
            await self._close()
            raise

    async def _install(self) -> None:
        """The plugin, on a scheduler that may not have it yet."""
        if not await self.scheduler_comm.get_metadata(keys=["symphony"], default=None):
            await self.scheduler_comm.register_scheduler_plugin(
                plugin=dumps(SymphonyPlugin()), name=SymphonyPlugin.name, idempotent=True
            )

    def _look_now(self) -> None:
        self._wake.set()

    def _decide(self, ready: int, booting: int, draining: int) -> Decision:
        return Decision(self.wanted, "as scaled", {})

    async def _follow(self) -> None:
        """Take the fleet towards ``wanted``, for as long as the cluster runs."""
        while self.status == Status.running:
            await self._tick()
            with suppress(TimeoutError):
                async with asyncio.timeout(self._interval_s):
                    await self._wake.wait()
            self._wake.clear()

    async def _tick(self) -> Step | None:
        assert self._controller is not None
        step = await asyncio.to_thread(self._controller.tick)
        if step is not None:
            self.last = step
        return step

    async def _close(self) -> None:
        if self.status in (Status.closed, Status.closing):
            return
        self.status = Status.closing
        with suppress(AttributeError):
            self._adaptive.stop()
        if self._following is not None:
            # A tick under way ends first: two at once would share the controller's memory.
            self._wake.set()
            await self._following
            await self._end_instances()
        if self._connection is not None:
            await asyncio.to_thread(self._connection.close)
        with suppress(OSError):
            await super()._close()
        if self._process is not None:
            await self._process.stop()
        self.status = Status.closed
        _OPEN.discard(self)

    async def _end_instances(self) -> None:
        """Drain and terminate until none is left; after ``close_timeout`` terminate what is left as it is."""
        assert self._controller is not None
        self.wanted = 0
        end = time.monotonic() + self._close_s
        while time.monotonic() < end:
            step = await self._tick()
            if step is not None and not any(instance.live for instance in step.instances):
                return
            await asyncio.sleep(0.2)
        fleet = self._controller.fleet
        left = [i.id for i in await asyncio.to_thread(fleet.list) if i.up]
        if left:
            logger.warning("instances %s are ended without having been drained", left)
            await asyncio.to_thread(fleet.terminate, left)


def worker_names(instance: Instance) -> list[str]:
    """The workers that an instance starts."""
    return [f"{instance.id}-{gpu}" for gpu in range(instance.gpus)]


@atexit.register
def _close_all() -> None:
    """What a program leaves open when it ends costs money."""
    for cluster in list(_OPEN):
        if not cluster.asynchronous:
            with suppress(Exception):
                cluster.close(timeout=cluster._close_s + 30)
