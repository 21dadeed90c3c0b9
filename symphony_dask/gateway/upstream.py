"""The gateway's lane to the scheduler, and what is deployed there; both kept up in the background.

Everything runs in one event loop, so that a request costs no change of thread: it leaves with the frame of its tick,
and the frame of answers wakes those who wait.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from distributed import Client
from distributed.security import Security

from symphony_dask.client import Serving
from symphony_dask.errors import ConnectionLost
from symphony_dask.gateway.refusal import later
from symphony_dask.gateway.samples import Interface, interface_of

logger = logging.getLogger(__name__)

#: How often the table of models is read, s; it is also read when a model is asked for that it has not.
REFRESH_S = 0.5

#: However many unknown names are asked for, readings are so far apart, s.
_LEAST_REFRESH_S = 0.05

#: Between attempts to reach the scheduler, s; the last one goes on for ever.
_RECONNECT_S = (0.1, 0.2, 0.5, 1.0, 2.0)

#: The scheduler's port must answer within this, s. That the engine may still be compiling there has no limit.
_CONNECT_S = 10.0
_CALL_S = 5.0


@dataclass(frozen=True)
class Served:
    """A deployed model. model_id: its number on the lane; slots: GPU slots that serve it now."""

    name: str
    version: str
    model_id: int
    slo_ns: int
    max_batch: int
    slots: int
    takes: Interface
    gives: Interface | None


class Reply(asyncio.Future[memoryview]):
    """The answer to one sample, as a payload of the codec. Cancelling it takes the request out of its queue."""

    def __init__(self, request: int, on_cancel: Callable[[int], None]) -> None:
        super().__init__()
        self._request = request
        self._on_cancel = on_cancel
        self.outcome = ""

    def _answer(self, outcome: str, payload: memoryview) -> None:
        if not self.done():
            self.outcome = outcome
            self.set_result(payload)

    def _finish(self, outcome: str, result: Any, exception: BaseException | None) -> None:
        if not self.done():
            self.outcome = outcome
            self.set_exception(exception or ConnectionLost("the request ended without an answer"))

    def cancel(self, msg: Any = None) -> bool:
        if not super().cancel(msg):
            return False
        self._on_cancel(self._request)
        return True


class Upstream:
    """scheduler: its address. security: of Dask; None: as Dask's configuration says."""

    def __init__(self, scheduler: str, security: Security | None = None) -> None:
        self._scheduler = scheduler
        self._security = security
        self._serving: Serving | None = None
        self._models: dict[str, list[Served]] = {}
        self._reading: asyncio.Task[None] | None = None
        self._next: asyncio.Task[None] | None = None
        self._read_at = 0.0
        self._trouble = "it has not been reached yet"

    @property
    def connected(self) -> bool:
        return self._serving is not None and self._serving.lane.connected

    @property
    def models(self) -> list[Served]:
        """What is deployed, by name, the newest version of each last."""
        return [served for name in sorted(self._models) for served in self._models[name]]

    async def run(self) -> None:
        """Connect, and again whenever the connection is lost; until cancelled."""
        attempt = 0
        while True:
            try:
                await self._session()
                attempt = 0
                trouble = "the connection was lost"
            except Exception as error:
                trouble = f"{type(error).__name__}: {error}"
            if trouble != self._trouble:
                logger.warning("no connection to the scheduler at %s: %s", self._scheduler, trouble)
            self._trouble = trouble
            await asyncio.sleep(_RECONNECT_S[min(attempt, len(_RECONNECT_S) - 1)])
            attempt += 1

    async def _session(self) -> None:
        """Connect, and keep the table of models until the connection is lost."""
        client = Client(
            self._scheduler, asynchronous=True, security=self._security, set_as_default=False, timeout=_CONNECT_S
        )
        try:
            await client
            serving = await Serving(client)
            await self._read(serving)
            self._serving = serving
            self._trouble = "it was lost"
            logger.info("connected to the scheduler at %s", self._scheduler)
            while serving.lane.connected:
                await asyncio.sleep(REFRESH_S)
                await self.refresh()
        finally:
            self._serving = None
            self._models = {}
            try:
                await asyncio.wait_for(client.close(timeout=1), 3)
            except Exception as error:  # closing is all that is left to do with it
                logger.debug("closing the client of %s: %s", self._scheduler, error)

    async def _read(self, serving: Serving) -> None:
        table: dict[str, list[Served]] = {}
        for entry in await asyncio.wait_for(serving.deployed(), _CALL_S):
            takes = interface_of(entry["takes"], "input")
            gives = interface_of(entry["gives"], "output") if entry["gives"] is not None else None
            known = {name: entry[name] for name in ("name", "version", "model_id", "slo_ns", "max_batch", "slots")}
            table.setdefault(entry["name"], []).append(Served(**known, takes=takes, gives=gives))
        self._models = table

    async def refresh(self) -> None:
        """Read the table of models: a reading that begins after this call. All who ask before it begins share it."""
        if self._next is None:
            self._next = asyncio.get_running_loop().create_task(self._read_after(self._reading))
        await asyncio.shield(self._next)

    async def _read_after(self, reading: asyncio.Task[None] | None) -> None:
        if reading is not None:
            await asyncio.wait([reading])
        loop = asyncio.get_running_loop()
        await asyncio.sleep(self._read_at + _LEAST_REFRESH_S - loop.time())
        self._read_at = loop.time()
        self._reading, self._next = self._next, None
        await self._try_to_read()

    async def _try_to_read(self) -> None:
        serving = self._serving
        if serving is None or not serving.lane.connected:
            return
        try:
            await self._read(serving)
        except Exception as error:  # the old table holds until the lane is lost too
            logger.info("the models of %s could not be read: %s", self._scheduler, error)

    async def find(self, name: str, version: str | None = None) -> Served | None:
        """A model, looked up once more where the table has it not; raises ``Refusal`` without a connection."""
        self.check_connected()
        found = self.look_up(name, version)
        if found is None:
            await self.refresh()
            found = self.look_up(name, version)
        return found

    def look_up(self, name: str, version: str | None = None) -> Served | None:
        """A model in the table; the newest version unless one is named."""
        for served in reversed(self._models.get(name, ())):
            if version is None or served.version == version:
                return served
        return None

    def check_connected(self) -> None:
        """Raises ``Refusal``, 503, without a connection."""
        if not self.connected:
            raise later(503, f"no connection to the scheduler at {self._scheduler}: {self._trouble}", "failed")

    def submit(self, served: Served, payload: bytes, slo_ns: int, priority: int) -> Reply:
        """Submit one sample; raises ``Refusal`` without a connection."""
        serving = self._serving
        if serving is None or not serving.lane.connected:
            self.check_connected()
        assert serving is not None
        return serving.lane.submit(served.model_id, payload, slo_ns, priority, Reply)

    async def status(self) -> dict[str, Any]:
        """``Serving.status``; raises ``Refusal`` without a connection."""
        self.check_connected()
        assert self._serving is not None
        found: dict[str, Any] = await asyncio.wait_for(self._serving.status(), _CALL_S)
        return found
