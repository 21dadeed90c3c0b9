"""Serves from a Dask worker: takes batches off the lane, has its GPU slots run them, and sends the answers back.

A Dask worker with a ``GPU`` resource becomes as many slots as it has units. The event loop reads batches from the lane,
gathers their payloads (``batch_inbox``) and hands them to the slot's thread (``executor``); the thread runs them one
after the other, so that the next batch is already here when one ends. A model is loaded in a thread of its own, and
profiled run by run between batches, so that other models go on being served (``model_loading``).
"""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
from distributed.comm.addressing import get_address_host

from symphony_dask import config
from symphony_dask.backends import BatchResult, Runner, Staging
from symphony_dask.backends.emulated import Emulated
from symphony_dask.clock import now_ns
from symphony_dask.errors import DeploymentError
from symphony_dask.slot.batch_answers import no_answers, spread, without_too_large
from symphony_dask.slot.batch_inbox import Batch, BatchInbox
from symphony_dask.slot.executor import Loading, Running, Slot
from symphony_dask.slot.graph_batches import GraphBatch, GraphBatches
from symphony_dask.slot.model_loading import BetweenBatches, drop_runner, load_into
from symphony_dask.slot.profiling import profile_runner
from symphony_dask.text import LEAST_CHARS, MOST_NAME, bounded, brief, error_text, plain
from symphony_dask.timeouts import ConnectionTimeouts
from symphony_dask.wire import batch_codec, codec
from symphony_dask.wire.connection import Connection
from symphony_dask.wire.directions import SCHEDULER_TO_WORKER
from symphony_dask.wire.error_codes import ErrorCode, Failure
from symphony_dask.wire.handshake import connect
from symphony_dask.wire.hello import WorkerHello
from symphony_dask.wire.messages import Aside, Data, Done, Execute, Gone, IsAside
from symphony_dask.wire.records import NO_COLUMN, make_column
from symphony_dask.wire.rpc_replies import checked

logger = logging.getLogger(__name__)

#: Waits between attempts to reach the lane server, s.
RECONNECT_S = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0)

#: From so many bytes of payloads on, a batch is stacked and sent to its device ahead, while the one before runs.
STAGE_BYTES = 1 << 18

#: Above the number of any batch.
_ALL = 1 << 62

#: With so many threads that hang a slot loads no model any more: they are lost to the process, with what they hold.
MOST_STUCK = 8


class Times(NamedTuple):
    """Of a batch here, ns. spent_ns: on samples (before the run, where they were staged), on the model, on answers."""

    queued_ns: int
    run_ns: int
    spent_ns: tuple[int, int, int]


@dataclass
class SlotWorker:
    """The slots of one Dask worker, its lane connection, and its inbox for payloads from clients.

    gpu_class: what kind of GPU the slots are; workers of one class share profiles.
    lane: host and port where clients reach the inbox, None: they cannot.
    memory: bytes for models in each slot; None: no limit.
    timeouts: with clients' connections.
    """

    address: str
    slots: list[Slot]
    gpu_class: str
    graph_batches: GraphBatches
    connection: Connection[None] | None = None
    lane: tuple[str, int] | None = None
    memory: int | None = None
    timeouts: ConnectionTimeouts | None = None
    _specs: dict[int, bytes] = field(default_factory=dict, repr=False)
    _scheduler_id: str = ""
    _closing: bool = False
    _task: asyncio.Task[None] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        self.inbox = BatchInbox(self._start_batch, self.timeouts)

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

    def start(self, scheduler: object, security: object) -> None:
        """Keep a lane connection to ``scheduler``, an RPC of Dask's, from now on."""
        self._loop = asyncio.get_running_loop()
        self._task = self._loop.create_task(self._keep_connected(scheduler, security))

    def close(self) -> None:
        self._closing = True
        if self._task is not None:
            self._task.cancel()
        if self.connection is not None:
            self.connection.close()
        self.inbox.close()
        for slot in self.slots:
            slot.stop()

    async def _keep_connected(self, scheduler: Any, security: Any) -> None:
        attempt = 0
        while not self._closing:
            gone = asyncio.Event()

            def lost(connection: Connection[None], error: Exception | None, gone: asyncio.Event = gone) -> None:
                self.inbox.clear()
                for slot in self.slots:
                    slot.given_up = -1  # batches are numbered anew
                    slot.ended.clear()
                gone.set()

            try:
                info = checked(await scheduler.symphony_info())
                hello = WorkerHello(
                    token=info["token"],
                    worker=self.address,
                    host=plain(socket.gethostname(), MOST_NAME),
                    slots=len(self.slots),
                    gpu_class=plain(self.gpu_class, MOST_NAME),
                    lane=self.lane or ("", 0),
                    memory=self.memory,
                )
                self._forget_other_schedulers(info["scheduler"])
                self.inbox.token = info["token"]
                self.connection, welcome = await connect(
                    get_address_host(scheduler.address),
                    info["port"],
                    hello,
                    self._frame,
                    lost,
                    peer=None,
                    ssl_context=security.get_connection_args("worker").get("ssl_context"),
                )
                self.inbox.inline_bytes = welcome.inline_bytes
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
        threading.Thread(target=load_into, args=what, name=f"symphony-load-{slot}", daemon=True).start()
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
            return codec.form(batch_codec.split(result.blob, result.sizes)[0])

        return await asyncio.wrap_future(target.call(run))

    async def unload(self, model_id: int, slot: int | None = None) -> None:
        """Free a slot of a model, and return then; or (None) free all slots and the worker, soon.

        In both cases the batches that are here run before.
        """
        if slot is None:
            self._specs.pop(model_id, None)
            for target in self.slots:
                target.post(drop_runner, target, model_id)
        else:
            await asyncio.wrap_future(self.slots[slot].call(drop_runner, self.slots[slot], model_id))

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
        between = BetweenBatches(runner, target)
        measured = await asyncio.to_thread(
            profile_runner, between, codec.decode(example), max_batch, slo_ns, clock=between.clock
        )
        return measured.to_dict()

    def _frame(self, connection: Connection[None], op: int, fields: list[Any], blob: memoryview) -> None:
        self.connection = self.inbox.scheduler = connection
        message = SCHEDULER_TO_WORKER.read(op, fields, blob)
        if isinstance(message, Execute):
            self.inbox.execute(message, blob)
        elif isinstance(message, Data):
            self.inbox.data(message, blob)
        elif isinstance(message, Gone):
            self.inbox.gone(message.client)
        elif isinstance(message, Aside):
            self._set_aside(*message)
        else:
            self._resume(*message)

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
        if running is not None and running.graph is not None:
            running.graph.dismiss()
        if self.connection is not None:
            self.connection.send(IsAside(slot_number, batch))

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
            self.graph_batches.gather(batch.tasks, lambda graph: slot.post(self._run, connection, batch, graph))
        elif batch_codec.blob_bytes(batch.blob) >= STAGE_BYTES and isinstance(
            runner := slot.runners.get(batch.model_id), Staging
        ):
            slot.post_ahead(self._stage, connection, batch, runner)
        else:
            slot.post(self._run, connection, batch)

    def _stage(self, connection: Connection[None], batch: Batch, runner: Staging) -> None:
        """Stage a batch, in the thread for that, and have the rest run; what staging raises, the rest raises."""
        try:
            rest = runner.stage(batch.blob, batch.present_sizes())
        except BaseException as error:
            text, n = error_text(error), len(batch.present())
            rest = lambda: no_answers(n, text)  # noqa: E731
        batch.blob = memoryview(b"")  # its samples have been copied
        self.slots[batch.slot].post(self._run, connection, batch, None, rest)

    def _run(
        self,
        connection: Connection[None],
        batch: Batch,
        graph: GraphBatch | None = None,
        rest: Callable[[], BatchResult] | None = None,
    ) -> None:
        """Run one batch, or the rest of a staged one, in the slot's thread and answer from the event loop."""
        slot = self.slots[batch.slot]
        start_ns = now_ns()
        runner = slot.runners.get(batch.model_id)
        running = Running(batch, connection, runner, graph)
        with slot.lock:
            left = connection.closed or batch.number <= slot.given_up  # its requests are in a queue again
            if not left:
                slot.running = running
        if left:
            if graph is not None:
                graph.dismiss()
            return
        try:
            result = self._result(batch, runner, graph, rest)
        except BaseException as error:
            text = error_text(error)
            if graph is not None:
                graph.fail(text)
            result = no_answers(len(batch.sizes if graph is not None else batch.present()), text)
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
        if batch.lost and graph is None:
            result = spread(result, batch)
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
        self, batch: Batch, runner: Runner | None, graph: GraphBatch | None, rest: Callable[[], BatchResult] | None
    ) -> BatchResult:
        """The answers to a batch; raises whatever a model does, and ``ValueError`` for what cannot be sent."""
        if runner is None:
            raise LookupError(f"model {batch.model_id} is not loaded on worker {self.address}")
        sizes = batch.present_sizes()
        if graph is not None:
            result, n = graph.run(runner, batch), len(batch.sizes)
        elif rest is not None:
            result, n = rest(), len(sizes)
        else:
            result, n = runner.run(batch.blob, sizes) if len(sizes) else no_answers(0), len(sizes)
        total = batch_codec.blob_bytes(result.blob)
        if len(result.sizes) != n or int(np.add.reduce(result.sizes)) != total:
            got = f"{len(result.sizes)} answers of {total} bytes"
            raise ValueError(f"the model's runner gave {got} for {n} requests")
        return without_too_large(result)

    def _answer(self, connection: Connection[None], batch: Batch, result: BatchResult, times: Times) -> None:
        """Send what a batch came to. Whatever happens, DONE leaves: without it the slot would get no batch any more."""
        if connection.closed:  # whoever asked is gone, and numbers may begin anew
            return
        try:
            self._send_done(connection, batch, result, times)
        except Exception as error:
            logger.exception("the answers of batch %d cannot be sent", batch.number)
            text = f"its answer cannot be sent: {brief(error)}"
            self._send_done(connection, batch, no_answers(len(batch.sizes), plain(text, LEAST_CHARS)), times)

    def _send_done(self, connection: Connection[None], batch: Batch, result: BatchResult, times: Times) -> None:
        rows, parts = self.inbox.answer(batch, result, connection)
        failures = {
            i: Failure(ErrorCode.TASK_LATE if i in result.late else ErrorCode.MODEL_ERROR, text)
            for i, text in result.errors.items()
        }
        held_ns, lost = now_ns() - batch.received_ns, make_column(sorted(batch.lost)) if batch.lost else NO_COLUMN
        done = (batch.number, batch.slot, times.queued_ns, times.run_ns, held_ns, rows, failures, lost, times.spent_ns)
        connection.send(Done(*done), *parts)
