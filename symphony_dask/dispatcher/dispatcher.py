"""Hosts the hot path: a lane server, the engine under the wall clock, and the recorder. Knows asyncio, not Dask.

A frame of requests goes into the engine as columns; at the end of the tick the engine is advanced and each batch it
decides leaves for its worker. A request's data lives in arrays indexed by its slot, so that a batch is handled with a
few array operations, whatever its size.

Clocks of different hosts are never compared. A worker says how long it held a batch; the rest of the time between
dispatch and reply is network, taken half and half. A client says how long its requests waited for the write; pings
measure its connection, and those behind answers how long it takes until it has these in hand.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import ssl
from collections.abc import Callable, Iterable
from typing import Any, Protocol, cast

import numpy as np
import numpy.typing as npt

from symphony_dask.clock import now_ns
from symphony_dask.dispatcher.cold_start_queue import Waiting
from symphony_dask.dispatcher.delay import Latency
from symphony_dask.dispatcher.drop_reasons import why_dropped
from symphony_dask.dispatcher.liveness import (
    ANSWERS_NS,
    LOOK_S,
    SILENT_NS,
    STILL_NS,
    due_back_ns,
    is_hung,
    is_late,
    is_overdue,
    is_stalled,
)
from symphony_dask.dispatcher.load_signals import GpuFacts, ModelFacts, Sampler
from symphony_dask.dispatcher.recent_activity import Facts, ModelCounts, RecentActivity, Spent, Tally, spent_by
from symphony_dask.dispatcher.request_table import RequestTable, Rows, Settled
from symphony_dask.dispatcher.routing import Canary, split
from symphony_dask.dispatcher.run_log import Flight, RunLog, ServedModel
from symphony_dask.dispatcher.sessions import (
    FIRST_ROUND_TRIP_NS,
    FOLLOW_NS,
    Client,
    ClientEnd,
    Session,
    Worker,
    worker_of,
)
from symphony_dask.dispatcher.timer import Timer
from symphony_dask.dispatcher.tracing import Tracing
from symphony_dask.engine.batching import AS_ALL, Batching
from symphony_dask.engine.engine import NEVER, Engine
from symphony_dask.engine.journal import dump
from symphony_dask.engine.latency_profile import LatencyProfile
from symphony_dask.engine.queue_limits import DEFAULT_QUEUE_LIMIT
from symphony_dask.engine.request_kernels import MIXED
from symphony_dask.errors import BadInput
from symphony_dask.text import bounded, brief, plain
from symphony_dask.timeouts import ConnectionTimeouts
from symphony_dask.trace import BatchOutcome, Outcome
from symphony_dask.units import NS_PER_S, format_duration
from symphony_dask.wire.connection import Connection
from symphony_dask.wire.directions import CLIENT_TO_SCHEDULER, WORKER_TO_SCHEDULER
from symphony_dask.wire.error_codes import ErrorCode, Failure
from symphony_dask.wire.handshake import accept
from symphony_dask.wire.hello import LinkHello, Welcome, WorkerHello
from symphony_dask.wire.listener import Listener
from symphony_dask.wire.messages import (
    OVERDUE_NS,
    PART_BYTES,
    Answer,
    Aside,
    Cancel,
    Data,
    Done,
    Execute,
    Gone,
    IsAside,
    Ping,
    Place,
    Pong,
    Result,
    Resume,
    Submit,
    in_parts,
)
from symphony_dask.wire.records import NO_COLUMN, RESULT_ROW, Records, make_records

logger = logging.getLogger(__name__)

#: A request whose worker was lost is queued again at most so many times.
MAX_RETRIES = 2

#: How often clients' connections are measured and estimates handed to the engine, s.
MEASURE_S = 0.2

#: How often counts are sampled for ``load_signals``, s; the measuring above is what calls it.
SAMPLE_S = 1.0

#: How late the timer is taken to ring until it has rung, ns.
FIRST_TIMER_LATENESS_NS = 250_000

#: Windows open at least so much early, ns: one that is no wider than the timer is exact would be missed.
MIN_SLACK_NS = 200_000

#: And by this share of the SLO: a batch planned to end at the deadline is late at the least stall of a machine.
SLACK_SHARE = 0.05

#: A worker waits for payloads until the last deadline of the batch, but no less and no more than this, ns. The least
#: leaves time to find out that a worker cannot be reached, and to take the way through the scheduler; but requests are
#: to end before they count as overdue.
MIN_WAIT_NS, MAX_WAIT_NS = 9 * OVERDUE_NS // 10, 5 * NS_PER_S


class LocalClient(ClientEnd, Protocol):
    """A client in this process, whose requests carry no payload: that gets to the worker on a way of its own."""

    def dispatched(self, address: str, requests: list[int]) -> list[str]:
        """Requests have left for a worker in one batch: the names under which it waits for them; does not raise."""


class Dispatcher:
    """Serves models over the lane; one per scheduler process.

    inline_bytes: payloads and answers of more bytes go past the scheduler where they can.
    wait_ns: for how long requests wait for a first GPU while there is none; their SLO counts from then. 0: not at all.
    timeouts: with connections that say nothing, or drip.
    on_worker: called with the connection of each worker that says HELLO; its slots get batches from ``add_slots`` on.
    on_aside: called with a worker's connection, a slot, a model and why, when the slot goes on without a batch of that
        model that hangs (-1: the slot goes on as another GPU, and no batch was lost); on_back: with the first three,
        when such a batch has ended after all.
    Times inside are ns on ``clock.now_ns``; recorded ones count from the start of the recording.
    """

    def __init__(
        self,
        *,
        policy: str = "adaptive",
        max_requests: int = 65_536,
        inline_bytes: int = 8_192,
        wait_ns: int = 0,
        timeouts: ConnectionTimeouts | None = None,
        on_worker: Callable[[Connection[Worker]], None] = lambda connection: None,
        on_aside: Callable[[Connection[Worker], int, int, str], None] = lambda *aside: None,
        on_back: Callable[[Connection[Worker], int, int], None] = lambda *back: None,
    ) -> None:
        self.engine = Engine(policy, max_requests=max_requests)
        self.token = secrets.token_hex(16)
        self.models: dict[int, ServedModel] = {}
        #: The number on the wire that stands for whichever version of a name is served.
        self.numbers: dict[str, int] = {}
        self.workers: dict[str, Connection[Worker]] = {}
        self.log: RunLog | None = None
        self.tracing: Tracing | None = None
        self._inline_bytes = inline_bytes
        self._on_worker = on_worker
        self._on_aside, self._on_back = on_aside, on_back
        #: Hung batches whose slots went on without them: the worker's connection, slot and model.
        self._aside: dict[int, tuple[Connection[Worker], int, int]] = {}
        #: When it was last looked for overdue batches, and when this process last was found to have stood still.
        self._looked_ns = self._still_ns = 0
        self._clients: dict[int, ClientEnd] = {}
        self._next_client = 0
        self._local: LocalClient | None = None
        self._local_index = -2
        self._next_model = 0
        self._by_index: dict[int, ServedModel] = {}
        self._canaries: dict[int, Canary] = {}
        # Number on the wire, a name's or a model's own, to the engine's index (-1: none) and SLO. None is used twice.
        self._index_of = np.full(64, -1, np.int32)
        self._slo_of = np.zeros(64, np.int64)
        self._gpu_classes: dict[str, int] = {}
        self._gpu_worker: dict[int, tuple[Connection[Worker], int]] = {}
        #: Whether there is a GPU that takes what comes: one that does not drain.
        self._serves = False
        #: For how long each GPU has run batches.
        self._busy_ns: dict[int, int] = {}
        self._sampler = Sampler()
        #: The last batches and seconds.
        self.activity = RecentActivity()
        self._flights: dict[int, Flight] = {}
        #: When somebody last asked for anything: a request, a change of what is deployed. 0 if nobody has.
        self.asked_ns = 0
        self._requests = RequestTable(max_requests)
        self._waiting = Waiting(wait_ns, max_requests)
        #: What answers are taken to need back, and how much of it is for estimates that stray.
        self._reply_ns, self._reply_care_ns = FIRST_ROUND_TRIP_NS // 2, 0
        self._listener: Listener[Session] = Listener(self._frame, self._lost, timeouts=timeouts)
        #: Whether requests were dropped lately that only the delays to and from workers leave no time for.
        self._refused_for_delays = False
        self._timer_lateness = Latency(FIRST_TIMER_LATENESS_NS)
        self._set_slack(FIRST_ROUND_TRIP_NS // 2)
        self._tick_due = False
        self._tasks: list[asyncio.Task[None]] = []
        self._bytes_in = self._bytes_out = 0  # of connections that are gone

    async def start(self, host: str | None, port: int = 0, ssl_context: ssl.SSLContext | None = None) -> None:
        """Listen on ``host`` (None: all interfaces) and ``port`` (0: any)."""
        self._loop = asyncio.get_running_loop()
        await self._listener.listen(host, port, ssl_context)
        self._timer = Timer(self._loop, self._on_timer)
        self._sample()
        self._tasks = [self._loop.create_task(task) for task in (self._measure(), self._follow_overdue())]

    @property
    def port(self) -> int:
        return self._listener.port

    async def stop(self) -> None:
        """Close the server, all connections and the recording."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            self._timer.close()
        self._listener.close()
        self._listener.hang_up()
        await self.stop_recording()

    # Models

    def add_model(
        self,
        model_id: int,
        name: str,
        slo_ns: int,
        profiles: dict[str, LatencyProfile],
        *,
        queue_limit: int = DEFAULT_QUEUE_LIMIT,
        version: str = "1",
        batching: Batching = AS_ALL,
    ) -> ServedModel:
        """Serve a model under an id from ``new_model_id``; requests to a name's number follow ``route``.

        profiles: by GPU class. Slots of other classes must not get it (``set_eligible``).
        """
        max_batch = min(p.max_batch for p in profiles.values())
        tables = {self._gpu_class(c): p.latency_ns()[: max_batch + 2] for c, p in profiles.items()}
        anywhere = next(iter(tables.values()))
        tables |= {int(c): anywhere for c in np.flatnonzero(self.engine.state.present) if c not in tables}
        index = self.engine.add_model(
            now_ns(), slo_ns=slo_ns, latency_ns=tables, queue_limit=queue_limit, batching=batching
        )
        model = ServedModel(name, model_id, index, slo_ns, dict(profiles), version)
        self.models[model_id] = model
        self._by_index[index] = model
        self._index_of[model_id] = index
        self._slo_of[model_id] = slo_ns
        if self.log is not None:
            self.log.model(model)
        self._journal_wire(model_id)
        return model

    def route(self, name: str, model_id: int, canary: Canary | None = None) -> None:
        """Have the number of a name (``numbers``) stand for a served model from the next request on.

        Requests that are queued stay with the model that they were for.
        """
        number, model = self.numbers[name], self.models[model_id]
        self._index_of[number] = model.index
        self._slo_of[number] = model.slo_ns
        self._journal_wire(number)
        self._canaries.pop(number, None)
        if canary is not None:
            self._canaries[number] = canary

    def close_to_new(self, model_id: int) -> None:
        """Refuse what is addressed to a model's own id from now on, as ``UnknownModel``."""
        self._index_of[model_id] = -1
        self._journal_wire(model_id)

    def is_idle(self, model_id: int) -> bool:
        """Whether a model has no requests, neither queued nor in flight."""
        model = self.models[model_id]
        flying = any(f.model is model for f in self._flights.values())
        return not flying and self.engine.queued(model.index) == 0

    def first_end_ns(self, model_id: int) -> int | None:
        """By when a GPU has to begin with the first of a model's queued requests, run alone; None without any."""
        index = self.models[model_id].index
        state = self.engine.state
        if not self.engine.queued(index):
            return None
        mod = state.mod[index]
        return int(mod["first_at"] - state.lat[index, mod["gpu_class"], 1] - state.g["control"][0])

    def forget_name(self, name: str) -> None:
        """Refuse what is addressed to a name from now on, as ``UnknownModel``."""
        number = self.numbers.pop(name)
        self._index_of[number] = -1
        self._canaries.pop(number, None)
        self._journal_wire(number)

    def new_model_id(self) -> int:
        if self._next_model == len(self._index_of):
            self._index_of = np.concatenate([self._index_of, np.full_like(self._index_of, -1)])
            self._slo_of = np.concatenate([self._slo_of, np.zeros_like(self._slo_of)])
        self._next_model += 1
        return self._next_model - 1

    @property
    def next_model_id(self) -> int:
        """What ``new_model_id`` will give next."""
        return self._next_model

    def reserve_ids(self, first: int) -> None:
        """Let ``new_model_id`` begin at ``first`` if it has not passed it: lower ones were in use before a restart."""
        while self._next_model < first:
            self.new_model_id()

    def add_profile(self, model: ServedModel, gpu_class: str, profile: LatencyProfile) -> None:
        """Give a served model its l(b) on a further GPU class."""
        model.profiles[gpu_class] = profile
        self._set_profile(model, self._gpu_class(gpu_class), profile)

    def _set_profile(self, model: ServedModel, gpu_class: int, profile: LatencyProfile) -> None:
        max_batch = int(self.engine.state.mod["max_batch"][model.index])
        table = LatencyProfile(profile.alpha_ms, profile.beta_ms, max_batch, profile.table).latency_ns()
        self.engine.update_profile(now_ns(), model.index, gpu_class, table)

    def remove_model(self, model_id: int) -> None:
        """Stop serving a model: queued requests end as cancelled, batches in flight are still answered."""
        model = self.models.pop(model_id)
        self._index_of[model_id] = -1
        self._journal_wire(model_id)
        ended = self.engine.remove_model(now_ns(), model.index)
        self._end(ended, model, Outcome.CANCELLED, ErrorCode.UNDEPLOYED, f"model {model.name!r} was undeployed")

    def _gpu_class(self, name: str) -> int:
        return self._gpu_classes.setdefault(name, len(self._gpu_classes))

    # Workers

    def set_eligible(self, gpu: int, model_id: int, eligible: bool) -> None:
        """Let a GPU take batches of a served model, or no more: those that are there still run."""
        index = self.models[model_id].index
        if self.engine.can_run(index, gpu) != eligible:
            self.engine.set_eligible(now_ns(), index, gpu, eligible)
            self._due()

    def holds(self, gpu: int, model_id: int) -> bool:
        """Whether batches of a model are at a GPU."""
        return any(f.gpu == gpu and f.model.model_id == model_id for f in self._flights.values())

    def add_slots(self, connection: Connection[Worker]) -> None:
        """Let the slots of a worker take batches, of every model until ``set_eligible`` says otherwise."""
        worker = connection.peer
        now = now_ns()
        gpu_class = self._gpu_class(worker.gpu_class)
        for model in self.models.values():
            if worker.gpu_class not in model.profiles:  # what it cannot have loaded, as that would have been profiled
                self._set_profile(model, gpu_class, next(iter(model.profiles.values())))
        for slot in range(worker.slots):
            worker.gpus.append(self._add_gpu(now, connection, slot, gpu_class))
        self._update_serves()
        self._follow_latency()
        self._due()
        self._resubmit()

    def _add_gpu(self, now: int, connection: Connection[Worker], slot: int, gpu_class: int) -> int:
        worker = connection.peer
        gpu = self.engine.add_gpu(now, gpu_class=gpu_class, control_ns=int(worker.control.mean_ns))
        self._gpu_worker[gpu] = (connection, slot)
        self._busy_ns[gpu] = 0
        self._log_gpu("ready", gpu, worker)
        return gpu

    def drain_workers(self, addresses: Iterable[str]) -> None:
        """Give workers no more batches.

        Where no other is left they are *closing*: they take nothing new, but all that is queued already, and drain
        when that has ended. So no request that was accepted is lost for want of a GPU.
        """
        connections = [self.workers[a] for a in addresses if a in self.workers]
        fresh = [c for c in connections if not c.peer.draining]
        for connection in fresh:
            connection.peer.draining = True
        self._update_serves()
        for connection in fresh:
            if connection.peer.gpus and not self._serves and self._n_queued():
                connection.peer.closing = True
            else:
                self._drain(connection)

    def _drain(self, connection: Connection[Worker]) -> None:
        connection.peer.closing = False
        for gpu in connection.peer.gpus:
            self.engine.drain_gpu(now_ns(), gpu)
            self._log_gpu("drain", gpu, connection.peer)
        self._due()

    def _close_up(self) -> None:
        """Drain those that are closing once nothing is queued any more, or others serve again."""
        closing = [c for c in self.workers.values() if c.peer.closing]
        if closing and (self._serves or not self._n_queued()):
            for connection in closing:
                self._drain(connection)

    def undrain_worker(self, address: str) -> bool:
        """A draining worker drains no more; it may have lost its slots: see whether to ``add_slots``.

        False, with nothing done, while it still has batches of before.
        """
        connection = self.workers.get(address)
        if connection is None or not connection.peer.draining:
            return False
        if not connection.peer.closing:
            if self.in_flight(address):
                return False
            self.remove_slots(connection)
        connection.peer.draining = connection.peer.closing = False
        self._update_serves()
        if self._serves:
            self._resubmit()
        return True

    def is_draining(self, address: str) -> bool:
        return address in self.workers and self.workers[address].peer.draining

    def is_closing(self, address: str) -> bool:
        """Whether a draining worker still takes batches of what is queued."""
        return address in self.workers and self.workers[address].peer.closing

    def _update_serves(self) -> None:
        self._serves = any(c.peer.gpus and not c.peer.draining for c in self.workers.values())

    def _n_queued(self) -> int:
        return sum(self.engine.queued(m.index) for m in self.models.values())

    def is_busy(self) -> bool:
        """Whether somebody waits for an answer, or for a GPU."""
        return bool(self._flights) or self._waiting.counts.total() > 0 or self._n_queued() > 0

    def used_ns(self, address: str) -> int:
        """When a worker last got a batch, 0 if it never did."""
        connection = self.workers.get(address)
        gpus = connection.peer.gpus if connection is not None else []
        return max((m.used_ns.get(gpu, 0) for m in self.models.values() for gpu in gpus), default=0)

    def in_flight(self, address: str) -> int:
        """Batches at a worker."""
        connection = self.workers.get(address)
        return sum(self.engine.in_flight(g) for g in connection.peer.gpus) if connection is not None else 0

    def answering(self, connection: Connection[Worker]) -> list[int]:
        """The slots of a worker that take batches, and return what they have taken."""
        worker = connection.peer
        if connection.closed or (worker.draining and not worker.closing):
            return []
        now = now_ns()
        flights = [f for f in self._flights.values() if f.gpu in worker.gpus]
        stalled = {f.gpu for f in flights if is_stalled(f, now, MAX_WAIT_NS if f.held else 0)}
        return [slot for slot, gpu in enumerate(worker.gpus) if gpu not in stalled]

    def drop_worker(self, address: str) -> None:
        """Forget a worker at once; its requests return to their queues."""
        connection = self.workers.pop(address, None)
        if connection is None:
            return
        self.remove_slots(connection)
        connection.close()

    def remove_slots(self, connection: Connection[Worker]) -> None:
        """Take a worker's slots away; what was in flight there returns to its queue, or ends after too many tries."""
        worker = connection.peer
        now = now_ns()
        for gpu in worker.gpus:
            requeued = self._remove_gpu(now, worker, gpu)
            retries = self._requests.retries
            retries[requeued] += 1
            for slot in requeued[retries[requeued] > MAX_RETRIES].tolist():
                self.engine.cancel(now, slot)
                text = f"{MAX_RETRIES + 1} workers were lost with the request in flight, the last at {worker.address}"
                self._end_one(slot, Outcome.FAILED, ErrorCode.WORKER_LOST, text)
        worker.gpus.clear()
        self._aside = {batch: aside for batch, aside in self._aside.items() if aside[0] is not connection}
        self._update_serves()
        self._follow_latency()
        self._due()

    def _remove_gpu(self, now: int, worker: Worker, gpu: int) -> npt.NDArray[np.int32]:
        """Take one GPU away; returns the requests that were in flight there and are queued again."""
        for flight in [f for f in self._flights.values() if f.gpu == gpu]:
            del self._flights[flight.batch]
            if self.log is not None:
                self.log.batch(flight, BatchOutcome.LOST)
            # The engine returns only those that somebody still waits for.
            self._end(self._cancelled(flight), flight.model, Outcome.CANCELLED, ErrorCode.CANCELLED, "")
        removal = self.engine.remove_gpu(now, gpu)
        del self._gpu_worker[gpu], self._busy_ns[gpu]
        self._log_gpu("leave", gpu, worker)
        for slot in removal.ended.tolist():
            self._end_one(slot, Outcome.CANCELLED, ErrorCode.UNDEPLOYED, "the model was undeployed")
        return removal.requeued

    def _cancelled(self, flight: Flight) -> npt.NDArray[np.int32]:
        """Those of a batch's requests that were cancelled in flight; they are counted when it ends."""
        gone = self._requests.client[flight.slots] < 0
        return flight.slots[gone if flight.ended is None else gone & ~flight.ended]

    # Batches that do not come back

    async def _follow_overdue(self) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            try:
                self._look_for_overdue(now_ns())
            except Exception:
                logger.exception("overdue batches could not be looked after")

    def _look_for_overdue(self, now: int) -> None:
        """Wait no longer for what is overdue, by the rules of ``liveness``."""
        late = now - self._looked_ns > STILL_NS
        self._looked_ns = now
        if late:
            self._still_ns = now
        for flight in [f for f in self._flights.values() if is_late(f, now)]:
            if flight.batch not in self._flights:  # it went with one before it
                continue
            connection, _ = self._gpu_worker[flight.gpu]
            worker = connection.peer
            if not worker.pinged_ns:
                worker.pinged_ns = now
                connection.send(Ping(now))
            # An answer to the ping may be behind gigabytes: what comes, or is taken, is a sign of life as well.
            moved = connection.bytes_in, connection.taken
            if moved != worker.moved:
                worker.moved, worker.moved_ns = moved, now
            if late or not is_overdue(flight, now):
                continue
            silent_ns = now - max(worker.pinged_ns, worker.moved_ns)
            if silent_ns > SILENT_NS:
                logger.warning("worker %s is given up: silent for %.1f s", worker.address, silent_ns / NS_PER_S)
                self.drop_worker(worker.address)
                continue
            self._end_overdue(now, flight, worker)
            first = min(f.batch for f in self._flights.values() if f.gpu == flight.gpu)
            if (
                now - worker.pinged_ns < ANSWERS_NS
                and flight.batch == first
                and not flight.aside
                and is_hung(flight, now)
            ):
                flight.aside = True
                connection.send(Aside(self._gpu_worker[flight.gpu][1], flight.batch, flight.model.model_id))

    def _end_overdue(self, now: int, flight: Flight, worker: Worker) -> None:
        """End those of a batch's requests whose deadline is long over; the batch goes on."""
        slots = flight.slots
        over = self._requests.deadline[slots] + OVERDUE_NS < now
        mine = over & (self._requests.client[slots] >= 0)
        if not mine.any():
            return
        for slot in slots[mine].tolist():
            self.engine.cancel(now, slot)  # it is in flight, so it is only marked
        flight.ended = mine if flight.ended is None else flight.ended | mine
        lacks = "its payload may not have come, or the model" if flight.held else "the model"
        text = (
            f"worker {worker.address} had the request and did not answer until {format_duration(OVERDUE_NS)} after its "
            f"deadline: {lacks} hangs, or takes far longer than its profile says"
        )
        self._end(slots[mine], flight.model, Outcome.FAILED, ErrorCode.NO_ANSWER, text, flight)

    def _set_aside(self, connection: Connection[Worker], slot: int, batch: int) -> None:
        """A slot waits for a batch no longer, and has begun none of those behind it: these return to their queues."""
        worker = connection.peer
        if slot >= worker.slots:
            raise BadInput(f"lane IS_ASIDE of slot {slot}: worker {worker.address} has {worker.slots}")
        flight = self._flights.get(batch)
        if flight is not None and flight.gpu not in worker.gpus[slot : slot + 1]:
            flight = None
        model_id = -1 if flight is None else flight.model.model_id  # -1: the batch has ended after all
        connection.send(Resume(slot, model_id))
        if not worker.gpus:
            return
        now, gpu = now_ns(), worker.gpus[slot]
        gpu_class, busy_ns = int(self.engine.state.gpu["gpu_class"][gpu]), self._busy_ns[gpu]
        self._remove_gpu(now, worker, gpu)
        gpu = worker.gpus[slot] = self._add_gpu(now, connection, slot, gpu_class)
        self._busy_ns[gpu] = busy_ns
        if worker.draining and not worker.closing:
            self.engine.drain_gpu(now, gpu)
        why = ""
        if flight is not None:
            took_s, n = (now - flight.dispatch_ns) / NS_PER_S, len(flight.slots)
            why = f"a batch of {n} requests hangs: it left {took_s:.1f} s ago, and its worker still answers"
            logger.warning("slot %d of %s goes on without model %r: %s", slot, worker.address, flight.model.label, why)
            self._aside[batch] = (connection, slot, model_id)
        self._on_aside(connection, slot, model_id, why)
        self._due()

    # Connections

    def add_local(self, client: LocalClient) -> None:
        """Serve a client in this process as if it were connected; at most one."""
        client.peer = Client(self._next_client)
        self._local, self._local_index = client, self._next_client
        self._requests.set_one_way(self._next_client, 0)
        self._clients[self._next_client] = client
        self._next_client += 1

    def hear_local(self, message: Submit | Cancel) -> None:
        """A message from the client in this process."""
        assert self._local is not None
        self._hear_from_client(self._local, message, memoryview(b""))

    def _frame(self, connection: Connection[Session | None], op: int, fields: list[Any], blob: memoryview) -> None:
        peer = connection.peer
        if isinstance(peer, Client):
            client = cast("Connection[Client]", connection)
            self._hear_from_client(client, CLIENT_TO_SCHEDULER.read(op, fields, blob), blob)
        elif isinstance(peer, Worker):
            worker = cast("Connection[Worker]", connection)
            self._hear_from_worker(worker, WORKER_TO_SCHEDULER.read(op, fields, blob), blob)
        else:
            self._hello(connection, op, fields)

    def _hear_from_client(
        self, connection: ClientEnd, message: Submit | Cancel | Data | Pong, blob: memoryview
    ) -> None:
        if isinstance(message, Submit):
            self._submit(connection, message.rows, blob)
        elif isinstance(message, Cancel):
            self._cancel(connection.peer, message.ids)
        elif isinstance(message, Data):
            self._relay(connection.peer, message, blob)
        else:
            self._hear_client(connection.peer, message.t_ns)

    def _hear_from_worker(
        self, connection: Connection[Worker], message: Done | Pong | Answer | IsAside, blob: memoryview
    ) -> None:
        if isinstance(message, Done):
            self._done(connection, message, blob)
        elif isinstance(message, Pong):
            connection.peer.pinged_ns = 0
        elif isinstance(message, Answer):
            self._relay_answers(connection.peer, message, blob)
        else:
            self._set_aside(connection, message.slot, message.batch)

    def _hear_client(self, client: Client, pinged_ns: int) -> None:
        now = now_ns()
        if not client.pinged:  # nobody asked
            return
        client.pinged = False
        if self._stood_still(pinged_ns, now):
            return
        client.ponged(now - pinged_ns, now)
        self._set_ways(client)

    def _set_ways(self, client: Client) -> None:
        self._requests.set_one_way(client.index, client.one_way_ns(), client.in_hand.typical_ns)

    def _stood_still(self, since_ns: int, now: int) -> bool:
        """Whether this process stood still since then, so that what was measured meanwhile tells nothing of others."""
        return self._still_ns > since_ns or now - self._looked_ns > STILL_NS

    def _hello(self, connection: Connection[Session | None], op: int, fields: list[Any]) -> None:
        hello, version = accept(connection, op, fields, self.token)
        if isinstance(hello, LinkHello):
            raise BadInput("lane HELLO of a client to a worker came to a scheduler: connect to the worker's port")
        self._listener.welcome(connection)
        if isinstance(hello, WorkerHello):
            self._welcome(connection, version, -1)
            self._take_worker(connection, worker_of(hello))
        else:
            self._take_client(connection)
            self._welcome(connection, version, self._next_client - 1)

    def _welcome(self, connection: Connection[Session | None], version: int, index: int) -> None:
        connection.send(Welcome(version, index, self._inline_bytes, self._waiting.limit_ns))
        connection.send(Ping(now_ns()))

    def _take_worker(self, connection: Connection[Session | None], worker: Worker) -> None:
        self.drop_worker(worker.address)
        connection.peer = worker
        known = self.workers[worker.address] = cast("Connection[Worker]", connection)
        self._on_worker(known)

    def _take_client(self, connection: Connection[Session | None]) -> None:
        connection.bounded = True
        connection.peer = Client(self._next_client, pinged=True)
        self._requests.set_one_way(self._next_client, 0)
        self._clients[self._next_client] = cast("Connection[Client]", connection)
        self._next_client += 1

    def _lost(self, connection: Connection[Session | None], error: Exception | None) -> None:
        self._bytes_in += connection.bytes_in
        self._bytes_out += connection.bytes_out
        peer = connection.peer
        if isinstance(peer, Worker) and self.workers.get(peer.address) is connection:
            logger.info("lane connection of worker %s is gone (%s)", peer.address, error)
            self.drop_worker(peer.address)
        elif isinstance(peer, Client):
            del self._clients[peer.index]
            self._waiting.forget(peer)
            self._tell_workers_gone(peer)
            self._cancel_slots(self._requests.of_client(peer.index))

    async def _measure(self) -> None:
        while True:
            await asyncio.sleep(MEASURE_S)
            try:
                self._measure_once()
            except Exception:  # clients take a scheduler without pings for a lost one
                logger.exception("connections could not be measured")

    def _measure_once(self) -> None:
        for connection in self._clients.values():
            now, client = now_ns(), connection.peer
            client.in_hand.forget(now)
            self._set_ways(client)
            # One at a time: those that wait for a client that stands still would all tell of the same stall.
            if not client.pinged:
                self._ping(connection, now, behind=False)
        self._follow_latency()
        self._close_up()
        self.activity.fold()
        self._sample()
        self._resubmit(now_ns())
        if self.log is not None:
            self.log.keep()

    def _ping(self, connection: ClientEnd, now: int, *, behind: bool) -> None:
        client = connection.peer
        client.pinged, client.behind = connection is not self._local, behind
        connection.send(Ping(now))

    def _follow(self, connection: ClientEnd) -> None:
        """Have a client say when it has in hand what was just sent to it."""
        now, client = now_ns(), connection.peer
        if not client.pinged and now - client.followed_ns >= FOLLOW_NS and connection is not self._local:
            client.followed_ns = now
            self._ping(connection, now, behind=True)

    # Requests

    def _submit(self, connection: ClientEnd, rows: Records, blob: memoryview, *, may_wait: bool = True) -> None:
        now, client = now_ns(), connection.peer
        self.asked_ns = now
        if not self._serves and may_wait and self._waiting.keep(now, connection, rows, blob):
            return
        if self._canaries:
            rows = split(rows, self._canaries.values())
        requests, slo_of = self._requests, self._slo_of
        way_ns = client.one_way_bound_ns()
        taken = requests.admit(
            self.engine, rows, blob, client=client.index, now=now, margin_ns=way_ns + self._reply_ns,
            care_ns=way_ns - client.one_way_ns() + self._reply_care_ns, in_hand_ns=client.in_hand.bound_ns,
            index_of=self._index_of, slo_of=slo_of, serving=self._serves,
        )  # fmt: skip
        if taken is None:
            raise BadInput(f"lane SUBMIT of {len(rows)} requests does not fit its {len(blob)} bytes of payload")
        slots, n_refused, evicted = taken
        if len(evicted):
            self._evict(evicted)
            requests.keep(slots, rows, blob, client=client.index, now=now, slo_of=slo_of)
        if n_refused:
            refused = rows[slots < 0]
            record = requests.refused(refused, client=client.index, now=now, slo_of=slo_of)
            self._refuse(connection, refused["model"], record)
        self._due()

    def _resubmit(self, before_ns: int | None = None) -> None:
        """Take in what waited for a GPU, now that there is one; or refuse what has waited too long."""
        for _, connection, rows, blob in self._waiting.take(before_ns):
            try:
                self._submit(connection, rows, blob, may_wait=False)
            except BadInput as error:
                logger.warning("closed a lane connection: %s", error)
                if isinstance(connection, Connection):
                    connection.close()

    def _refuse(self, connection: ClientEnd, models: npt.NDArray[np.int32], rows: Rows) -> None:
        """Answer the requests of a SUBMIT that got no slot: no such model, no GPU, or a full queue."""
        why: dict[int, Failure] = {}
        for model_id, n in zip(*(column.tolist() for column in np.unique(models, return_counts=True)), strict=True):
            model = self._addressed(model_id)
            code, text = self._why_refused(model_id, model)
            why[model_id] = Failure(code, plain(text))
            if model is not None:
                model.counts[Outcome.REJECTED] += n
        failures = {i: why[model_id] for i, model_id in enumerate(models.tolist())}
        _send_failures(connection, rows.ids, Outcome.REJECTED, failures)
        if self.log is not None or self.tracing is not None:
            for model_id in np.unique(models).tolist():
                model = self._addressed(model_id)
                if model is not None:
                    self._record_refused(model, Rows(*(values[models == model_id] for values in rows)))

    def _why_refused(self, number: int, model: ServedModel | None) -> tuple[ErrorCode, str]:
        """The error, and its text, of a request that got no slot."""
        if model is None:
            return ErrorCode.UNKNOWN_MODEL, f"model {number} is not deployed: deploy it first"
        if not self._serves:
            text = f'no worker serves model {model.name!r}: start one with dask worker --resources "GPU=1"'
            return ErrorCode.NO_GPU_WORKER, text
        queued = self.engine.queued(model.index)
        text = f"queue of model {model.name!r} is full with {queued} requests: slow down, or add GPUs"
        return ErrorCode.OVERLOADED, text

    def _record_refused(self, model: ServedModel, rows: Rows) -> None:
        if self.log is not None:
            self.log.requests(model, rows, Outcome.REJECTED, reply=now_ns())
        if self.tracing is not None:
            self.tracing.ended(model, rows, Outcome.REJECTED)

    def _addressed(self, number: int) -> ServedModel | None:
        """The model that a number on the wire stands for."""
        index = int(self._index_of[number]) if 0 <= number < len(self._index_of) else -1
        return self._by_index[index] if index >= 0 else None

    def _evict(self, evicted: npt.NDArray[Any]) -> None:
        """Answer the requests that had to make room for those just submitted, before these take over their slots."""
        for _, slot, index in evicted.tolist():
            model = self._by_index[index]
            text = (
                f"queue of model {model.name!r} is full, and a request of higher priority came: slow down, or add GPUs"
            )
            self._end(np.array([slot], np.int32), model, Outcome.REJECTED, ErrorCode.OVERLOADED, text)

    def _cancel(self, client: Client, ids: npt.NDArray[np.int64]) -> None:
        self._cancel_slots(self._requests.of_client(client.index, ids))

    def _cancel_slots(self, slots: npt.NDArray[Any]) -> None:
        now = now_ns()
        for slot in slots.tolist():
            # One in flight is only marked: its slot is free when its batch ends, and nobody waits for the answer.
            if self.engine.cancel(now, slot):
                self._end_one(slot, Outcome.CANCELLED)
            else:
                self._requests.client[slot] = -1
        self._due()

    def _due(self) -> None:
        if not self._tick_due:
            self._tick_due = True
            self._loop.call_soon(self._tick)

    def _on_timer(self) -> None:
        now = now_ns()
        if not self._stood_still(self._timer_set, now):
            self._timer_lateness.add(now - self._timer_set)
        self._tick()

    def _tick(self) -> None:
        """Advance the engine to now and carry out what it decides; then set the timer for what comes next."""
        self._tick_due = False
        engine = self.engine
        while True:
            now = now_ns()
            (batches, members, drops), at = engine.step(now)
            drops = drops.copy() if len(drops) else drops
            if len(batches):
                for row in batches.tolist():
                    try:
                        self._dispatch(now, row, members)
                    except Exception as error:
                        logger.exception("batch %d cannot be dispatched", row[0])
                        self._fail_batch(now, row, members, error)
            if len(drops):
                self._drop(drops)
            if at > now_ns():
                break
        # A timer that rings too early costs one idle look; moving it later each time would cost a system call.
        if at < NEVER and (self._timer.at_ns is None or at < self._timer.at_ns):
            self._timer_set = at
            self._timer.set(at)

    def _dispatch(self, now: int, row: tuple[int, ...], members: npt.NDArray[np.int32]) -> None:
        batch, window_open, window_close, start, end, index, gpu, size, offset = row
        connection, slot = self._gpu_worker[gpu]
        slots = members[offset : offset + size].copy()
        model = self._by_index[index]
        waited = self.engine.in_flight(gpu) > 1
        rows, (n_held, owner, last, n_local) = self._requests.lay_out(slots, self._local_index)
        window, planned = (window_open, window_close), (start, end)
        payloads = self._requests.payloads(slots)
        apart = sum(map(len, payloads)) > PART_BYTES
        wait_ns = min(max(last - end, MIN_WAIT_NS), MAX_WAIT_NS) if n_held or apart else 0
        due_back = due_back_ns(last, end, wait_ns, n_local > 0)
        self._flights[batch] = Flight(
            batch, model, gpu, slots, now, window, planned, waited, n_held > 0, due_back,
            rule=self.engine.rule(gpu, batch),
        )  # fmt: skip
        held = rows if n_held == size else rows[rows["held"] != 0] if n_held else rows[:0]
        if apart:
            rows["held"] |= [len(payload) > 0 for payload in payloads]
        tasks: dict[int, str] = {}
        if n_local and self._local is not None:
            local = np.flatnonzero(rows["client"] == self._local_index)
            names = self._local.dispatched(connection.peer.address, rows["id"][local].tolist())
            tasks = dict(zip(local.tolist(), names, strict=True))
        message = Execute(batch, slot, model.model_id, rows, wait_ns, tasks)
        connection.send(message, *() if apart else payloads)
        if apart:
            _send_apart(connection, batch, rows, payloads)
        if n_held:
            self._place(batch, connection.peer, held, owner)
        model.batches += 1
        model.batched += size
        model.used_ns[gpu] = now

    def _fail_batch(self, now: int, row: tuple[int, ...], members: npt.NDArray[np.int32], error: Exception) -> None:
        """End the requests of a batch that could not be sent, so that its GPU and those behind it go on."""
        batch, *_, index, gpu, size, offset = row
        slots = members[offset : offset + size].copy()
        self._flights.pop(batch, None)
        gone = self._requests.client[slots] < 0
        model, text = self._by_index[index], f"its batch could not be sent to a worker: {brief(error)}"
        self._end(slots[gone], model, Outcome.CANCELLED, ErrorCode.CANCELLED, "")
        self._end(slots[~gone], model, Outcome.FAILED, ErrorCode.REQUEST_ERROR, text)
        self.engine.completed(now, gpu, batch, int(NEVER), now)
        self._due()

    def _place(self, batch: int, worker: Worker, held: npt.NDArray[Any], owner: int) -> None:
        """Tell clients where the payloads that they keep are needed; ``owner`` has all of them, unless it is MIXED."""
        for c in [owner] if owner != MIXED else np.unique(held["client"]).tolist():
            connection = self._clients.get(c)
            if connection is not None:
                mine = held if owner != MIXED else held[held["client"] == c]
                connection.send(Place(batch, *worker.lane, mine["id"]))

    def _relay(self, client: Client, data: Data, blob: memoryview) -> None:
        """Pass on the payloads of a client that cannot reach the worker itself."""
        flight = self._flights.get(data.batch)
        if flight is not None:
            connection, _ = self._gpu_worker[flight.gpu]
            connection.send(data._replace(client=client.index), blob)

    def _relay_answers(self, worker: Worker, answer: Answer, blob: memoryview) -> None:
        """Pass on large answers to a client that has no connection to their worker, and have it open one."""
        connection = self._clients.get(answer.client)
        if connection is not None and connection is not self._local:
            connection.send(answer, blob)
            connection.send(Place(-1, *worker.lane, NO_COLUMN))

    def _tell_workers_gone(self, client: Client) -> None:
        """Have no worker wait for what a client that is gone has kept."""
        gpus = {f.gpu for f in self._flights.values() if f.held and client.index in self._requests.client[f.slots]}
        for connection in {self._gpu_worker[gpu][0] for gpu in gpus}:
            connection.send(Gone(client.index))

    def _drop(self, slots: npt.NDArray[np.int32]) -> None:
        req, now = self.engine.state.req, now_ns()
        indices = req["model"][slots]
        for index in np.unique(indices).tolist():
            model, mine = self._by_index[index], slots[indices == index]
            declared, planned = self.engine.alone_ns(now, index)
            arrivals = self._requests.arrival[mine]
            slos = self._requests.deadline[mine] - arrivals
            # What the engine was given is earlier than the deadline by the ways, and not more than the SLO.
            networks = slos - (req["deadline"][mine] - arrivals) + int(self.engine.state.g["control"][0])
            self._refused_for_delays |= bool(((declared <= slos) & (slos < declared + networks)).any())
            of_model = slos == model.slo_ns
            groups = [mine[of_model]] if of_model.any() else []
            for group in [*groups, *mine[~of_model].reshape(-1, 1)]:
                first = int(np.flatnonzero(mine == group[0])[0])
                text = why_dropped(
                    model.name, model.slo_ns, int(slos[first]), int(networks[first]),
                    declared if declared < NEVER else None, planned,
                )  # fmt: skip
                self._end(group, model, Outcome.DROPPED, ErrorCode.DEADLINE_EXCEEDED, text)

    def _done(self, connection: Connection[Worker], done: Done, blob: memoryview) -> None:
        """A batch came back: correct the engine, answer the clients, record."""
        now, worker = now_ns(), connection.peer
        batch, _, queued_ns, run_ns, held_ns, answers, raised, lost, (input_ns, infer_ns, output_ns) = done
        flight = self._flights.get(batch)
        worker.pinged_ns = 0
        if flight is None or self._gpu_worker.get(flight.gpu, (None, 0))[0] is not connection:
            self._come_back(connection, batch)
            return
        slots = flight.slots
        if len(answers) != len(slots):
            raise BadInput(f"lane DONE of batch {batch} has {len(answers)} answers for {len(slots)} requests")
        failures: dict[int, Failure] = {}
        if raised:
            texts = bounded({i: failure.text for i, failure in raised.items()})
            failures = {i: Failure(failure.code, texts[i]) for i, failure in raised.items()}
        if len(lost):
            text = f"its payload did not reach worker {worker.address} in time, and it did not run: check the network"
            failures |= dict.fromkeys(lost.tolist(), Failure(ErrorCode.PAYLOAD_LOST, text))
        settled = self._requests.settle(
            slots,
            answers,
            len(blob),
            now=now,
            failed=set(failures),
            counts=flight.model.counts,
            latencies=flight.model.latencies,
            keep=self.log is not None or self.tracing is not None,
        )
        if settled is None:
            text = f"lane DONE of batch {batch} has {len(answers)} answers that do not fit {len(slots)} requests"
            raise BadInput(f"{text} and {len(blob)} bytes")
        del self._flights[batch]
        self._busy_ns[flight.gpu] += run_ns
        one_way = max(0, now - flight.dispatch_ns - held_ns) // 2
        start = flight.dispatch_ns + one_way + queued_ns
        end = start + run_ns
        # From when the profile says the batch ended, so that what l(b) strays by is allowed for too.
        if not self._stood_still(flight.dispatch_ns, now):
            worker.reply.add(now - start - (flight.planned[1] - flight.planned[0]))
            if not flight.waited and not len(lost):
                worker.control.add(start - flight.dispatch_ns)
        self.engine.completed(now, flight.gpu, batch, int(NEVER) if failures else start, end)
        answered, answer_ns = settled.answered, settled.answer_ns
        after_ns = answered * (now - end + input_ns + infer_ns + output_ns)
        spent = Spent(answered, max(answer_ns, after_ns), max(answer_ns - after_ns, 0), input_ns, infer_ns, output_ns)
        self._reply(settled, blob, failures)
        self._due()
        planned_ns = flight.planned[1] - flight.planned[0]
        self.activity.batch(
            flight.model.model_id, flight.gpu, len(slots), flight.window, flight.dispatch_ns, start, end, flight.waited,
            planned_ns, spent, flight.rule,
        )  # fmt: skip
        settled = self._without_ended(flight, settled)
        if len(blob) > self._inline_bytes:
            large = (settled.results["link"] < 0) & (settled.results["bytes"] > self._inline_bytes)
            self._introduce(worker, settled.owners[large])
        if self.log is not None:
            outcome = BatchOutcome.FAILED if len(failures) == len(slots) else BatchOutcome.DONE
            self.log.served(flight, settled.entries, settled.results, outcome, start, end, now)
        if self.tracing is not None:
            replies = now + self._requests.back_ns(settled.owners, settled.entries)
            outcomes = settled.results["outcome"]
            self.tracing.served(flight, settled.entries, outcomes, worker.address, start, end, replies)

    def _without_ended(self, flight: Flight, settled: Settled) -> Settled:
        """A batch without those of its requests that had ended before it came back: they have been counted."""
        if flight.ended is None:
            return settled
        flight.model.counts[Outcome.CANCELLED] -= int(flight.ended.sum())
        owner, answered, answer_ns, *columns = settled
        kept = (column[~flight.ended] if len(column) else column for column in columns)
        return Settled(owner, answered, answer_ns, *kept)

    def _come_back(self, connection: Connection[Worker], batch: int) -> None:
        """A batch that is not waited for any longer has ended: where it hung, its model can be served again."""
        aside = self._aside.get(batch)
        if aside is not None and aside[0] is connection:
            del self._aside[batch]
            self._on_back(*aside)

    def _reply(self, settled: Settled, blob: memoryview, failures: dict[int, Failure]) -> None:
        """Send each client its answers; the blob passes through whole where one client has all."""
        owner, results, owners = settled.owner, settled.results, settled.owners
        if owner >= 0:
            connection = self._clients.get(owner)
            if connection is not None:
                connection.send(Result(results, failures), blob)
                self._follow(connection)
        elif owner == MIXED:
            here = np.where(results["link"] < 0, results["bytes"], 0)
            ends = np.cumsum(here)
            for c in np.unique(owners).tolist():
                connection = self._clients.get(c)
                if connection is None:
                    continue
                at = np.flatnonzero(owners == c)
                parts = [blob[end - size : end] for end, size in zip(ends[at].tolist(), here[at].tolist(), strict=True)]
                mine = {k: failures[i] for k, i in enumerate(at.tolist()) if i in failures} if failures else {}
                connection.send(Result(results[at], mine), *parts)
                self._follow(connection)

    def _introduce(self, worker: Worker, owners: npt.NDArray[np.int32]) -> None:
        """Have clients connect to a worker whose large answers came this way: the next ones need not."""
        for c in np.unique(owners).tolist():
            connection = self._clients.get(c)
            if connection is not None:
                connection.send(Place(-1, *worker.lane, NO_COLUMN))

    def _end(
        self,
        slots: npt.NDArray[np.int32],
        model: ServedModel,
        outcome: Outcome,
        code: ErrorCode,
        text: str,
        flight: Flight | None = None,
    ) -> None:
        """End requests that got no answer, all alike; flight: the batch that they are in."""
        if not len(slots):
            return
        failure = Failure(code, plain(text))
        owners = self._requests.client[slots]
        for c in np.unique(owners).tolist():
            connection = self._clients.get(c)
            if connection is not None:
                ids = self._requests.id[slots[owners == c]]
                _send_failures(connection, ids, outcome, dict.fromkeys(range(len(ids)), failure))
                self._follow(connection)
        model.counts[outcome] += len(slots)
        if self.log is not None:
            self.log.requests(model, self._requests.rows(slots), outcome, reply=now_ns(), flight=flight)
        if self.tracing is not None:
            self.tracing.ended(model, self._requests.rows(slots), outcome)
        self._requests.forget(slots)

    def _end_one(self, slot: int, outcome: Outcome, code: ErrorCode = ErrorCode.CANCELLED, text: str = "") -> None:
        model = self._by_index[int(self.engine.state.req["model"][slot])]
        self._end(np.array([slot], np.int32), model, outcome, code, text)

    def _follow_latency(self) -> None:
        """Tell the engine the control latency of each GPU, and for the windows the median of them."""
        now = now_ns()
        control, reply, reply_care, spread = [], [], [], []
        for connection in self.workers.values():
            worker = connection.peer
            if worker.heard == worker.reply.samples:
                for delay in (worker.control, worker.reply):
                    delay.relax()
                    if self._refused_for_delays:
                        delay.halve()
            worker.heard = worker.reply.samples
            for gpu in worker.gpus:
                control.append(int(worker.control.mean_ns))
                reply.append(worker.reply.bound_ns())
                reply_care.append(worker.reply.spread_ns())
                spread.append(worker.control.spread_ns() + worker.reply.spread_ns())
                self.engine.set_control(now, control[-1], gpu)
        self._refused_for_delays = False
        if control:
            self._reply_ns, self._reply_care_ns = sorted(reply)[len(reply) // 2], sorted(reply_care)[len(reply) // 2]
            self.engine.set_control(now, sorted(control)[len(control) // 2])
            self._set_slack(sorted(spread)[len(spread) // 2])

    def _set_slack(self, spread_ns: int) -> None:
        """Windows open early by all that may go wrong; they close by what is expected. So where GPUs are idle batches
        end with time to spare, and where they are not, none is denied to a request because an estimate is careful.
        """
        self.engine.set_slack(max(MIN_SLACK_NS, self._timer_lateness.bound_ns()) + spread_ns, SLACK_SHARE)

    # Observation

    def start_recording(self, folder: str, info: dict[str, Any]) -> None:
        """Record all that happens from now on as a run in ``folder``; raises ``BadInput``."""
        if self.log is not None:
            raise BadInput(f"a recording is under way into {self.log.folder}: stop it first")
        self.log = RunLog(folder, info | {"policy": self.engine.policy}, now_ns())
        for model in self.models.values():
            self.log.model(model)
        for connection in self.workers.values():
            for gpu in connection.peer.gpus:
                self._log_gpu("ready", gpu, connection.peer)
        self.engine.journal = self.log.journal
        self.log.journal.note("state", now_ns(), data=dump(self.engine))
        for number in (*self.models, *self.numbers.values()):
            self._journal_wire(number)

    async def stop_recording(self, info: dict[str, Any] | None = None) -> str | None:
        """Close the recording, with ``info`` in its run.json, and return its folder; None if there was none.

        Raises ``BadInput`` if ``info`` is not plain.
        """
        if self.log is None:
            return None
        self.log.update_info(info or {})
        log, self.log = self.log, None
        self.engine.journal = None
        await asyncio.to_thread(log.close)
        return log.folder

    def _journal_wire(self, number: int) -> None:
        """Have a replay know which model of the engine a number on the wire stands for."""
        if self.log is not None:
            index, slo_ns = int(self._index_of[number]), int(self._slo_of[number])
            self.log.journal.note("wire", now_ns(), number, index, slo_ns)

    def _is_current(self, model: ServedModel) -> bool:
        """Whether requests to a model's name go to this version of it."""
        number = self.numbers.get(model.name)
        return number is None or self._index_of[number] == model.index

    def _log_gpu(self, event: str, gpu: int, worker: Worker) -> None:
        if self.log is not None:
            rank = int(self.engine.state.gpu["home_rank"][gpu])
            self.log.gpu(event, gpu, rank, worker.gpu_class, worker.address, worker.host)

    def record_scaling(self, inputs: dict[str, Any], decision: dict[str, Any]) -> bool:
        """Write a tick of the scaling policy into the recording; False when there is none."""
        if self.log is None:
            return False
        self.log.scaling(inputs, decision)
        return True

    def _sample(self) -> None:
        """Keep the counts of now, once a second."""
        time_s = now_ns() / NS_PER_S
        if time_s - self._sampler.time_s < SAMPLE_S - MEASURE_S / 2:
            return
        ongoing = {model_id: self._queued(m) for model_id, m in self.models.items()}
        for flight in self._flights.values():
            if flight.model.model_id in ongoing:
                ongoing[flight.model.model_id] += len(flight.slots)
        counts = np.array([m.counts for m in self.models.values()], np.int64).reshape(-1, len(Outcome))
        there = np.array(list(ongoing.values()), np.int64)
        bad = counts[:, [Outcome.LATE, Outcome.DROPPED, Outcome.REJECTED]].sum(1)
        busy_s = [ns / NS_PER_S for ns in self._busy_ns.values()]
        self._sampler.add(time_s, list(ongoing), counts.sum(1) + there, bad, there, self._gpu_keys(), busy_s)
        self.activity.sample(time_s, ((m.model_id, m.counts, m.latencies) for m in self.models.values()))

    def _queued(self, model: ServedModel) -> int:
        """Requests that are queued, or wait for a first GPU, by the model's own number or that of its name."""
        waits = self._waiting.counts
        named = waits[self.numbers[model.name]] if model.name in self.numbers and self._is_current(model) else 0
        return self.engine.queued(model.index) + waits[model.model_id] + named

    def _gpu_keys(self) -> list[tuple[str, int]]:
        return [(self._gpu_worker[gpu][0].peer.address, gpu) for gpu in self._busy_ns]

    def network_ns(self) -> int:
        """What of an SLO goes by on the way from a client to a GPU and back into its hands, as it is now measured."""
        return sum(self._client_times_ns()) + int(self.engine.state.g["control"][0]) + self._reply_ns

    def _client_times_ns(self) -> tuple[int, int]:
        """What the round trip to a client takes, and then the client until it has answers in hand: the medians of the
        clients, so that no single one, slow or hostile, tells what others are told.
        """
        clients = [connection.peer for connection in self._clients.values()]
        round_trips = [c.round_trip.least_ns for c in clients if c.round_trip.samples]
        in_hand = [c.in_hand.typical_ns for c in clients if c.in_hand.samples]
        return _middle(round_trips), _middle(in_hand)

    def signals(self) -> dict[str, Any]:
        """The load of models and the use of GPUs over the last minute, as plain values (``Sampler.reply``)."""
        state = self.engine.state
        models, gpus = {}, {}
        for model_id, m in self.models.items():
            tables = {c: self.engine.latency_ns(m.index, self._gpu_class(c)) for c in m.profiles}
            models[model_id] = ModelFacts(m.label, m.slo_ns, self._queued(m), tables)
        for key in self._gpu_keys():
            address, gpu = key
            worker = self.workers[address].peer
            rank = int(state.gpu["home_rank"][gpu])
            gpus[key] = GpuFacts(gpu, rank, worker.gpu_class, address, worker.draining)
        return self._sampler.reply(models, gpus)

    def overview(self) -> dict[str, Any]:
        """How each model and GPU did in the last seconds, as plain values (``RecentActivity.models``)."""
        engine, signals = self.engine, self.signals()
        served = list(zip(self.models.items(), signals["models"], strict=True))
        facts = {i: Facts(s["name"], m.slo_ns, s["queued"], engine.target(m.index)) for (i, m), s in served}
        models = [
            {"model_id": i, "rate_hz": s["rate_hz"]["10"], **row}
            for ((i, _), s), row in zip(served, self.activity.models(now_ns(), facts), strict=True)
        ]
        for gpu in signals["gpus"]:
            gpu["in_flight"] = engine.in_flight(gpu["gpu"])
            gpu["slow"] = engine.is_slow(gpu["gpu"])
        return {
            "policy": engine.policy,
            "models": models,
            "gpus": sorted(signals["gpus"], key=lambda gpu: gpu["rank"]),
            "workers": len(self.workers),
            "clients": len(self._clients) - (self._local is not None),
        }

    def metrics(self) -> list[ModelCounts]:
        """What has been counted of each model since it was deployed."""
        self.activity.fold()
        return [
            ModelCounts(
                m.label,
                dict(zip((o.name.lower() for o in Outcome), m.counts.tolist(), strict=True)),
                m.latencies.copy(),
                self.activity.tallies.get(m.model_id) or Tally(),
                {c: self.engine.drift(m.index, self._gpu_class(c)) for c in m.profiles},
            )
            for m in self.models.values()
        ]

    def status(self) -> dict[str, Any]:
        """Models, workers, queues, counts and latency estimates, as plain values."""
        engine = self.engine
        self.activity.fold()
        round_trip_ns, in_hand_ns = self._client_times_ns()
        models = {
            m.name if self._is_current(m) else m.label: {
                "model_id": m.model_id,
                "name": m.name,
                "version": m.version,
                "slo_ns": m.slo_ns,
                "profiles": {c: p.to_dict() for c, p in m.profiles.items()},
                "queued": engine.queued(m.index),
                "target_batch": engine.target(m.index),
                "drift": {c: engine.drift(m.index, self._gpu_class(c)) for c in m.profiles},
                "rate_hz": float(engine.state.mod["rate"][m.index]) * NS_PER_S,
                "batches": m.batches,
                "mean_batch": m.batched / m.batches if m.batches else None,
                "outcomes": {o.name.lower(): int(m.counts[o]) for o in Outcome},
                "spent": spent_by(self.activity.tallies.get(m.model_id) or Tally(), now_ns()),
            }
            for m in self.models.values()
        }
        workers = {
            address: {
                "gpu_class": c.peer.gpu_class,
                "slots": c.peer.slots,
                "serving": len(c.peer.gpus),
                "answering": len(self.answering(c)),
                "draining": c.peer.draining,
                "closing": c.peer.closing,
                "ranks": [int(engine.state.gpu["home_rank"][g]) for g in c.peer.gpus],
                "in_flight": self.in_flight(address),
                "pace": [engine.slowdown(g) for g in c.peer.gpus],
                "slow": [engine.is_slow(g) for g in c.peer.gpus],
                "control_ns": c.peer.control.bound_ns(),
                "control_mean_ns": int(c.peer.control.mean_ns),
                "reply_ns": c.peer.reply.bound_ns(),
                "reply_mean_ns": int(c.peer.reply.mean_ns),
            }
            for address, c in self.workers.items()
        }
        recording = self.log.folder if self.log is not None else None
        return {
            "policy": engine.policy,
            "models": models,
            "workers": workers,
            "clients": len(self._clients) - (self._local is not None),
            "recording": recording,
            "lane": {
                "bytes_in": self._bytes_in + sum(c.bytes_in for c in self._listener.connections),
                "bytes_out": self._bytes_out + sum(c.bytes_out for c in self._listener.connections),
            },
            "timer_lateness_ns": self._timer_lateness.bound_ns(),
            "client_round_trip_ns": round_trip_ns,
            "client_in_hand_ns": in_hand_ns,
            "slack_ns": int(engine.state.g["slack"][0]),
        }


def _middle(values: list[int]) -> int:
    """The median, the lower one of two; 0 of none."""
    return sorted(values)[(len(values) - 1) // 2] if values else 0


def _send_apart(connection: Connection[Worker], batch: int, rows: Records, payloads: list[memoryview]) -> None:
    """Payloads that are too large together for EXECUTE, as DATA of their clients."""
    there = np.array([len(payload) > 0 for payload in payloads])
    for client in np.unique(rows["client"][there]).tolist():
        at = np.flatnonzero(there & (rows["client"] == client))
        for some in in_parts(rows["bytes"][at].tolist()):
            mine = rows[at[some]]
            connection.send(Data(batch, client, mine["id"], mine["bytes"]), *[payloads[i] for i in at[some]])


def _send_failures(
    connection: ClientEnd, ids: npt.NDArray[np.int64], outcome: Outcome, failures: dict[int, Failure]
) -> None:
    """RESULT of requests without an answer, all of one outcome."""
    connection.send(Result(make_records(RESULT_ROW, len(ids), id=ids, link=-1, outcome=outcome), failures))
