"""The scheduler plugin: opens the lane in the scheduler process and deploys models to workers over Dask's own RPC.

Control plane only. It says where the lane is and hands out its token, has workers load and profile models, and tells
the dispatcher which workers may take batches. Requests never pass through here.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import dask.config
from distributed.core import Status
from distributed.diagnostics.plugin import SchedulerPlugin
from distributed.protocol.pickle import dumps

from symphony_dask import config, dashboard, metrics
from symphony_dask.dispatcher import Dispatcher
from symphony_dask.errors import BadInput, DeploymentError, NoGPUWorker, SymphonyError, UnknownModel
from symphony_dask.fleets import Fleets
from symphony_dask.held import HeldTasks
from symphony_dask.lane import DONE_ROW, SUBMIT_ROW, Connection, pack_rows, read_rows
from symphony_dask.requests import RequestTable
from symphony_dask.scheduling.intake import LATENCY_BINS
from symphony_dask.scheduling.profile import LatencyProfile
from symphony_dask.signals import gpu_seconds_per_request
from symphony_dask.trace import Outcome
from symphony_dask.tracing import Tracing
from symphony_dask.units import format_duration, parse_duration_ns
from symphony_dask.worker import SymphonyWorkerPlugin

logger = logging.getLogger(__name__)

Reply = dict[str, Any]


@dataclass
class Deployment:
    """A model on its way to serving, or serving. ``profiles`` are by GPU class; a given one holds for every class."""

    model_id: int
    name: str
    spec: bytes
    slo_ns: int
    max_batch: int
    queue_limit: int
    example: bytes | None
    given: LatencyProfile | None
    profiles: dict[str, LatencyProfile] = field(default_factory=dict)
    serving: bool = False
    profiling: asyncio.Lock = field(default_factory=asyncio.Lock)


@dataclass
class WorkerState:
    """What a connected worker has loaded; ``errors`` says by model id why it could not load others."""

    connection: Connection
    loaded: set[int] = field(default_factory=set)
    errors: dict[int, str] = field(default_factory=dict)
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class SymphonyPlugin(SchedulerPlugin):
    """Install with ``dask scheduler --preload symphony_dask``; ``Serving(client)`` does it on a running scheduler.

    policy: how batches are scheduled (``scheduling.engine.POLICIES``); by default the ``symphony.policy`` setting.
    """

    name = "symphony"
    idempotent = True

    def __init__(self, policy: str | None = None) -> None:
        self.policy = policy
        self._held: HeldTasks | None = None  # until the dispatcher runs
        self._forget_metrics: Callable[[], None] = lambda: None
        self._deployments: dict[int, Deployment] = {}
        self._workers: dict[str, WorkerState] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self, scheduler: Any) -> None:
        """Open the lane server and register the RPCs; called by Dask, at the scheduler's start or when installed later.

        A starting scheduler answers nobody before this returns, and clients give up after 30 s: there the rest goes on
        beside it, and only who asks where the lane is waits.
        """
        other = scheduler.handlers.get("symphony_info")
        if other is not None:  # another client is installing the plugin
            await other()
            return
        # From here on whoever asks where the lane is waits for it.
        scheduler.handlers["symphony_info"] = self._info
        self._starting = asyncio.ensure_future(self._start(scheduler))
        if scheduler.status is not Status.running:
            self._watching = asyncio.ensure_future(self._watch_start(scheduler))
            return
        try:
            await self._starting
        except BaseException:
            del scheduler.handlers["symphony_info"]
            raise

    async def _watch_start(self, scheduler: Any) -> None:
        """End a scheduler that was to run Symphony and cannot, as any preload that fails does."""
        try:
            await asyncio.shield(self._starting)
        except Exception as error:
            logger.exception("Symphony could not start, so the scheduler ends: %s", error)
            await scheduler.close(reason=f"symphony-could-not-start-{type(error).__name__}")

    async def _start(self, scheduler: Any) -> None:
        config.load()
        self.scheduler = scheduler
        self._worker_joined = asyncio.Condition()
        wait = dask.config.get("symphony.wait-for-gpu")
        options: dict[str, Any] = {
            "policy": self.policy or dask.config.get("symphony.policy"),
            "max_requests": int(dask.config.get("symphony.max-requests")),
            "inline_bytes": int(dask.config.get("symphony.lane.inline-bytes")),
            "wait_ns": parse_duration_ns(wait, "symphony.wait-for-gpu") if wait else 0,
        }
        # Compiling the engine, where it is not in the disk cache yet, takes seconds: not on the event loop.
        self.dispatcher = await asyncio.to_thread(Dispatcher, **options, on_worker=self._on_worker)
        share = dask.config.get("symphony.tracing")
        self.dispatcher.tracing = Tracing(float(share)) if share else None
        self._held = HeldTasks(scheduler, self.dispatcher, asyncio.get_running_loop())
        self._fleets = Fleets(scheduler, self.dispatcher, admit=self._admit_again, loading=self._loading)
        await asyncio.to_thread(warm_up)
        # What is here now stays; a full collection that walks all of it holds up every request for tens of ms.
        gc.collect()
        gc.freeze()
        ssl_context = scheduler.security.get_listen_args("scheduler").get("ssl_context")
        host = dask.config.get("symphony.lane.host") or config.listen_host(scheduler)
        await self.dispatcher.start(host, int(dask.config.get("symphony.lane.port")), ssl_context)
        operations = (
            "deploy",
            "undeploy",
            "status",
            "signals",
            "overview",
            "record",
            "stop_recording",
            "record_scaling",
            "set_policy",
        )
        for name in operations:
            scheduler.handlers[f"symphony_{name}"] = getattr(self, f"_{name}")
        for name in ("drain", "undrain", "retire", "fleet", "intend", "forget"):
            scheduler.handlers[f"symphony_{name}"] = getattr(self._fleets, name)
        dispatcher = self.dispatcher
        self._forget_metrics = metrics.expose(
            dispatcher.signals, (dispatcher.metrics, dispatcher.status, self._fleets.status)
        )
        dashboard.install(scheduler, dispatcher, self._fleets.status)
        # How clients learn that the plugin is here: asking for an operation that does not exist would be logged.
        scheduler.set_metadata(keys=["symphony"], value=True)
        directory = dask.config.get("symphony.trace.directory")
        if directory:
            folder = f"{directory}/{time.strftime('%Y%m%d-%H%M%S')}-{scheduler.id.lower()}"
            self.dispatcher.start_recording(folder, {})
        await scheduler.register_worker_plugin(
            None, plugin=dumps(SymphonyWorkerPlugin()), name=SymphonyWorkerPlugin.name, idempotent=True
        )

    async def close(self) -> None:
        self._starting.cancel()
        for task in self._tasks:
            task.cancel()
        self._forget_metrics()
        if self._held is not None:
            await self.dispatcher.stop()

    def remove_worker(self, scheduler: Any, worker: str, **kwargs: Any) -> None:
        if self._held is not None:
            self.dispatcher.drop_worker(worker)
            self._workers.pop(worker, None)

    def update_graph(self, scheduler: Any, *, tasks: list[Any], **kwargs: Any) -> None:
        if self._held is not None:
            self._held.admit(tasks)

    def transition(self, key: Any, start: str, finish: str, *args: Any, **kwargs: Any) -> None:
        if self._held is not None:
            self._held.moved(key, finish)

    # RPCs. They answer {"ok": value} or {"error": [class, message]}, so that the client can raise our own classes.

    async def _info(self) -> Reply:
        await asyncio.shield(self._starting)
        return {"port": self.dispatcher.port, "token": self.dispatcher.token, "scheduler": self.scheduler.id}

    async def _status(self) -> Reply:
        status = self.dispatcher.status()
        for address, worker in self._workers.items():
            status["workers"].setdefault(address, {})["error"] = next(iter(worker.errors.values()), None)
            known = self.scheduler.workers.get(address)
            status["workers"][address]["name"] = None if known is None else str(known.name)
        status["loading"] = self._loading()
        return {"ok": status | self._fleets.status()}

    async def _signals(self) -> Reply:
        return {"ok": self.dispatcher.signals()}

    async def _overview(self) -> Reply:
        overview = self.dispatcher.overview() | {"loading": self._loading()}
        return {"ok": overview | self._fleets.status()}

    async def _record(self, folder: str, info: dict[str, Any]) -> Reply:
        try:
            self.dispatcher.start_recording(folder, info)
        except (SymphonyError, OSError) as error:
            return _failure(error)
        return {"ok": folder}

    async def _stop_recording(self) -> Reply:
        return {"ok": await self.dispatcher.stop_recording()}

    async def _record_scaling(self, inputs: dict[str, Any], decision: dict[str, Any]) -> Reply:
        try:
            return {"ok": self.dispatcher.record_scaling(inputs, decision)}
        except (TypeError, ValueError) as error:
            return _failure(BadInput(f"inputs and decision of a scaling tick must be plain JSON values: {error}"))

    async def _set_policy(self, policy: str) -> Reply:
        try:
            self.dispatcher.engine.policy = policy
        except ValueError as error:
            return _failure(BadInput(str(error)))
        return {"ok": policy}

    async def _undeploy(self, name: str) -> Reply:
        deployment = next((d for d in self._deployments.values() if d.name == name and d.serving), None)
        if deployment is None:
            return _failure(UnknownModel(f"model {name!r} is not deployed; deployed are {self._names()}"))
        del self._deployments[deployment.model_id]
        self.dispatcher.remove_model(deployment.model_id)
        await self._forget(deployment)
        return {"ok": name}

    async def _forget(self, deployment: Deployment) -> None:
        """Unload a model that is no longer deployed; a worker that takes no batches for its sake may do so again."""
        for address, worker in list(self._workers.items()):
            worker.loaded.discard(deployment.model_id)
            worker.errors.pop(deployment.model_id, None)
            self._admit(worker)
            try:
                await self.scheduler.rpc(address).symphony_unload(model_id=deployment.model_id)
            except OSError as error:  # the worker is leaving
                logger.info("worker %s did not unload %r: %s", address, deployment.name, error)

    async def _deploy(
        self,
        name: str,
        spec: bytes,
        slo_ns: int,
        profile: dict[str, Any] | None,
        max_batch: int,
        queue_limit: int,
        example: bytes | None,
        timeout_s: float,
    ) -> Reply:
        if any(d.name == name for d in self._deployments.values()):
            text = f"model {name!r} is deployed already: undeploy it first, or choose another name"
            return _failure(BadInput(text))
        given = LatencyProfile.from_dict(profile) if profile is not None else None
        deployment = Deployment(
            self.dispatcher.new_model_id(), name, spec, slo_ns, max_batch, queue_limit, example, given
        )
        self._deployments[deployment.model_id] = deployment
        try:
            await self._bring_up(deployment, timeout_s)
        except Exception as error:
            del self._deployments[deployment.model_id]
            await self._forget(deployment)
            if not isinstance(error, SymphonyError):
                logger.exception("deployment of %r failed", name)
                error = DeploymentError(f"model {name!r} could not be deployed: {type(error).__name__}: {error}")
            return _failure(error)
        return {"ok": {"model_id": deployment.model_id, "profiles": _plain(deployment.profiles)}}

    def _loading(self) -> list[str]:
        return [d.name for d in self._deployments.values() if not d.serving]

    def _names(self) -> list[str]:
        return [d.name for d in self._deployments.values()]

    # Deploying

    async def _bring_up(self, deployment: Deployment, timeout_s: float) -> None:
        """Load, profile and serve a new model on every worker connected now; raises ``SymphonyError``."""
        try:
            async with asyncio.timeout(timeout_s), self._worker_joined:
                await self._worker_joined.wait_for(lambda: self._workers)
        except TimeoutError:
            text = (
                f"no worker with a GPU resource joined within {timeout_s:g} s, so model {deployment.name!r} has "
                'nowhere to run: start one with dask worker SCHEDULER --resources "GPU=1"'
            )
            raise NoGPUWorker(text) from None
        workers = list(self._workers.values())
        await asyncio.gather(*(self._prepare(w) for w in workers))
        good = [w for w in workers if deployment.model_id in w.loaded]
        if not good:
            reason = next((w.errors[deployment.model_id] for w in workers if deployment.model_id in w.errors), "")
            raise DeploymentError(f"model {deployment.name!r} came up on no worker. {reason}")
        fastest = {c: p.latency_ns()[1] for c, p in deployment.profiles.items()}
        alone_ns = min(fastest.values())
        if alone_ns > deployment.slo_ns:
            text = (
                f"SLO {format_duration(deployment.slo_ns)} of model {deployment.name!r} cannot be met: one request "
                f"alone takes {format_duration(alone_ns)}; raise the SLO or use a faster GPU"
            )
            raise BadInput(text)
        deployment.serving = True
        for worker in self._workers.values():
            self._admit(worker)
        self.dispatcher.add_model(
            deployment.model_id,
            deployment.name,
            deployment.slo_ns,
            deployment.profiles,
            queue_limit=deployment.queue_limit,
        )

    async def _prepare(self, worker: WorkerState) -> None:
        """Load on a worker all that it lacks and has not failed to load, then let it take batches if it may."""
        async with worker.lock:
            while missing := [d for i, d in self._deployments.items() if i not in worker.loaded | worker.errors.keys()]:
                address = worker.connection.peer.address
                try:
                    await self._load(worker, missing[0])
                except Exception as error:
                    worker.errors[missing[0].model_id] = f"worker {address}: {error}"
                    logger.warning("model %r failed to load on %s: %s", missing[0].name, address, error)
            self._admit(worker)

    def _admit(self, worker: WorkerState) -> None:
        """Let a worker take batches if it has all models that are served, and else none."""
        served = {i for i, d in self._deployments.items() if d.serving}
        if not served <= worker.loaded:
            self.dispatcher.remove_slots(worker.connection)
        elif not worker.connection.peer.gpus and not worker.connection.closed:
            if self._fleets.drains.of(worker.connection.peer.address) is None:
                self.dispatcher.add_slots(worker.connection)
            else:
                worker.connection.peer.draining = True

    def _admit_again(self, address: str) -> None:
        """A worker is drained no more."""
        if address in self._workers:
            self._admit(self._workers[address])

    async def _load(self, worker: WorkerState, deployment: Deployment) -> None:
        peer = worker.connection.peer
        rpc = self.scheduler.rpc(peer.address)
        await rpc.symphony_load(model_id=deployment.model_id, spec=deployment.spec, example=deployment.example)
        async with deployment.profiling:  # workers of one class need it measured once
            if peer.gpu_class not in deployment.profiles:
                profile = deployment.given
                if profile is None:
                    measured = await rpc.symphony_profile(
                        model_id=deployment.model_id,
                        example=deployment.example,
                        max_batch=deployment.max_batch,
                        slo_ns=deployment.slo_ns,
                    )
                    profile = LatencyProfile.from_dict(measured)
                deployment.profiles[peer.gpu_class] = profile
                if deployment.serving:
                    self.dispatcher.add_profile(self.dispatcher.models[deployment.model_id], peer.gpu_class, profile)
        worker.loaded.add(deployment.model_id)

    def _on_worker(self, connection: Connection) -> None:
        """A worker said HELLO on the lane: bring it up to date."""
        worker = WorkerState(connection)
        self._workers[connection.peer.address] = worker

        async def join() -> None:
            async with self._worker_joined:
                self._worker_joined.notify_all()
            await self._prepare(worker)

        self._spawn(join())

    def _spawn(self, coroutine: Any) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def warm_up() -> None:
    """Have the engine's functions compiled, or read from the disk cache, before the first request needs them."""
    import numpy as np

    from symphony_dask.scheduling.engine import Engine

    engine = Engine("eager", max_requests=4)
    latency = LatencyProfile(0.0, 1.0, max_batch=2).latency_ns()
    model = engine.add_model(0, slo_ns=10**9, latency_ns={0: latency})
    gpu = engine.add_gpu(0)
    one = np.array([model], np.int32)
    engine.submit(0, one, np.array([10**9]), np.array([0]))
    engine.cancel(0, 0)
    engine.submit(0, np.array([model, model], np.int32), np.array([10**9] * 2), np.array([0, 1]), np.zeros(2, np.int32))
    batch = engine.advance(0).batches
    engine.next_event()
    for row in batch.tolist():
        engine.completed(0, gpu, row[0], 0, 10**6)
    table = RequestTable(4)
    frame = read_rows(pack_rows(SUBMIT_ROW, 1), SUBMIT_ROW)
    host: dict[str, Any] = {"client": 0, "now": 10**6, "slo_of": np.full(1, 10**9)}
    index_of = np.zeros(1, np.int32)
    taken = table.admit(engine, frame, memoryview(b""), margin_ns=0, index_of=index_of, serving=True, **host)
    assert taken is not None
    table.keep(taken.slots, frame, memoryview(b""), **host)
    decisions, _ = engine.step(10**6)
    assert len(decisions.members) == 1
    table.lay_out(decisions.members, -1)
    answers = read_rows(pack_rows(DONE_ROW, 1, link=-1), DONE_ROW)
    counts, latencies = np.zeros(len(Outcome), np.int64), np.zeros(LATENCY_BINS + 1, np.int64)
    table.settle(taken.slots, answers, 0, now=0, failed=set(), counts=counts, latencies=latencies)
    for row in decisions.batches.tolist():
        engine.completed(0, gpu, row[0], 0, 10**6)
    engine.set_control(0, 0, gpu)
    engine.drain_gpu(0, gpu)
    engine.remove_gpu(0, gpu)
    engine.remove_model(0, model)
    gpu_seconds_per_request(latency, 10**9, 1.0)


def _failure(error: Exception) -> Reply:
    return {"error": [type(error).__name__, str(error)]}


def _plain(profiles: dict[str, LatencyProfile]) -> dict[str, Any]:
    return {c: p.to_dict() for c, p in profiles.items()}


async def dask_setup(scheduler: Any) -> None:
    """Called by ``dask scheduler --preload symphony_dask``."""
    plugin = SymphonyPlugin()
    scheduler.add_plugin(plugin, name=plugin.name)
    if scheduler.status == Status.running:  # plugins added from here on are not started by the scheduler
        await plugin.start(scheduler)
