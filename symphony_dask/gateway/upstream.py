"""Keeps the gateway's lane to the scheduler, and the table of what is deployed there, up in the background.

Everything runs in one event loop, so that a request costs no change of thread: it leaves with the frame of its tick,
and the frame of answers wakes those who wait.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from distributed import Client
from distributed.security import Security

from symphony_dask.client.pipeline import Pipeline
from symphony_dask.client.serving import Serving
from symphony_dask.client.stages import ends_of
from symphony_dask.clock import now_ns
from symphony_dask.errors import ConnectionLost, DeploymentError, ModelError, SymphonyError
from symphony_dask.gateway.formats.samples import Interface, interface_of
from symphony_dask.gateway.paths import Call
from symphony_dask.gateway.refusal import Refusal, later
from symphony_dask.text import brief, shown
from symphony_dask.units import NS_PER_S, Seconds
from symphony_dask.wire.codec import decode, encode

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

#: The table of models waits so long for a pipeline that is new, s.
_FIND_S = 1.0


@dataclass(frozen=True)
class Served:
    """A deployed model. model_id: its number on the lane; slots: GPU slots that serve it now.

    A pipeline has no number: this process leads its requests through their stages.
    """

    name: str
    version: str
    model_id: int
    slo_ns: int
    max_batch: int
    slots: int
    takes: Interface
    gives: Interface | None
    pipeline: Pipeline | None = None


class Reply(asyncio.Future[memoryview]):
    """The answer to one sample, as a payload of the codec. Cancelling it takes the request out of its queue.

    answered_ns: when its frame was read, on ``clock.now_ns``.
    """

    def __init__(self, request: int, on_cancel: Callable[[int], Any]) -> None:
        super().__init__()
        self._request = request
        self._on_cancel = on_cancel
        self.answered_ns = 0
        self.ends_ns = 0
        self.model_id = -1
        self.answered_in: Any = None

    def _answer(self, outcome: str, payload: memoryview) -> None:
        if not self.done():
            self.answered_ns = now_ns()
            self.set_result(payload)

    def _finish(self, outcome: str, result: object, exception: BaseException | None) -> None:
        if not self.done():
            ended = exception if exception is not None else ConnectionLost("the request ended without an answer")
            self.set_exception(ended)

    def cancel(self, msg: object = None) -> bool:
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
        # As declared, and what became of it: under way as long as its functions are being loaded.
        self._pipelines: dict[str, tuple[dict[str, Any] | None, asyncio.Task[Any] | Pipeline | None]] = {}
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
                trouble = brief(error)
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
            for name in list(self._pipelines):
                self._forget(name)
            try:
                await asyncio.wait_for(client.close(timeout=1), 3)
            except Exception as error:  # closing is all that is left to do with it
                logger.debug("closing the client of %s: %s", self._scheduler, error)

    async def _read(self, serving: Serving) -> None:
        table: dict[str, list[Served]] = {}
        for entry in await asyncio.wait_for(serving.deployed(), _CALL_S):
            any_shape = entry["any_shape"]
            takes = interface_of(entry["takes"], "input", any_shape)
            gives = interface_of(entry["gives"], "output", any_shape) if entry["gives"] is not None else None
            known = {name: entry[name] for name in ("name", "version", "model_id", "slo_ns", "max_batch", "slots")}
            table.setdefault(entry["name"], []).append(Served(**known, takes=takes, gives=gives))
        for name, declared in (await asyncio.wait_for(serving.pipelines(), _CALL_S)).items():
            if name not in table and (pipeline := await self._pipeline(serving, name, declared)) is not None:
                table[name] = [_served(pipeline, table)]
        self._models = table

    async def _pipeline(self, serving: Serving, name: str, declared: dict[str, Any]) -> Pipeline | None:
        """The pipeline as it is declared now; None, with the reason in the log, where this process cannot lead it, or
        not yet: what its functions import may take long, and other models are not to wait for that.
        """
        known, found = self._pipelines.get(name, (None, None))
        if known != declared:
            self._forget(name)
            found = asyncio.get_running_loop().create_task(serving.find(name))
            self._pipelines[name] = (declared, found)
            await asyncio.wait([found], timeout=_FIND_S)
        if not isinstance(found, asyncio.Task):
            return found
        if not found.done():
            return None
        pipeline = None
        try:
            pipeline = found.result()
        except DeploymentError as error:  # a function of a module that is not here, say
            logger.warning("%s", error)
        except SymphonyError as error:  # a model of it is not deployed, say, which may change
            logger.info("pipeline %r is not served: %s", name, error)
            del self._pipelines[name]
            return None
        except Exception as error:
            logger.warning("pipeline %r cannot be served: %s", name, brief(error))
        self._pipelines[name] = (declared, pipeline)
        return pipeline

    def _forget(self, name: str) -> None:
        _, found = self._pipelines.pop(name, (None, None))
        if isinstance(found, asyncio.Task):
            found.cancel()

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
            logger.info("the models of %s could not be read: %s", self._scheduler, brief(error))

    async def find(self, calls: Sequence[Call]) -> tuple[Call, Served]:
        """The first of these readings of a path whose model is deployed, looked up once more where none is.

        Raises ``Refusal``: 404, or 503 without a connection.
        """
        self.check_connected()
        found = self.first(calls)
        if found is None:
            await self.refresh()
            pipelines = (self._pipelines.get(call.model, (None, None))[1] for call in calls)
            loading = [pipeline for pipeline in pipelines if isinstance(pipeline, asyncio.Task)]
            if loading:
                await asyncio.wait(loading, timeout=_CALL_S, return_when=asyncio.FIRST_COMPLETED)
                await self.refresh()
            found = self.first(calls)
        if found is None:
            name, version = shown(calls[0].model), calls[0].version
            which = f"version {shown(version)} of model {name}" if version is not None else f"model {name}"
            raise Refusal(404, f"{which} is not deployed")
        return found

    def first(self, calls: Sequence[Call]) -> tuple[Call, Served] | None:
        """The same by what is in the table."""
        for call in calls:
            served = self.look_up(call.model, call.version)
            if served is not None:
                return call, served
        return None

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
        if served.pipeline is not None:
            return _lead(served.pipeline, payload, slo_ns, priority)
        within_ns = slo_ns or served.slo_ns
        return serving.lane.submit(served.model_id, payload, slo_ns, priority, Reply, within_ns=within_ns)

    async def status(self) -> dict[str, Any]:
        """``Serving.status``; raises ``Refusal`` without a connection."""
        self.check_connected()
        assert self._serving is not None
        found: dict[str, Any] = await asyncio.wait_for(self._serving.status(), _CALL_S)
        return found


def _served(pipeline: Pipeline, table: dict[str, list[Served]]) -> Served:
    """As far as its first and last models tell what it takes and gives; served as long as each model is somewhere."""

    def model(name: str | None) -> Served | None:
        return table[name][-1] if name in table else None

    first, last = (model(name) for name in ends_of(pipeline.stages))
    found = [model(name) for name in pipeline.models]
    return Served(
        pipeline.name,
        "1",
        -1,
        pipeline.slo_ns,
        min((served.max_batch for served in found if served is not None), default=1),
        min((served.slots if served is not None else 0 for served in found), default=0),
        takes=first.takes if first is not None else interface_of(None, "input"),
        gives=last.gives if last is not None else None,
        pipeline=pipeline,
    )


def _lead(pipeline: Pipeline, payload: bytes, slo_ns: int, priority: int) -> Reply:
    """A request to a pipeline; its stages pass through the same lane as all others."""
    future = pipeline.submit(decode(payload), slo=Seconds(slo_ns / NS_PER_S) if slo_ns else None, priority=priority)
    reply = Reply(future.request, lambda request: future.cancel())

    def ended(ended: object) -> None:
        if future.cancelled():
            reply.cancel()
            return
        error = future.exception()
        if error is None:
            try:
                reply._answer(future.outcome or "ok", memoryview(encode(future.result())))
                return
            except BaseException as not_sent:  # what the last function returned may be anything
                text = str(not_sent) if isinstance(not_sent, SymphonyError) else brief(not_sent)
                error = ModelError(f"the answer of pipeline {pipeline.name!r} cannot be sent: {text}")
        elif not isinstance(error, SymphonyError):
            error = ModelError(f"a function of pipeline {pipeline.name!r} raised {brief(error)}")
        reply._finish(future.outcome or "failed", None, error)

    future.add_done_callback(ended)  # called in this event loop, which is the lane's
    return reply
