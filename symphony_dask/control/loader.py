"""Loads models into the slots of workers, keeps them there, and tells the dispatcher which slot has which.

What is to be where is decided by ``placement``. A slot gets batches of those models only that it has loaded, so that a
model that fails to load, or takes long, keeps no slot from the others.
"""

from __future__ import annotations

import asyncio
import logging
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from symphony_dask.clock import now_ns
from symphony_dask.control.deployment import Deployment
from symphony_dask.control.placement import (
    ALLOW,
    ALLOW_NS,
    FILL,
    KEEP,
    LINGER_NS,
    REST,
    TRIAL_NS,
    Demand,
    Loaded,
    SlotPlace,
    make_room,
    plan,
)
from symphony_dask.dispatcher.dispatcher import Dispatcher
from symphony_dask.dispatcher.sessions import Worker
from symphony_dask.engine.engine import NEVER
from symphony_dask.engine.latency_profile import LatencyProfile
from symphony_dask.errors import DeploymentError, NoGPUWorker, SymphonyError
from symphony_dask.text import brief, plain
from symphony_dask.trace import Outcome
from symphony_dask.units import NS_PER_S, format_duration
from symphony_dask.wire.connection import Connection
from symphony_dask.wire.rpc_replies import checked

logger = logging.getLogger(__name__)

#: How often loads are looked at, s: where slots have a memory limit, and where there is only what failed to be tried.
_LOOK_S, _CALM_S = 0.02, 0.2

#: How often it is looked whether batches have ended, s.
_ENDED_LOOK_S = 0.005

#: A worker that joins takes batches after so many s, though not all models are loaded yet.
_JOIN_S = 20.0

#: At most so many loads at once in a slot, where one hangs.
_AT_ONCE = 3

#: A worker answers that loading took too long by itself; one that does not is given up after so many s more.
_GRACE_S = 30.0

#: Workers without a GPU resource keep a deployment waiting for so long after the last change among them, s.
_PLAIN_ONLY_S = 10.0

#: How often it is looked which workers there are, while a deployment waits for one, s.
_JOIN_LOOK_S = 0.25


class _NoRoom(Exception):
    """A model turned out larger than the room that was free; once others have gone it may fit."""


class _Raising:
    """The RPC of a worker; what it answers as an error (``rpc_replies``) is raised."""

    def __init__(self, rpc: object) -> None:
        self._rpc = rpc

    def __getattr__(self, operation: str) -> Any:
        async def call(**kwargs: object) -> Any:
            reply = await getattr(self._rpc, operation)(**kwargs)
            return checked(reply) if isinstance(reply, dict) and reply.keys() == {"error"} else reply

        return call


@dataclass
class WorkerPlaces:
    """A connected worker. ``specs``: models whose spec it keeps; ``up``: what could be loaded at its start is."""

    connection: Connection[Worker]
    slots: list[SlotPlace]
    specs: set[int] = field(default_factory=set)
    up: bool = False

    @property
    def address(self) -> str:
        return self.connection.peer.address


class Loader:
    """The models of all workers.

    rpc: gives the RPC of a worker's address. timeout_s: the longest that one load may take. is_drained: tells of a
    worker's address whether it is to take no batches. dask_workers: how many workers there are, and how many of them
    have a GPU resource. patient: a deployment waits for GPUs as long as it may, whatever other workers there are.
    """

    def __init__(
        self,
        dispatcher: Dispatcher,
        rpc: Callable[[str], Any],
        timeout_s: float,
        is_drained: Callable[[str], bool],
        dask_workers: Callable[[], tuple[int, int]],
        *,
        patient: bool = False,
    ) -> None:
        self.workers: dict[str, WorkerPlaces] = {}
        self.loads = self.evictions = 0
        self._dispatcher, self._timeout_s = dispatcher, timeout_s
        self._rpc: Callable[[str], Any] = lambda address: _Raising(rpc(address))
        self._is_drained = is_drained
        self._dask_workers, self._patient = dask_workers, patient
        self._served: dict[int, Deployment] = {}
        self._coming: dict[int, Deployment] = {}
        self._joined = asyncio.Condition()
        self._tasks: set[asyncio.Future[None]] = set()

    def close(self) -> None:
        for task in self._tasks:
            task.cancel()

    # Workers

    async def join(self, connection: Connection[Worker]) -> None:
        """A worker said HELLO on the lane: load what is served, then let it take batches."""
        peer = connection.peer
        slots = [SlotPlace(i, peer.gpu_class, peer.memory) for i in range(peer.slots)]
        worker = self.workers[peer.address] = WorkerPlaces(connection, slots)
        await self._adopt(worker)
        served = sorted(self._served.values(), key=lambda d: not d.pinned)
        every = [(slot, deployment) for slot in slots for deployment in served]
        loads = asyncio.ensure_future(self._load_all(worker, every))
        self._keep(loads)
        await asyncio.wait([loads], timeout=_JOIN_S)
        worker.up = True
        self._admit(worker)
        async with self._joined:
            self._joined.notify_all()

    async def _adopt(self, worker: WorkerPlaces) -> None:
        """Take over what a worker that was here before has loaded already."""
        try:
            rpc = self._rpc(worker.address)
            for slot, held in zip(worker.slots, await rpc.symphony_loaded(), strict=True):
                for model_id, memory in held:
                    if model_id in self._served:
                        slot.loaded[model_id] = Loaded(memory or 0, now_ns(), now_ns())
                        worker.specs.add(model_id)
                    else:
                        await rpc.symphony_unload(model_id=model_id, slot=slot.number)
        except Exception as error:
            logger.info("worker %s does not say what it has loaded: %s", worker.address, error)

    def is_loading(self, address: str) -> bool:
        """Whether a worker on the lane loads models, or has just come."""
        worker = self.workers.get(address)
        return worker is not None and (not worker.up or any(slot.loading for slot in worker.slots))

    def leave(self, address: str) -> None:
        self.workers.pop(address, None)

    def _admit(self, worker: WorkerPlaces) -> None:
        """Let a worker's slots take batches of the models that they have, and of no others."""
        connection = worker.connection
        if not worker.up or connection.closed or self.workers.get(worker.address) is not worker:
            return
        if not connection.peer.gpus:
            connection.peer.draining = self._is_drained(worker.address)
            if connection.peer.draining:
                return
            self._dispatcher.add_slots(connection)
        for slot, gpu in zip(worker.slots, connection.peer.gpus, strict=True):
            for model_id in self._dispatcher.models:
                self._dispatcher.set_eligible(gpu, model_id, model_id in slot.loaded)

    def admit_again(self, address: str) -> None:
        """A worker is drained no more."""
        if address in self.workers:
            self._admit(self.workers[address])

    def set_aside(self, connection: Connection[Worker], number: int, model_id: int, why: str) -> None:
        """A slot goes on without a model, a batch of which hangs there: have it loaded there anew after a while. (-1:
        without none, but as another GPU.)
        """
        worker = self.workers.get(connection.peer.address)
        if worker is None or worker.connection is not connection:
            return
        slot = worker.slots[number]
        if slot.loaded.pop(model_id, None) is not None:
            failure = slot.hang(model_id, f"worker {worker.address}: {why}", now_ns())
            for _, other in self._all_slots():
                other.put_off(model_id, failure.again_ns)
        self._admit(worker)

    def take_back(self, connection: Connection[Worker], number: int, model_id: int) -> None:
        """The batch has ended after all: the model is there, unless it is being loaded anew."""
        worker = self.workers.get(connection.peer.address)
        if worker is None or worker.connection is not connection:
            return
        slot = worker.slots[number]
        if model_id not in self._served or model_id in slot.loaded or model_id in slot.loading:
            return
        slot.failed.pop(model_id, None)
        slot.loaded[model_id] = Loaded(_memory_of(self._served[model_id]), now_ns(), now_ns())
        self._admit(worker)

    # Models

    async def bring_up(self, deployment: Deployment, timeout_s: float) -> None:
        """Load a new model where it has room, at least once, and have it profiled; raises ``SymphonyError``."""
        await self._wait_for_worker(deployment.name, timeout_s)
        self._coming[deployment.model_id] = deployment
        try:
            workers = list(self.workers.values())
            await asyncio.gather(*(self._load_all(w, self._first_places(w, deployment)) for w in workers))
            if not any(deployment.model_id in slot.loaded for worker in workers for slot in worker.slots):
                await self._make_way(workers, deployment)
        finally:
            del self._coming[deployment.model_id]
        slots = [slot for worker in workers for slot in worker.slots]
        if not any(deployment.model_id in slot.loaded for slot in slots):
            failures = [slot.failed[deployment.model_id].error for slot in slots if deployment.model_id in slot.failed]
            nowhere = f"Its {_memory_of(deployment)} bytes fit no slot, whatever may be evicted there"
            reason = next(iter(failures), nowhere)
            raise DeploymentError(f"model {deployment.name!r} came up on no worker. {_with_hint(reason)}")

    async def _wait_for_worker(self, name: str, timeout_s: float) -> None:
        """Until one is up; raises ``NoGPUWorker``.

        Where workers are there, none has a GPU resource, and none came for a while, none is waited for any longer,
        unless requests are to wait for GPUs as well (``symphony.wait-for-gpu``).
        """
        clock = asyncio.get_running_loop().time
        began = since = clock()
        seen = self._dask_workers()
        # One that is not up yet would get no batches of the model when it is served.
        while not any(worker.up for worker in self.workers.values()):
            now, found = clock(), self._dask_workers()
            if found != seen:
                seen, since = found, now
            hopeless = found[0] and not found[1] and not self._patient and now - since >= _PLAIN_ONLY_S
            if hopeless or now - began >= timeout_s:
                waited = min(timeout_s, round(now - began, 1))
                text = f"no worker with a GPU resource joined within {waited:g} s{_lack(*found)}, so model {name!r}"
                raise NoGPUWorker(
                    f'{text} has nowhere to run: start one with dask worker SCHEDULER --resources "GPU=1"'
                )
            with suppress(TimeoutError):
                async with asyncio.timeout(min(_JOIN_LOOK_S, max(timeout_s - (now - began), 0.001))), self._joined:
                    await self._joined.wait()

    def _first_places(self, worker: WorkerPlaces, deployment: Deployment) -> list[tuple[SlotPlace, Deployment]]:
        return [(slot, deployment) for slot in worker.slots if _fits(slot, deployment)]

    async def _make_way(self, workers: Iterable[WorkerPlaces], deployment: Deployment) -> None:
        """Load a new model where it has to make room, but not that of a version that it is to take over from; into the
        first slot where that succeeds.
        """
        for worker in workers:
            for slot in worker.slots:
                if deployment.model_id in slot.failed or slot.limit is None:
                    continue
                demand, demands = _demand_of(deployment, wants=1), self._demands(now_ns())
                for m, served in self._served.items():
                    if served.name == deployment.name:
                        demands[m] = replace(demands[m], pinned=True)
                evict = make_room(now_ns(), slot, demand, demands, self._have(), at_once=True)
                if evict is not None:
                    await self._load(worker, slot, deployment, evict)
                if deployment.model_id in slot.loaded:
                    return

    def serve(self, deployment: Deployment) -> None:
        """A model is with the dispatcher now: let the slots that have it take its batches."""
        self._served[deployment.model_id] = deployment
        for worker in self.workers.values():
            self._admit(worker)

    async def forget(self, deployment: Deployment) -> None:
        """Unload a model that the dispatcher no longer has."""
        model_id = deployment.model_id
        self._served.pop(model_id, None)
        for worker in list(self.workers.values()):
            for slot in worker.slots:
                slot.loaded.pop(model_id, None)
                slot.failed.pop(model_id, None)
            worker.specs.discard(model_id)
            try:
                await self._rpc(worker.address).symphony_unload(model_id=model_id)
            except OSError as error:  # the worker is leaving
                logger.info("worker %s did not unload %r: %s", worker.address, deployment.name, error)

    # Loading

    async def _load_all(self, worker: WorkerPlaces, slot_of: list[tuple[SlotPlace, Deployment]]) -> None:
        """Load models into slots, those of a slot one after the other; does not raise."""

        async def one_slot(slot: SlotPlace) -> None:
            for deployment in [d for s, d in slot_of if s is slot]:
                if slot.may_try(deployment.model_id, now_ns()) and _fits(slot, deployment):
                    await self._load(worker, slot, deployment, [])

        await asyncio.gather(*(one_slot(slot) for slot in worker.slots))

    async def _load(self, worker: WorkerPlaces, slot: SlotPlace, deployment: Deployment, evict: list[int]) -> None:
        """Load a model into a slot after others have gone; does not raise, but puts down why it failed."""
        model_id = deployment.model_id
        slot.loading[model_id] = _memory_of(deployment)
        began_ns, known = now_ns(), bool(deployment.profiles)
        try:
            for other in evict:
                await self._evict(worker, slot, other)
            async with asyncio.timeout(self._timeout_s + _GRACE_S):
                loaded = await self._ask_to_load(worker, slot, deployment)
            if model_id not in self._served | self._coming:  # it was undeployed meanwhile
                await self._rpc(worker.address).symphony_unload(model_id=model_id)
                return
            slot.loaded[model_id] = loaded
            slot.failed.pop(model_id, None)
            if known:  # else it was profiled too
                deployment.load_ns = now_ns() - began_ns
            deployment.missed = False
            if evict:
                slot.rests_ns = now_ns() + round(REST * deployment.load_ns)
            self.loads += 1
        except _NoRoom as error:
            logger.info("model %r did not fit on %s: %s", deployment.name, worker.address, error)
        except Exception as error:
            worker.specs.discard(model_id)  # it may be what is missing there
            if model_id in self._served | self._coming:
                why = (plain(error) if isinstance(error, SymphonyError) else "") or brief(error)
                failure = slot.fail(model_id, f"worker {worker.address}: {why}", now_ns())
                wait = format_duration(failure.again_ns - now_ns())
                text = "model %r failed to load on %s (attempt %d, the next one in %s): %s"
                logger.warning(text, deployment.name, worker.address, failure.attempts, wait, why)
        finally:
            slot.loading.pop(model_id, None)
        self._admit(worker)

    async def _ask_to_load(self, worker: WorkerPlaces, slot: SlotPlace, deployment: Deployment) -> Loaded:
        model_id, rpc = deployment.model_id, self._rpc(worker.address)
        spec = None if model_id in worker.specs else deployment.spec
        reply = await rpc.symphony_load(
            model_id=model_id, slot=slot.number, spec=spec, example=deployment.example, timeout_s=self._timeout_s
        )
        worker.specs.add(model_id)
        deployment.load_ns = int(reply["load_ns"])
        if deployment.memory is None:
            deployment.memory = reply["memory"]
            slot.loading[model_id] = _memory_of(deployment)
        try:
            if slot.limit is not None:
                self._check_memory(slot, deployment)
            async with deployment.profiling:  # workers of one class need it measured once
                if deployment.answer is None and deployment.example is not None:
                    deployment.answer = await rpc.symphony_answer(
                        model_id=model_id, slot=slot.number, example=deployment.example
                    )
                if slot.gpu_class not in deployment.profiles:
                    await self._profile(rpc, slot, deployment)
        except BaseException:
            await rpc.symphony_unload(model_id=model_id, slot=slot.number)
            raise
        now = now_ns()
        return Loaded(deployment.memory or 0, now, now)

    def _check_memory(self, slot: SlotPlace, deployment: Deployment) -> None:
        """Raise ``DeploymentError`` if a model, now that it is loaded, does not fit."""
        if deployment.memory is None:
            text = "it does not say how much memory it needs, and this worker's slots have a limit"
            raise DeploymentError(f'{text}: pass deploy(..., memory="2GiB")')
        if slot.limit is not None and deployment.memory > slot.limit:
            text = f"it needs {deployment.memory} bytes, and {slot.limit} are for models there"
            raise DeploymentError(f"{text}: raise symphony.gpu.memory of the worker, or serve a smaller model")
        if slot.free() < 0:
            raise _NoRoom(f"it needs {deployment.memory} bytes, {-slot.free()} more than were free")

    async def _profile(self, rpc: Any, slot: SlotPlace, deployment: Deployment) -> None:
        profile = deployment.given
        if profile is None:
            measured = await rpc.symphony_profile(
                model_id=deployment.model_id,
                slot=slot.number,
                example=deployment.example,
                max_batch=deployment.max_batch,
                slo_ns=deployment.slo_ns,
            )
            profile = LatencyProfile.from_dict(measured)
        deployment.profiles[slot.gpu_class] = profile
        served = self._dispatcher.models.get(deployment.model_id)
        if served is not None:
            self._dispatcher.add_profile(served, slot.gpu_class, profile)

    async def _evict(self, worker: WorkerPlaces, slot: SlotPlace, model_id: int) -> None:
        """Take a model out of a slot once its batches there have run."""
        loaded = slot.loaded.pop(model_id, None)
        if loaded is None:
            return
        slot.leaving[model_id] = loaded.memory
        try:
            self._admit(worker)
            gpus = worker.connection.peer.gpus
            await until(lambda: not gpus or not self._dispatcher.holds(gpus[slot.number], model_id))
            await self._rpc(worker.address).symphony_unload(model_id=model_id, slot=slot.number)
            self.evictions += 1
        finally:
            del slot.leaving[model_id]

    # Looking after what is loaded

    async def follow(self) -> None:
        """Load what is asked for, and what failed before, from now on."""
        while True:
            limited = any(slot.limit is not None for _, slot in self._all_slots())
            await asyncio.sleep(_LOOK_S if limited else _CALM_S)
            try:
                self._look(now_ns(), limited)
            except Exception:
                logger.exception("models could not be placed")

    def _look(self, now: int, limited: bool) -> None:
        for worker, slot in self._all_slots():
            if slot.limit is None and len(slot.loading) < _AT_ONCE:
                missing = [d for d in self._served.values() if self._may_try(slot, d, now)]
                if missing:
                    self._start(worker, slot, missing[0], [])
        if not limited:
            return
        places = [(worker, slot) for worker, slot in self._all_slots() if slot.limit is not None]
        owner = {id(slot): worker for worker, slot in places}
        for worker, slot in places:
            for gpu in worker.connection.peer.gpus[slot.number : slot.number + 1]:
                for m, loaded in slot.loaded.items():
                    model = self._dispatcher.models.get(m)
                    loaded.used_ns = max(loaded.used_ns, model.used_ns.get(gpu, 0) if model is not None else 0)
        for move in plan(now, [slot for _, slot in places], self._demands(now)):
            self._start(owner[id(move.slot)], move.slot, self._served[move.model_id], move.evict)

    def _may_try(self, slot: SlotPlace, deployment: Deployment, now: int) -> bool:
        """Whether to load a model into a slot now; one that hung is on trial in one slot at a time."""
        model_id, trial_ns = deployment.model_id, deployment.slo_ns + TRIAL_NS
        if not slot.may_try(model_id, now):
            return False
        others = (other for _, other in self._all_slots() if other is not slot)
        return model_id not in slot.hung or not any(other.is_on_trial(model_id, trial_ns, now) for other in others)

    def _start(self, worker: WorkerPlaces, slot: SlotPlace, deployment: Deployment, evict: list[int]) -> None:
        slot.loading[deployment.model_id] = _memory_of(deployment)  # at once, so that the next look sees it
        self._keep(asyncio.ensure_future(self._load(worker, slot, deployment, evict)))

    def _keep(self, task: asyncio.Future[None]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _all_slots(self) -> Iterator[tuple[WorkerPlaces, SlotPlace]]:
        """Slots that models are loaded into while they serve."""
        for worker in self.workers.values():
            if worker.up and not worker.connection.peer.draining and not worker.connection.closed:
                yield from ((worker, slot) for slot in worker.slots)

    def _have(self) -> Counter[int]:
        slots = [slot for worker in self.workers.values() for slot in worker.slots]
        return Counter(m for slot in slots for m in (*slot.loaded, *slot.loading))

    def _demands(self, now: int) -> dict[int, Demand]:
        """What each model wants now (rule 3 of ``placement``)."""
        have = self._have()
        demands = {m: _demand_of(d, wants=1, pinned=True) for m, d in self._coming.items()}
        for model_id, deployment in self._served.items():
            model = self._dispatcher.models[model_id]
            queued = self._dispatcher.engine.queued(model.index)
            seen = model.batched + sum(int(model.counts[o]) for o in (Outcome.DROPPED, Outcome.REJECTED))
            if queued or seen != deployment.seen:
                deployment.asked_ns = now
            deployment.seen = seen
            wants = 0
            if now - deployment.asked_ns < max(KEEP * deployment.load_ns, LINGER_NS):
                wants = max(1, math.ceil(self._dispatcher.engine.work(model.index) / FILL))
            dropped = int(model.counts[Outcome.DROPPED])
            deployment.missed = not have[model_id] and (deployment.missed or dropped > deployment.dropped)
            deployment.dropped = dropped
            if have[model_id] or deployment.pinned or deployment.missed:
                due, deployment.waiting_ns = 0, 0
            else:
                due = self._due(deployment, now)
            demands[model_id] = _demand_of(deployment, max(wants, int(deployment.pinned)), deployment.pinned, due)
        return demands

    def _due(self, deployment: Deployment, now: int) -> int:
        """When a load has to begin for the first request that waits for it; never, if none does."""
        begin = self._dispatcher.first_end_ns(deployment.model_id)
        if begin is None:
            deployment.waiting_ns = 0
            return int(NEVER)
        deployment.waiting_ns = deployment.waiting_ns or now
        at_latest = begin - round(ALLOW * deployment.load_ns) - ALLOW_NS
        return min(at_latest, deployment.waiting_ns + KEEP * deployment.load_ns)

    # Observation

    def health(self, worker: WorkerPlaces) -> list[dict[str, Any]]:
        """Each slot's state, what it has loaded, and what failed, why, and when it is tried again.

        States are "ready"; "loading" a model; "failed" to load one; "stalled" behind a batch that does not come back;
        "draining"; and "lost", as the worker's connection is.
        """
        names = self._served | self._coming
        now = now_ns()
        gpus, answering = worker.connection.peer.gpus, self._dispatcher.answering(worker.connection)

        def label(m: int) -> str:
            return names[m].label if m in names else str(m)

        found = []
        for slot in worker.slots:
            failed = {
                label(m): {
                    "error": f.error,
                    "attempts": f.attempts,
                    "retry_in_s": max(0.0, (f.again_ns - now) / NS_PER_S),
                }
                for m, f in slot.failed.items()
            }
            state = "loading" if slot.loading or not worker.up else "failed" if failed else "ready"
            if worker.connection.closed:
                state = "lost"
            elif gpus and slot.number not in answering:
                state = "draining" if worker.connection.peer.draining else "stalled"
            found.append(
                {
                    "state": state,
                    "models": [label(m) for m in slot.loaded],
                    "loading": [label(m) for m in slot.loading],
                    "failed": failed,
                    "memory_bytes": sum(loaded.memory for loaded in slot.loaded.values()),
                    "limit_bytes": slot.limit,
                }
            )
        return found

    def where(self, model_id: int) -> int:
        """How many slots that answer have a model loaded."""
        answering = ((w.slots[i] for i in self._dispatcher.answering(w.connection)) for w in self.workers.values())
        return sum(model_id in slot.loaded for slots in answering for slot in slots)


def _lack(workers: int, with_gpu: int) -> str:
    """What keeps workers that are there from serving."""
    if not workers:
        return ""
    there = f": {workers} worker{'s' * (workers > 1)}"
    if not with_gpu:
        return f"{there}, none has a GPU resource"
    return f"{there}, {with_gpu} with a GPU resource, which did not get ready (see their logs)"


def _with_hint(reason: str) -> str:
    """What a module is missing for, and how workers get it, in the first line of why a model did not load."""
    missing = re.search(r"No module named ['\"]([\w.]+)['\"]", reason)
    if missing is None:
        return reason
    module = missing[1].partition(".")[0]
    first, newline, rest = reason.partition("\n")
    hint = f"send it with client.upload_file({module + '.py'!r}), or install it on the workers"
    return f"{first}: workers lack the module {module!r}, {hint}{newline}{rest}"


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what batches bring about. An event would cost each of them, this only whoever waits."""
    while not condition():  # noqa: ASYNC110
        await asyncio.sleep(_ENDED_LOOK_S)


def _memory_of(deployment: Deployment) -> int:
    """Bytes to reserve: as known, else those of the pickled model, which are about its weights'."""
    return deployment.memory if deployment.memory is not None else len(deployment.spec)


def _fits(slot: SlotPlace, deployment: Deployment) -> bool:
    return slot.free() >= _memory_of(deployment)


def _demand_of(deployment: Deployment, wants: int, pinned: bool = False, due_ns: int = 0) -> Demand:
    memory = _memory_of(deployment)
    return Demand(deployment.model_id, memory, deployment.load_ns, wants, pinned, due_ns)
