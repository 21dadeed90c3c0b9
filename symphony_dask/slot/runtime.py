"""The worker's side: loads models, runs batches on its GPU slots, one thread a slot.

A Dask worker with a ``GPU`` resource becomes as many slots as it has units. The event loop reads batches from the lane,
gathers their payloads (``batch_inbox``) and hands them to the slot's thread; the thread runs them one after the other,
so that the next batch is already here when one ends. A model is loaded in a thread of its own, and profiled run by run
between batches, so that other models go on being served.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import socket
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from functools import partial, wraps
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from distributed.comm.addressing import get_address_host
from distributed.diagnostics.plugin import WorkerPlugin
from distributed.protocol.pickle import loads

from symphony_dask import config
from symphony_dask.backends import BatchResult, ModelSpec, Runner, Staging, free_memory, load, memory_of
from symphony_dask.backends.emulated import Emulated
from symphony_dask.clock import now_ns
from symphony_dask.errors import BadInput, DeploymentError, NotServing
from symphony_dask.plugin.graph_function import held_name
from symphony_dask.plugin.start_attempts import Attempts
from symphony_dask.plugin.task_rendezvous import Guests, Rendezvous
from symphony_dask.slot.batch_inbox import Batch, Inbox
from symphony_dask.slot.metrics import SlotCounts, expose
from symphony_dask.slot.profiling import is_out_of_memory, profile_runner
from symphony_dask.text import LEAST_CHARS, MOST_NAME, bounded, brief, error_text, plain
from symphony_dask.wire import codec
from symphony_dask.wire.connection import (
    ASIDE,
    DATA,
    DONE,
    EXECUTE,
    GONE,
    MAX_FRAME_BYTES,
    RESUME,
    VERSION,
    Connection,
    column,
    connect,
)
from symphony_dask.wire.listener import Patience
from symphony_dask.wire.rpc_replies import failure

logger = logging.getLogger(__name__)

#: The scheduler has so long to hear that a worker cannot serve, s.
_TELL_S = 10.0

#: Waits between attempts to reach the lane server, s.
RECONNECT_S = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0)

#: From so many bytes of payloads on, a batch is stacked and sent to its device ahead, while the one before runs.
STAGE_BYTES = 1 << 18

#: The largest answer, bytes; the rest of a frame is for its header.
MAX_ANSWER_BYTES = MAX_FRAME_BYTES - (1 << 24)


#: So many of the last batches a slot remembers; more do not end while word of one is on its way.
_ENDED = 64

#: Above the number of any batch.
_ALL = 1 << 62

#: With so many threads that hang a slot loads no model any more: they are lost to the process, with what they hold.
MOST_STUCK = 8


@dataclass
class Loading:
    """A model being loaded; ``abandoned``: nobody waits for it any more, so it is thrown away when it is there."""

    done: Future[dict[str, Any]] = field(default_factory=Future)
    abandoned: bool = False


class Running(NamedTuple):
    """The batch that a slot runs now, from whom it came, what runs it, and its held tasks."""

    batch: Batch
    connection: Connection
    runner: Runner | None
    guests: Guests | None


class Times(NamedTuple):
    """Of a batch here, ns. spent_ns: on samples (before the run, where they were staged), on the model, on answers."""

    queued_ns: int
    run_ns: int
    spent_ns: tuple[int, int, int]


class Slot:
    """One GPU slot: a thread, and the runners that it has loaded, which run in this thread.

    Large batches pass through a second thread first, which stages them (``backends.Staging``) one after the other.
    A thread that hangs in a batch is left to it, and another takes its place.

    given_up: batches up to this number are not waited for any longer, and not to be begun. ended: the last batches that
    ended, not always in the order of their numbers, as some wait for payloads. aside: the model that was left behind
    with a batch, and what ran it. The lock is for these and ``running``: whether a batch had ended when it was left is
    one question.
    """

    def __init__(self, number: int, device: str | None) -> None:
        self.number = number
        self.device = device
        self.runners: dict[int, Runner] = {}
        self.loads: dict[int, Loading] = {}
        self.counts = SlotCounts()
        self.given_up = -1
        self.ended: deque[int] = deque(maxlen=_ENDED)
        self.aside: tuple[int, Runner | None] = (-1, None)
        self.running: Running | None = None
        self._stuck: list[threading.Thread] = []
        self.lock = threading.Lock()
        self._jobs: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._ahead: queue.SimpleQueue[Any] | None = None
        self._thread = self._start("slot", self._jobs)

    def call(self, function: Any, *args: Any) -> Future[Any]:
        """Run ``function(*args)`` in the slot's thread."""
        future: Future[Any] = Future()
        with self.lock:
            self._jobs.put((future, function, args))
        return future

    def post(self, function: Any, *args: Any) -> None:
        """Run ``function(*args)``, which does not raise, in the slot's thread."""
        with self.lock:
            self._jobs.put((None, function, args))

    def post_ahead(self, function: Any, *args: Any) -> None:
        """Run ``function(*args)``, which does not raise, in the thread that stages batches."""
        with self.lock:
            if self._ahead is None:
                self._ahead = queue.SimpleQueue()
                self._start("stage", self._ahead)
            self._ahead.put((None, function, args))

    def replace_threads(self) -> None:
        """Leave the slot's threads to what they run, and have others do what waits behind it."""
        with self.lock:
            earlier, self._jobs = self._jobs, queue.SimpleQueue()
            while not earlier.empty():
                self._jobs.put(earlier.get())  # batches among them end at once
            earlier.put(None)
            if self._ahead is not None:
                self._ahead.put(None)
                self._ahead = None
            self._stuck.append(self._thread)
            self._thread = self._start("slot", self._jobs)

    @property
    def stuck(self) -> int:
        """How many threads hang in a batch."""
        with self.lock:
            self._stuck = [thread for thread in self._stuck if thread.is_alive()]
            return len(self._stuck)

    def stop(self) -> None:
        self._jobs.put(None)
        if self._ahead is not None:
            self._ahead.put(None)

    def _start(self, what: str, jobs: queue.SimpleQueue[Any]) -> threading.Thread:
        name = f"symphony-{what}-{self.number}"
        thread = threading.Thread(target=self._work, args=(jobs,), name=name, daemon=True)
        thread.start()
        return thread

    def _work(self, jobs: queue.SimpleQueue[Any]) -> None:
        while (job := jobs.get()) is not None:
            future, function, args = job
            if future is not None and not future.set_running_or_notify_cancel():
                continue  # whoever asked has gone
            try:
                result = function(*args)
            except BaseException as error:  # nothing ends this thread: the slot would answer nobody any more
                if future is None:
                    logger.error("slot %d: %s", self.number, error_text(error))
                else:  # SystemExit and its like would end the event loop that waits for it
                    known = isinstance(error, Exception)
                    future.set_exception(error if known else DeploymentError(error_text(error)))
            else:
                if future is not None:
                    future.set_result(result)
            del job, future, function, args


def _plain_errors(rpc: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    """``rpc`` with errors of this package's only, of plain text, as values (``rpc_replies``): of an error that is
    raised, the scheduler, which unpickles nothing, gets the repr alone.
    """

    @wraps(rpc)
    async def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return await rpc(*args, **kwargs)
        except (BadInput, DeploymentError) as error:
            return failure((BadInput if isinstance(error, BadInput) else DeploymentError)(plain(error)))
        except Exception as error:
            return failure(DeploymentError(brief(error)))

    return call


@dataclass
class SlotWorker:
    """The slots of one Dask worker, its lane connection, and its inbox for payloads from clients.

    gpu_class: what kind of GPU the slots are; workers of one class share profiles.
    lane: host and port where clients reach the inbox, None: they cannot.
    memory: bytes for models in each slot; None: no limit.
    patience: with clients' connections.
    """

    address: str
    slots: list[Slot]
    gpu_class: str
    rendezvous: Rendezvous
    connection: Connection | None = None
    lane: tuple[str, int] | None = None
    memory: int | None = None
    patience: Patience | None = None
    _specs: dict[int, bytes] = field(default_factory=dict, repr=False)
    _scheduler_id: str = ""
    _closing: bool = False
    _task: asyncio.Task[None] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        self.inbox = Inbox(self._start_batch, self.patience)

    async def listen(self, worker: Any) -> None:
        """Open the inbox to clients where the Dask worker listens, with its TLS settings."""
        ports = config.ports("symphony.lane.worker-port")
        ssl_context = worker.security.get_listen_args("worker").get("ssl_context")
        try:
            port = await self.inbox.listen(config.listen_host(worker), ports, ssl_context)
        except OSError as error:
            text = "no lane for clients on this worker, payloads are relayed: ports %s to %s: %s"
            logger.warning(text, ports[0], ports[-1], error)
        else:
            self.lane = (get_address_host(worker.address), port)

    def start(self, scheduler: Any, security: Any) -> None:
        """Keep a lane connection to ``scheduler``, an RPC of Dask's, from now on."""
        self._loop = asyncio.get_running_loop()
        self._task = self._loop.create_task(self._stay_connected(scheduler, security))

    def close(self) -> None:
        self._closing = True
        if self._task is not None:
            self._task.cancel()
        if self.connection is not None:
            self.connection.close()
        self.inbox.close()
        for slot in self.slots:
            slot.stop()

    async def _stay_connected(self, scheduler: Any, security: Any) -> None:
        attempt = 0
        while not self._closing:
            gone = asyncio.Event()

            def lost(connection: Connection, error: Exception | None, gone: asyncio.Event = gone) -> None:
                self.inbox.clear()
                for slot in self.slots:
                    slot.given_up = -1  # batches are numbered anew
                    slot.ended.clear()
                gone.set()

            try:
                info = await scheduler.symphony_info()
                if "error" in info:
                    raise NotServing(info["error"][1])
                hello = {
                    "token": info["token"],
                    "version": VERSION,
                    "role": "worker",
                    "worker": self.address,
                    "host": plain(socket.gethostname(), MOST_NAME),
                    "slots": len(self.slots),
                    "gpu_class": plain(self.gpu_class, MOST_NAME),
                    "lane": self.lane,
                    "memory": self.memory,
                }
                self._forget_other_schedulers(info["scheduler"])
                self.inbox.token = info["token"]
                self.connection = await connect(
                    get_address_host(scheduler.address),
                    info["port"],
                    hello,
                    self._frame,
                    lost,
                    ssl_context=security.get_connection_args("worker").get("ssl_context"),
                )
                self.inbox.inline_bytes = self.connection.welcome["inline_bytes"]
                attempt = 0
                await gone.wait()
            except Exception as error:
                logger.info("no lane connection to the scheduler yet: %s", error)
            await asyncio.sleep(RECONNECT_S[min(attempt, len(RECONNECT_S) - 1)])
            attempt += 1

    def _forget_other_schedulers(self, scheduler_id: str) -> None:
        """Models are known by numbers, which another scheduler gives anew."""
        if self._scheduler_id not in ("", scheduler_id):
            self._specs.clear()
            for slot in self.slots:
                # Not in the slot's thread, which may hang: what the new scheduler loads meanwhile would go as well.
                for loading in slot.loads.values():
                    loading.abandoned = True
                slot.loads.clear()
                slot.runners.clear()
        self._scheduler_id = scheduler_id

    async def load(
        self, model_id: int, slot: int, spec: bytes | None, example: bytes | None, timeout_s: float
    ) -> dict[str, Any]:
        """Load a model into a slot; returns ``load_ns``, and ``memory`` in bytes or None where there is no telling.

        spec: a pickled ``ModelSpec``; None: the one that the worker had before. It stays here until ``unload``.

        Raises ``DeploymentError``, also if loading takes longer than ``timeout_s``.
        """
        if spec is not None:
            self._specs[model_id] = spec
        target, spec = self.slots[slot], self._specs[model_id]
        earlier = target.loads.get(model_id)
        if earlier is not None and not earlier.done.done():
            raise DeploymentError("an earlier attempt to load it has not ended yet")
        if earlier is not None and model_id in target.runners:
            return earlier.done.result()
        if target.stuck >= MOST_STUCK:
            raise DeploymentError(f"{target.stuck} threads of the slot hang in models: restart the worker")
        loading = target.loads[model_id] = Loading()
        what = (target, model_id, spec, example, loading)
        threading.Thread(target=_load_into, args=what, name=f"symphony-load-{slot}", daemon=True).start()
        try:
            return await asyncio.wait_for(asyncio.shield(asyncio.wrap_future(loading.done)), timeout_s)
        except TimeoutError:
            raise DeploymentError(f"loading it takes longer than symphony.load-timeout, {timeout_s:g} s") from None
        finally:
            loading.abandoned = not loading.done.done()

    async def answer(self, model_id: int, slot: int, example: bytes) -> list[Any]:
        """What the answer of a model that the slot has loaded to the example is made of (``codec.form``)."""
        target = self.slots[slot]

        def run() -> list[Any]:
            result = target.runners[model_id].run(memoryview(example), np.array([len(example)], np.int64))
            if result.errors:
                raise DeploymentError(f"model failed on its example:\n{result.errors[0]}")
            return codec.form(codec.split(result.blob, result.sizes)[0])

        return await asyncio.wrap_future(target.call(run))

    async def unload(self, model_id: int, slot: int | None = None) -> None:
        """Free a slot of a model, and return then; or (None) free all slots and the worker, soon.

        In both cases the batches that are here run before.
        """
        if slot is None:
            self._specs.pop(model_id, None)
            for target in self.slots:
                target.post(_drop_runner, target, model_id)
        else:
            await asyncio.wrap_future(self.slots[slot].call(_drop_runner, self.slots[slot], model_id))

    async def loaded(self) -> list[list[tuple[int, int | None]]]:
        """The models that each slot has, and the memory of each in bytes, as ``load`` said."""
        return [[(m, slot.loads[m].done.result()["memory"]) for m in [*slot.runners]] for slot in self.slots]

    async def profile(
        self, model_id: int, slot: int, example: bytes | None, max_batch: int, slo_ns: int | None
    ) -> dict[str, Any]:
        """l(b) of a model that the slot has loaded (``profiling.profile_runner``)."""
        target = self.slots[slot]
        runner = target.runners[model_id]
        if isinstance(runner, Emulated):
            return runner.profile(max_batch).to_dict()
        if example is None:
            raise ValueError("no profile and no example: pass deploy(..., example=one_sample) to have it measured")
        between = _BetweenBatches(runner, target)
        measured = await asyncio.to_thread(
            profile_runner, between, codec.decode(example), max_batch, slo_ns, clock=between.clock
        )
        return measured.to_dict()

    def _frame(self, connection: Connection, op: int, fields: list[Any], blob: memoryview) -> None:
        self.connection = self.inbox.scheduler = connection
        if op == EXECUTE:
            self.inbox.execute(fields, blob)
        elif op == DATA:
            self.inbox.data(fields, blob)
        elif op == GONE:
            self.inbox.gone(fields[0])
        elif op == ASIDE:
            self._set_aside(*fields)
        elif op == RESUME:
            self._resume(*fields)

    def _set_aside(self, slot_number: int, batch: int, model_id: int) -> None:
        """The scheduler would wait no longer for a batch: leave it behind with its model, begin none of those that the
        slot was sent since, and say so; or do nothing if it has ended meanwhile. (What hangs may also be a batch of
        before a lost connection, and another model.)
        """
        slot = self.slots[slot_number]
        with slot.lock:
            if batch in slot.ended:
                return
            running, slot.running, slot.given_up = slot.running, None, _ALL
            slot.aside = model_id, slot.runners.pop(model_id, None)
        self.inbox.forget(slot_number)
        slot.replace_threads()
        if running is not None and running.guests is not None:
            running.guests.dismiss()
        if self.connection is not None:
            self.connection.send([ASIDE, slot_number, batch])

    def _resume(self, slot_number: int, model_id: int) -> None:
        """The scheduler has all that the slot had not begun back in its queues: run what comes from here on."""
        slot = self.slots[slot_number]
        self.inbox.forget(slot_number)
        slot.given_up = self.inbox.newest.get(slot_number, -1)
        kept, runner = slot.aside
        if kept != model_id and runner is not None:  # it is not that one's batch that was left
            slot.runners.setdefault(kept, runner)

    def _start_batch(self, batch: Batch) -> None:
        slot, connection = self.slots[batch.slot], self.connection
        if batch.tasks:
            self.rendezvous.gather(batch.tasks, lambda guests: slot.post(self._run, connection, batch, guests))
        elif codec.blob_bytes(batch.blob) >= STAGE_BYTES and isinstance(
            runner := slot.runners.get(batch.model_id), Staging
        ):
            slot.post_ahead(self._stage, connection, batch, runner)
        else:
            slot.post(self._run, connection, batch)

    def _stage(self, connection: Connection, batch: Batch, runner: Staging) -> None:
        """Stage a batch, in the thread for that, and have the rest run; what staging raises, the rest raises."""
        try:
            rest = runner.stage(batch.blob, batch.present_sizes())
        except BaseException as error:
            text, n = error_text(error), len(batch.present())
            rest = lambda: _no_answers(n, text)  # noqa: E731
        batch.blob = memoryview(b"")  # its samples have been copied
        self.slots[batch.slot].post(self._run, connection, batch, None, rest)

    def _run(
        self,
        connection: Connection,
        batch: Batch,
        guests: Guests | None = None,
        rest: Callable[[], BatchResult] | None = None,
    ) -> None:
        """Run one batch, or the rest of a staged one, in the slot's thread and answer from the event loop."""
        slot = self.slots[batch.slot]
        start_ns = now_ns()
        runner = slot.runners.get(batch.model_id)
        running = Running(batch, connection, runner, guests)
        with slot.lock:
            left = connection.closed or batch.number <= slot.given_up  # its requests are in a queue again
            if not left:
                slot.running = running
        if left:
            if guests is not None:
                guests.dismiss()
            return
        try:
            result = self._result(batch, runner, guests, rest)
        except BaseException as error:
            text = error_text(error)
            if guests is not None:
                guests.fail(text)
            result = _no_answers(len(batch.sizes if guests is not None else batch.present()), text)
        end_ns = now_ns()
        with slot.lock:
            if not connection.closed:
                slot.ended.append(batch.number)
            if slot.running is running:
                slot.running = None
            elif runner is not None and not connection.closed and batch.model_id in self._specs:
                slot.runners.setdefault(batch.model_id, runner)  # it was left, and has ended after all
        ran, failed, lost = len(result.sizes), len(result.errors), len(batch.lost)
        slot.counts.add(ran, end_ns - start_ns, staged=rest is not None, failed=failed, lost=lost)
        if batch.lost and guests is None:
            result = _spread(result, batch)
        if result.errors:
            result = replace(result, errors=bounded(result.errors))
        run_ns = end_ns - start_ns
        infer_ns = max(run_ns - result.output_ns - (0 if rest is not None else result.input_ns), 0)
        times = Times(start_ns - batch.received_ns, run_ns, (result.input_ns, infer_ns, result.output_ns))
        try:
            self._loop.call_soon_threadsafe(self._answer, connection, batch, result, times)
        except RuntimeError:  # the event loop is closed, and with it the connection
            pass

    def _result(
        self, batch: Batch, runner: Runner | None, guests: Guests | None, rest: Callable[[], BatchResult] | None
    ) -> BatchResult:
        """The answers to a batch; raises whatever a model does, and ``ValueError`` for what cannot be sent."""
        if runner is None:
            raise LookupError(f"model {batch.model_id} is not loaded on worker {self.address}")
        sizes = batch.present_sizes()
        if guests is not None:
            result, n = guests.run(runner, batch), len(batch.sizes)
        elif rest is not None:
            result, n = rest(), len(sizes)
        else:
            result, n = runner.run(batch.blob, sizes) if len(sizes) else _no_answers(0), len(sizes)
        total = codec.blob_bytes(result.blob)
        if len(result.sizes) != n or int(np.add.reduce(result.sizes)) != total:
            got = f"{len(result.sizes)} answers of {total} bytes"
            raise ValueError(f"the model's runner gave {got} for {n} requests")
        return result if total <= MAX_ANSWER_BYTES else _without_too_large(result)

    def _answer(self, connection: Connection, batch: Batch, result: BatchResult, times: Times) -> None:
        """Send what a batch came to. Whatever happens, DONE leaves: without it the slot would get no batch any more."""
        if connection.closed:  # whoever asked is gone, and numbers may begin anew
            return
        try:
            self._send_done(connection, batch, result, times)
        except Exception as error:
            logger.exception("the answers of batch %d cannot be sent", batch.number)
            text = f"its answer cannot be sent: {brief(error)}"
            self._send_done(connection, batch, _no_answers(len(batch.sizes), plain(text, LEAST_CHARS)), times)

    def _send_done(self, connection: Connection, batch: Batch, result: BatchResult, times: Times) -> None:
        rows, parts = self.inbox.answer(batch, result, connection)
        held_ns, lost = now_ns() - batch.received_ns, column(sorted(batch.lost))
        fields = [DONE, batch.number, batch.slot, times.queued_ns, times.run_ns, held_ns, rows, result.errors, lost]
        connection.send([*fields, times.spent_ns], *parts)


def _load_into(slot: Slot, model_id: int, spec: bytes, example: bytes | None, loading: Loading) -> None:
    """In a thread of its own. An optimized module is loaded in the slot's, where what it captures has to run."""

    def make() -> Runner:
        sample = None if example is None else codec.decode(example)
        try:
            return load(model, slot.device, sample)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        free_memory()  # of what models that are gone have left; not sooner, because it holds up every batch
        return load(model, slot.device, sample)

    began_ns = now_ns()
    try:
        model: ModelSpec = loads(spec)
        runner = make() if model.optimize is None else slot.call(make).result()
        if loading.abandoned:
            raise DeploymentError("it was loaded too late")
        slot.runners[model_id] = runner
        loading.done.set_result({"load_ns": now_ns() - began_ns, "memory": memory_of(runner)})
    except BaseException as error:  # whatever a loader raises, SystemExit included, the worker goes on
        known = isinstance(error, DeploymentError)
        loading.done.set_exception(error if known else DeploymentError(f"loading it raised {brief(error)}"))


def _drop_runner(slot: Slot, model_id: int) -> None:
    slot.runners.pop(model_id, None)


class _BetweenBatches:
    """A runner whose runs take their turn with the batches of its slot. ``clock`` counts only the runs themselves."""

    def __init__(self, runner: Runner, slot: Slot) -> None:
        self.batch_sizes = getattr(runner, "batch_sizes", ())
        self._runner, self._slot = runner, slot
        self._ran_ns = 0

    def clock(self) -> int:
        return self._ran_ns

    def run(self, blob: codec.Blob, sizes: npt.NDArray[np.int64]) -> BatchResult:
        """See ``backends.Runner.run``."""
        return self._slot.call(self._timed, blob, sizes).result()

    def _timed(self, blob: codec.Blob, sizes: npt.NDArray[np.int64]) -> BatchResult:
        start = time.perf_counter_ns()
        result = self._runner.run(blob, sizes)
        self._ran_ns += time.perf_counter_ns() - start
        return result


def _no_answers(n: int, error: str = "") -> BatchResult:
    return BatchResult(memoryview(b""), np.zeros(n, np.int64), dict.fromkeys(range(n), error))


def _without_too_large(result: BatchResult) -> BatchResult:
    """The answers without those that fit no frame, whose requests fail."""
    large = np.flatnonzero(result.sizes > MAX_ANSWER_BYTES).tolist()
    answers = codec.split(result.blob, result.sizes)
    errors = {i: f"the answer has {len(answers[i])} bytes: the most is {MAX_ANSWER_BYTES}" for i in large}
    answers = [memoryview(b"") if i in errors else answer for i, answer in enumerate(answers)]
    sizes = np.array([len(answer) for answer in answers], np.int64)
    return replace(result, blob=answers, sizes=sizes, errors=result.errors | errors)


def _spread(result: BatchResult, batch: Batch) -> BatchResult:
    """The answers of the requests that ran, as answers of the whole batch."""
    ran = batch.present()
    sizes = np.zeros(len(batch.sizes), np.int64)
    sizes[ran] = result.sizes
    blob = result.blob
    if isinstance(blob, list):
        answers = dict(zip(ran, codec.split(blob, result.sizes), strict=True))
        blob = [answers.get(i, memoryview(b"")) for i in range(len(sizes))]
    return replace(result, blob=blob, sizes=sizes, errors={ran[i]: text for i, text in result.errors.items()})


def gpu_class_of(worker: Any) -> str:
    """What kind of GPU a Dask worker has: its ``symphony.gpu-class`` setting, its CUDA device's name, or "cpu"."""
    import dask.config

    configured = dask.config.get("symphony.gpu-class", None)
    if configured:
        return str(configured)
    try:
        import torch

        return str(torch.cuda.get_device_name()) if torch.cuda.is_available() else "cpu"
    except ImportError:
        return "cpu"


class SymphonyWorkerPlugin(WorkerPlugin):
    """Installed on every worker by the scheduler's plugin; makes a slot of each unit of the worker's GPU resource."""

    name = "symphony"
    idempotent = True
    _slot_worker: SlotWorker | None = None
    _forget_metrics: Callable[[], None] | None = None
    _attempts: Attempts | None = None
    _told = False

    async def setup(self, worker: Any) -> None:
        """Serve, or say why not and try again; the worker is Dask's, and goes on in any case."""
        units = int(worker.state.total_resources.get("GPU", 0))
        if units >= 1:
            what = "Symphony cannot serve from this worker, and the worker goes on without it"
            self._attempts = Attempts(partial(self._try, worker, units), what)
            await self._attempts.outcome()

    async def _try(self, worker: Any, units: int) -> None:
        try:
            await self._serve(worker, units)
        except Exception as error:
            await self._tell(worker, brief(error))
            raise
        if self._told:
            await self._tell(worker, "")

    async def _tell(self, worker: Any, why: str) -> None:
        """Have the scheduler's status say why this worker does not serve."""
        self._told = bool(why)
        try:
            async with asyncio.timeout(_TELL_S):
                await worker.scheduler.symphony_worker_problem(worker=worker.address, why=why)
        except Exception as error:
            logger.info("the scheduler could not be told: %s", brief(error))

    async def _serve(self, worker: Any, units: int) -> None:
        config.load()
        gpu_class = await asyncio.to_thread(gpu_class_of, worker)
        memory, patience = config.memory_bytes("symphony.gpu.memory"), config.patience()
        config.ports("symphony.lane.worker-port")
        slots = [Slot(i, None) for i in range(units)]
        self._state = worker.state
        self._held: dict[Any, str] = {}
        self.rendezvous = Rendezvous(worker.state)
        self._slot_worker = slot_worker = SlotWorker(
            worker.address, slots, gpu_class, self.rendezvous, memory=memory, patience=patience
        )
        worker.handlers["symphony_load"] = _plain_errors(slot_worker.load)
        worker.handlers["symphony_unload"] = _plain_errors(slot_worker.unload)
        worker.handlers["symphony_loaded"] = _plain_errors(slot_worker.loaded)
        worker.handlers["symphony_answer"] = _plain_errors(slot_worker.answer)
        worker.handlers["symphony_profile"] = _plain_errors(slot_worker.profile)
        await slot_worker.listen(worker)
        slot_worker.start(worker.scheduler, worker.security)
        try:
            self._forget_metrics = expose(slot_worker)
        except Exception:
            logger.exception("slots cannot be shown on Dask's /metrics")

    def transition(self, key: Any, start: str, finish: str, **kwargs: Any) -> None:
        """Watch when held tasks come and go; called by Dask for every task. What has gone has no ``run_spec``."""
        if self._slot_worker is None:
            return
        if finish == "waiting":
            task = self._state.tasks.get(key)
            name = None if task is None else held_name(task.run_spec)
            if name is not None:
                self._held[key] = name
                self.rendezvous.seat(name)
        elif self._held and finish not in ("ready", "executing"):
            name = self._held.pop(key, None)
            if name is not None:
                self.rendezvous.forget(name)

    async def teardown(self, worker: Any) -> None:
        """Raises nothing: a worker that closes would not end."""
        if self._attempts is not None:
            self._attempts.stop()
        for take_down in (None if self._slot_worker is None else self._slot_worker.close, self._forget_metrics):
            try:
                if take_down is not None:
                    take_down()
            except Exception:
                logger.exception("Symphony did not leave this worker as it should")
