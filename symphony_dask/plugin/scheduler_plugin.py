"""Opens the lane in the scheduler process and deploys models to workers over Dask's own RPC: the scheduler plugin.

Control plane only. It says where the lane is and hands out its token, and answers what clients ask of ``deployments``
and ``loader``, which have workers load models and tell the dispatcher which slots may take batches of them. Requests
never pass through here.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Any

import dask.config
from distributed.core import Status
from distributed.diagnostics.plugin import SchedulerPlugin

from symphony_dask import config
from symphony_dask.backends.sample import ANY_SHAPE
from symphony_dask.clock import now_ns
from symphony_dask.control import state_file
from symphony_dask.control.deployment import Deployment
from symphony_dask.control.deployments import Deployments, Versions
from symphony_dask.control.fleet_rpc import Fleets
from symphony_dask.control.loader import Loader
from symphony_dask.control.pipeline_registry import Pipelines
from symphony_dask.dispatcher.dispatcher import Dispatcher
from symphony_dask.dispatcher.request_table import RequestTable
from symphony_dask.dispatcher.sessions import Worker
from symphony_dask.dispatcher.tracing import Tracing
from symphony_dask.engine.batching import Batching
from symphony_dask.engine.engine import POLICIES, check_batching
from symphony_dask.engine.latency_profile import LatencyProfile
from symphony_dask.engine.request_kernels import LATENCY_BINS
from symphony_dask.errors import BadInput, DeploymentError, NotServing, SymphonyError
from symphony_dask.observe import dashboard, metrics
from symphony_dask.plugin.graph_tasks import GraphTasks
from symphony_dask.plugin.start_attempts import Attempts
from symphony_dask.plugin.use import Use, keep_awake
from symphony_dask.plugin.worker_setup import install_on_workers
from symphony_dask.text import MOST_NAME, brief, check_name, did_you_mean, plain
from symphony_dask.trace import Outcome
from symphony_dask.units import parse_duration_ns
from symphony_dask.wire.connection import Connection
from symphony_dask.wire.records import DONE_ROW, SUBMIT_ROW, make_records
from symphony_dask.wire.rpc_replies import Reply, failure

if TYPE_CHECKING:
    from dask.typing import Key
    from distributed import Scheduler

logger = logging.getLogger(__name__)

#: A scheduler that closes waits so long for us, s; a recording may go to a store that does not answer.
_CLOSE_S = 30.0

#: Dask's start waits so long for ours, s: enough where compiled code is at hand, so that a scheduler that says it is
#: there serves, and opens nothing any more.
_START_S = 1.0


class SymphonyPlugin(SchedulerPlugin):
    """Install with ``dask scheduler --preload symphony_dask``; ``Serving(client)`` does it on a running scheduler.

    policy: how batches are scheduled (``engine.engine.POLICIES``); by default the ``symphony.policy`` setting.
    """

    name = "symphony"
    idempotent = True

    def __init__(self, policy: str | None = None) -> None:
        self.policy = policy
        #: What does not work though the rest serves, by what it is.
        self.problems: dict[str, str] = {}
        self._graph_tasks: GraphTasks | None = None  # until the dispatcher runs
        self._use: Use | None = None
        self._attempts: Attempts | None = None
        self._resources: AsyncExitStack | None = None
        self._installing: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self, scheduler: Scheduler) -> None:
        """Have serving start; called by Dask, at the scheduler's start or when installed later.

        A starting scheduler answers nobody before this returns, and goes on whatever becomes of us: what takes longer
        than ``_START_S`` there goes on beside it, and is tried again, and only who asks where the lane is waits. Where
        a client installs the plugin, it is told if that fails: raises ``NotServing``.
        """
        other = scheduler.handlers.get("symphony_info")
        if other is not None:  # another client is installing the plugin
            await other()
            return
        self.scheduler = scheduler
        self._attempts = Attempts(self._start, "Symphony cannot start, and the scheduler goes on without it")
        # From here on whoever asks where the lane is waits for it.
        scheduler.handlers["symphony_info"] = self._info
        if scheduler.status is not Status.running:
            # Before workers join, so that Dask hands it to them, and none has to be asked.
            self._installing = asyncio.get_running_loop().create_task(install_on_workers(scheduler))
            with suppress(TimeoutError):
                await asyncio.wait_for(self._attempts.outcome(), _START_S)
        if scheduler.status is Status.running and (why := await self._attempts.outcome()):
            self._attempts.stop()
            del scheduler.handlers["symphony_info"]
            raise NotServing(why)

    async def _start(self) -> None:
        """Open the lane server and register the RPCs; leaves nothing behind if it raises."""
        awake = asyncio.ensure_future(keep_awake(self.scheduler))  # compiling may take longer than its idle time-out
        try:
            async with AsyncExitStack() as stack:
                await self._serve(stack)
                self._resources = stack.pop_all()
        finally:
            awake.cancel()

    async def _serve(self, stack: AsyncExitStack) -> None:
        scheduler = self.scheduler
        config.load()
        self.problems.clear()
        wait = dask.config.get("symphony.wait-for-gpu")
        self._state_file = dask.config.get("symphony.state")
        self._saving = asyncio.Lock()
        nothing: Any = ([], 0, {})
        state = await asyncio.to_thread(state_file.read, self._state_file) if self._state_file else nothing
        names, next_model_id, pipelines = state
        options: dict[str, Any] = {
            "policy": self.policy or dask.config.get("symphony.policy"),
            "max_requests": int(dask.config.get("symphony.max-requests")),
            "inline_bytes": int(dask.config.get("symphony.lane.inline-bytes")),
            "wait_ns": parse_duration_ns(wait, "symphony.wait-for-gpu") if wait else 0,
            "timeouts": config.connection_timeouts(),
        }
        # Compiling the engine, where it is not in the disk cache yet, takes seconds: not on the event loop.
        options |= {"on_worker": self._on_worker, "on_aside": self._on_aside, "on_back": self._on_back}
        self.dispatcher = dispatcher = await asyncio.to_thread(Dispatcher, **options)
        load_timeout_s = parse_duration_ns(dask.config.get("symphony.load-timeout"), "symphony.load-timeout") / 1e9
        self.loader = Loader(
            dispatcher, scheduler.rpc, load_timeout_s, self._is_drained, self._dask_workers,
            patient=bool(options["wait_ns"]),
        )  # fmt: skip
        self.deployments = Deployments(dispatcher, self.loader, self._spawn, self._save)
        self.pipelines = Pipelines(lambda: (versions.name for versions in self.deployments), self._save, pipelines)
        dispatcher.reserve_ids(next_model_id)
        for versions in names:
            self.deployments.restore(versions)
        share = dask.config.get("symphony.tracing")
        dispatcher.tracing = Tracing(float(share)) if share else None
        graph_tasks = GraphTasks(scheduler, dispatcher, asyncio.get_running_loop())
        self._fleets = Fleets(scheduler, dispatcher, admit=self.loader.admit_again, loading=self._loading)
        use = Use(
            scheduler,
            dispatcher,
            self._fleets.drains,
            is_loading=self._is_loading,
            is_graph_task=graph_tasks.holds,
            admit=self.loader.admit_again,
        )
        await asyncio.to_thread(warm_up)
        # What is here now stays; a full collection that walks all of it holds up every request for tens of ms.
        gc.collect()
        gc.freeze()
        ssl_context = scheduler.security.get_listen_args("scheduler").get("ssl_context")
        host = dask.config.get("symphony.lane.host") or config.listen_host(scheduler)
        stack.push_async_callback(dispatcher.stop)
        stack.callback(self.loader.close)
        stack.callback(self._cancel_tasks)
        await dispatcher.start(host, int(dask.config.get("symphony.lane.port")), ssl_context)
        self._spawn(self.loader.follow())
        operations = (
            "deploy",
            "undeploy",
            "status",
            "models",
            "signals",
            "overview",
            "record",
            "stop_recording",
            "record_scaling",
            "set_policy",
            "worker_problem",
        )
        for name in operations:
            scheduler.handlers[f"symphony_{name}"] = getattr(self, f"_{name}")
        for name in ("find", "versions", "rollback", "promote", "set_share", "declared"):
            scheduler.handlers[f"symphony_{name}"] = getattr(self, f"_{name}")
        for name in ("declare", "find", "all"):
            scheduler.handlers[f"symphony_pipeline_{name}"] = getattr(self.pipelines, name)
        for name in ("drain", "undrain", "retire", "fleet", "intend", "forget"):
            scheduler.handlers[f"symphony_{name}"] = getattr(self._fleets, name)
        self._show(stack)
        use.start()
        stack.callback(use.stop)
        self._graph_tasks, self._use = graph_tasks, use
        # How clients learn that the plugin is here: asking for an operation that does not exist would be logged.
        scheduler.set_metadata(keys=["symphony"], value=True)
        directory = dask.config.get("symphony.trace.directory")
        if directory:
            folder = f"{directory}/{time.strftime('%Y%m%d-%H%M%S')}-{scheduler.id.lower()}"
            with self._noted("recording", f"cannot be recorded into symphony.trace.directory {directory!r}"):
                dispatcher.start_recording(folder, {})
        self._spawn(install_on_workers(scheduler))

    def _show(self, stack: AsyncExitStack) -> None:
        """On Dask's metrics and dashboard, which serving can do without."""
        dispatcher, fleets = self.dispatcher, self._fleets
        with self._noted("metrics", "cannot be shown on Dask's /metrics"):
            stack.callback(metrics.expose(dispatcher.signals, (dispatcher.metrics, dispatcher.status, fleets.status)))
        with self._noted("dashboard", "cannot be shown on Dask's dashboard"):
            dashboard.install(self.scheduler, dispatcher, fleets.status)

    @contextmanager
    def _noted(self, what: str, trouble: str) -> Iterator[None]:
        """Serve without what fails in here, and say so in the log and in ``status``."""
        try:
            yield
        except Exception as error:
            logger.exception("%s", trouble)
            self.problems[what] = f"{trouble}: {brief(error)}"

    async def close(self) -> None:
        """Called by a scheduler that closes, which must not be held up: raises nothing, and ends in time."""
        if self._attempts is not None:
            self._attempts.stop()
        if self._installing is not None:
            self._installing.cancel()
        self._graph_tasks = self._use = None
        if self._resources is not None:
            try:
                await asyncio.wait_for(self._resources.aclose(), _CLOSE_S)
            except Exception:
                logger.exception("Symphony did not close as it should")

    def _cancel_tasks(self) -> None:
        for task in self._tasks:
            task.cancel()

    def remove_worker(self, scheduler: Scheduler, worker: str, **kwargs: object) -> None:
        self.problems.pop(worker, None)
        if self._graph_tasks is not None:
            try:
                self.dispatcher.drop_worker(worker)
            finally:
                self.loader.leave(worker)

    def update_graph(self, scheduler: Scheduler, *, tasks: list[Any], **kwargs: object) -> None:
        if self._graph_tasks is not None:
            self._graph_tasks.admit(tasks)

    def transition(self, key: Key, start: str, finish: str, *args: object, **kwargs: object) -> None:
        if self._graph_tasks is not None:
            self._graph_tasks.moved(key, finish)

    def valid_workers_downscaling(self, scheduler: Scheduler, workers: list[Any]) -> list[Any]:
        """Those that Dask may take away where it scales down. It has no guard round this one."""
        if self._use is None:
            return workers
        try:
            return [worker for worker in workers if not self._use.serves(worker.address)]
        except Exception:
            logger.exception("workers that serve could not be told from others")
            return workers

    # RPCs, as ``rpc_replies`` has them.

    async def _info(self) -> Reply:
        assert self._attempts is not None
        if why := await self._attempts.outcome():
            text = f"Symphony could not start on the scheduler, and is tried again from time to time: {why}"
            return failure(NotServing(text))
        return {"port": self.dispatcher.port, "token": self.dispatcher.token, "scheduler": self.scheduler.id}

    async def _status(self) -> Reply:
        status = self.dispatcher.status()
        for address, places in self.loader.workers.items():
            health = self.loader.health(places)
            errors = [failure["error"] for slot in health for failure in slot["failed"].values()]
            worker = status["workers"].setdefault(address, {})
            worker["error"], worker["health"] = next(iter(errors), None), health
            known = self.scheduler.workers.get(address)
            worker["name"] = None if known is None else plain(known.name, MOST_NAME)
        deployed = {d.model_id: d for versions in self.deployments for d in versions.all()}
        for model in status["models"].values():
            deployment = deployed.get(model["model_id"])
            if deployment is not None:
                model["state"], model["pinned"] = deployment.state, deployment.pinned
                model["memory_bytes"], model["load_ns"] = deployment.memory, deployment.load_ns
                model["slots"] = self.loader.where(deployment.model_id)
        status["loading"] = self._loading()
        status["dask_workers"] = dict(zip(("all", "gpu"), self._dask_workers(), strict=True))
        status["loads"], status["evictions"] = self.loader.loads, self.loader.evictions
        status["problems"] = list(self.problems.values())
        return {"ok": status | self._fleets.status()}

    async def _worker_problem(self, worker: str, why: str) -> None:
        """A worker that has GPUs cannot serve, or ("") can now."""
        self.problems.pop(worker, None)
        if why and worker in self.scheduler.workers:
            self.problems[worker] = f"worker {worker} serves no models: {plain(why)}"

    def _dask_workers(self) -> tuple[int, int]:
        """How many workers there are, and how many of them have a GPU resource."""
        workers = self.scheduler.workers.values()
        return len(workers), sum(bool(worker.resources.get("GPU")) for worker in workers)

    def _is_drained(self, address: str) -> bool:
        return self._fleets.drains.of(address) is not None

    def _is_loading(self, address: str | None) -> bool:
        return bool(self._loading()) if address is None else self.loader.is_loading(address)

    def _loading(self) -> list[str]:
        return [v.name for v in self.deployments if v.pending is not None]

    async def _signals(self) -> Reply:
        return {"ok": self.dispatcher.signals()}

    async def _models(self) -> Reply:
        """What serves, for clients that did not deploy it themselves: number on the lane, what it takes and gives."""
        rows = []
        for versions in self.deployments:
            if versions.current is not None:
                rows.append(self._describe(versions.current, versions.number))
            if versions.canary is not None:
                rows.append(self._describe(versions.canary, versions.canary.model_id))
        return {"ok": rows}

    def _describe(self, deployment: Deployment, number: int) -> dict[str, Any]:
        return {
            "name": deployment.name,
            "version": deployment.version,
            "model_id": number,
            "slo_ns": deployment.slo_ns,
            "max_batch": min((p.max_batch for p in deployment.profiles.values()), default=deployment.max_batch),
            "slots": self.loader.where(deployment.model_id),
            "takes": deployment.form,
            "any_shape": deployment.signature == ANY_SHAPE,
            "gives": deployment.answer,
        }

    async def _overview(self) -> Reply:
        overview = self.dispatcher.overview() | {"loading": self._loading()}
        return {"ok": overview | self._fleets.status()}

    async def _record(self, folder: str, info: dict[str, Any]) -> Reply:
        try:
            self.dispatcher.start_recording(folder, info)
        except (SymphonyError, OSError) as error:
            return failure(error)
        return {"ok": folder}

    async def _stop_recording(self, info: dict[str, Any] | None = None) -> Reply:
        try:
            return {"ok": await self.dispatcher.stop_recording(info)}
        except BadInput as error:
            return failure(error)

    async def _record_scaling(self, inputs: dict[str, Any], decision: dict[str, Any]) -> Reply:
        try:
            return {"ok": self.dispatcher.record_scaling(inputs, decision)}
        except (TypeError, ValueError) as error:
            return failure(BadInput(f"inputs and decision of a scaling tick must be plain JSON values: {error}"))

    async def _set_policy(self, policy: str) -> Reply:
        try:
            self.dispatcher.engine.policy = policy
        except (ValueError, AttributeError, TypeError) as error:
            return failure(BadInput(f"{plain(error)}{did_you_mean(policy, POLICIES)}"))
        return {"ok": policy}

    async def _undeploy(self, name: str, force: bool = False) -> Reply:
        if await self.pipelines.forget(name):
            return {"ok": name}
        try:
            if not force:
                self.pipelines.check_unused(name)
            await self.deployments.undeploy(name)
        except SymphonyError as error:
            return failure(error)
        return {"ok": name}

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
        version: str | None = None,
        canary: float | None = None,
        memory: int | None = None,
        pinned: bool = False,
        signature: bytes | None = None,
        declared: dict[str, Any] | None = None,
        force: bool = False,
        batching: Sequence[Any] = (),
    ) -> Reply:
        try:
            check_name("model name", name)  # of a client that does not
        except BadInput as error:
            return failure(error)
        formed = Batching(*batching)
        try:
            check_batching(formed)
        except (ValueError, AttributeError, TypeError) as error:
            return failure(BadInput(f"model {name!r}: {plain(error)}{did_you_mean(str(formed.policy), POLICIES)}"))
        if name in self.pipelines.declared:
            text = f"model {name!r} has the name of a pipeline: choose another name, or undeploy the pipeline"
            return failure(BadInput(text))
        given = LatencyProfile.from_dict(profile) if profile is not None else None
        deployment = Deployment(
            self.dispatcher.new_model_id(), name, spec, slo_ns, max_batch, queue_limit, example, given,
            memory=memory, pinned=pinned, signature=signature, declared=declared, batching=formed,
        )  # fmt: skip
        return await self._changed(self.deployments.deploy(deployment, version, canary, timeout_s, force), name)

    async def _rollback(self, name: str, timeout_s: float) -> Reply:
        return await self._changed(self.deployments.rollback(name, timeout_s), name)

    async def _promote(self, name: str) -> Reply:
        return await self._changed(self.deployments.promote(name), name)

    async def _set_share(self, name: str, share: float) -> Reply:
        return await self._changed(self.deployments.set_share(name, share), name)

    async def _find(self, name: str, version: str | None = None) -> Reply:
        try:
            return {"ok": _handle(*self.deployments.find(name, version))}
        except SymphonyError as error:
            return failure(error)

    async def _versions(self, name: str) -> Reply:
        try:
            versions = self.deployments.versions(name)
        except SymphonyError as error:
            return failure(error)
        share = {"canary": versions.share, "serving": 1.0 - versions.share if versions.canary else 1.0}
        rows = [
            {
                "version": d.version,
                "state": d.state,
                "share": share.get(d.state, 0.0),
                "slo_ns": d.slo_ns,
                "slots": self.loader.where(d.model_id),
            }
            for d in versions.all()
        ]
        return {"ok": rows}

    async def _declared(self) -> Reply:
        """What serves, with what a declaration file said of it (``declarations.Running``)."""
        found = {}
        for versions in self.deployments:
            current, canary = versions.current, versions.canary
            if current is not None:
                row: dict[str, Any] = {"version": current.version, "declared": current.declared}
                if canary is not None:
                    row |= {"canary_version": canary.version, "canary": canary.declared, "share": versions.share}
                found[versions.name] = row
        return {"ok": found}

    async def _changed(self, change: Any, name: str) -> Reply:
        """Await a change of what is deployed; answers with a handle to the name."""
        try:
            versions: Versions = await change
        except Exception as error:
            if not isinstance(error, SymphonyError):
                logger.exception("deployment of %r failed", name)
                error = DeploymentError(f"model {name!r} could not be deployed: {type(error).__name__}: {error}")
            return failure(error)
        assert versions.current is not None
        newest = versions.canary or versions.current
        return {"ok": _handle(versions.number, versions.current) | {"warning": newest.warning}}

    async def _save(self) -> None:
        """Note that what is deployed has changed, and write it down if there is a file for it."""
        self.dispatcher.asked_ns = now_ns()
        if self._state_file:
            async with self._saving:
                data = state_file.pack(self.deployments, self.dispatcher.next_model_id, self.pipelines.declared)
                self.problems.pop("state", None)
                with self._noted("state", f"what is deployed cannot be kept in symphony.state {self._state_file!r}"):
                    await asyncio.to_thread(state_file.write, self._state_file, data)

    def _on_worker(self, connection: Connection[Worker]) -> None:
        """A worker said HELLO on the lane: bring it up to date."""
        self._spawn(self.loader.join(connection))

    def _on_aside(self, connection: Connection[Worker], slot: int, model_id: int, why: str) -> None:
        self.loader.set_aside(connection, slot, model_id, why)

    def _on_back(self, connection: Connection[Worker], slot: int, model_id: int) -> None:
        self.loader.take_back(connection, slot, model_id)

    def _spawn(self, coroutine: Any) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def warm_up() -> None:
    """Have the engine's functions compiled, or read from the disk cache, before the first request needs them."""
    import numpy as np

    from symphony_dask.engine.engine import Engine

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
    frame = make_records(SUBMIT_ROW, 1)
    host: dict[str, Any] = {"client": 0, "now": 10**6, "slo_of": np.full(1, 10**9)}
    index_of = np.zeros(1, np.int32)
    taken = table.admit(engine, frame, memoryview(b""), margin_ns=0, care_ns=0, index_of=index_of, serving=True, **host)
    assert taken is not None
    table.keep(taken.slots, frame, memoryview(b""), **host)
    decisions, _ = engine.step(10**6)
    assert len(decisions.members) == 1
    table.lay_out(decisions.members, -1)
    answers = make_records(DONE_ROW, 1, link=-1)
    counts, latencies = np.zeros(len(Outcome), np.int64), np.zeros(LATENCY_BINS + 1, np.int64)
    table.settle(taken.slots, answers, 0, now=0, failed=set(), counts=counts, latencies=latencies)
    for row in decisions.batches.tolist():
        engine.completed(0, gpu, row[0], 0, 10**6)
    engine.set_control(0, 0, gpu)
    engine.alone_ns(0, model)  # what the first drop asks, on the event loop
    engine.set_eligible(0, model, gpu, False)
    engine.step(10**9)
    engine.drain_gpu(0, gpu)
    engine.remove_gpu(0, gpu)
    engine.remove_model(0, model)


def _handle(number: int, deployment: Deployment) -> dict[str, Any]:
    """What a client needs to address a version, or whichever one answers to its name."""
    return {
        "model_id": number,
        "version": deployment.version,
        "slo_ns": deployment.slo_ns,
        "profiles": {c: p.to_dict() for c, p in deployment.profiles.items()},
        "signature": deployment.signature,
    }
