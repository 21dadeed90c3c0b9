"""The worker's side: loads models, runs batches on its GPU slots, one thread a slot.

A Dask worker with a ``GPU`` resource becomes as many slots as it has units. The event loop reads batches from the lane
and hands them to the slot's thread; the thread runs them one after the other, so that the next batch is already here
when one ends.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import socket
import threading
import traceback
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from distributed.comm.addressing import get_address_host
from distributed.diagnostics.plugin import WorkerPlugin
from distributed.protocol.pickle import loads

from symphony_dask import codec
from symphony_dask.backends import BatchResult, ModelSpec, Runner, load
from symphony_dask.backends.emulated import Emulated
from symphony_dask.graph import held_name
from symphony_dask.lane import DONE, EXECUTE, MAX_FRAME_BYTES, VERSION, Connection, connect, now_ns, read_column
from symphony_dask.rendezvous import Guests, Rendezvous

logger = logging.getLogger(__name__)

#: Waits between attempts to reach the lane server, s.
RECONNECT_S = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0)


#: The answers of a batch together, bytes; the rest of a frame is for its header.
MAX_ANSWER_BYTES = MAX_FRAME_BYTES - (1 << 24)


class Slot:
    """One GPU slot: a thread and the runners that it has loaded. Everything a runner does happens in this thread."""

    def __init__(self, number: int, device: str | None) -> None:
        self.number = number
        self.device = device
        self.runners: dict[int, Runner] = {}
        self._jobs: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name=f"symphony-slot-{number}", daemon=True)
        self._thread.start()

    def call(self, function: Any, *args: Any) -> Future[Any]:
        """Run ``function(*args)`` in the slot's thread."""
        future: Future[Any] = Future()
        self._jobs.put((future, function, args))
        return future

    def post(self, function: Any, *args: Any) -> None:
        """Run ``function(*args)``, which does not raise, in the slot's thread."""
        self._jobs.put((None, function, args))

    def stop(self) -> None:
        self._jobs.put(None)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            future, function, args = job
            try:
                result = function(*args)
            except BaseException as error:
                if future is None:
                    logger.exception("slot %d", self.number)
                else:
                    future.set_exception(error)
            else:
                if future is not None:
                    future.set_result(result)


@dataclass
class SlotWorker:
    """The slots of one Dask worker and its lane connection.

    gpu_class: what kind of GPU the slots are; workers of one class share profiles.
    """

    address: str
    slots: list[Slot]
    gpu_class: str
    rendezvous: Rendezvous
    connection: Connection | None = None
    _closing: bool = False
    _task: asyncio.Task[None] | None = field(default=None, repr=False)

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
        for slot in self.slots:
            slot.stop()

    async def _stay_connected(self, scheduler: Any, security: Any) -> None:
        attempt = 0
        while not self._closing:
            gone = asyncio.Event()

            def lost(connection: Connection, error: Exception | None, gone: asyncio.Event = gone) -> None:
                gone.set()

            try:
                info = await scheduler.symphony_info()
                hello = {
                    "token": info["token"],
                    "version": VERSION,
                    "role": "worker",
                    "worker": self.address,
                    "host": socket.gethostname(),
                    "slots": len(self.slots),
                    "gpu_class": self.gpu_class,
                }
                self.connection = await connect(
                    get_address_host(scheduler.address),
                    info["port"],
                    hello,
                    self._frame,
                    lost,
                    ssl_context=security.get_connection_args("worker").get("ssl_context"),
                )
                attempt = 0
                await gone.wait()
            except Exception as error:
                logger.info("no lane connection to the scheduler yet: %s", error)
            await asyncio.sleep(RECONNECT_S[min(attempt, len(RECONNECT_S) - 1)])
            attempt += 1

    async def load(self, model_id: int, spec: bytes, example: bytes | None) -> None:
        """Load a model into every slot; raises ``DeploymentError``, or what unpickling raises."""

        def load_into(slot: Slot) -> None:
            if model_id not in slot.runners:
                model: ModelSpec = loads(spec)
                slot.runners[model_id] = load(model, slot.device, None if example is None else codec.decode(example))

        await asyncio.gather(*(asyncio.wrap_future(s.call(load_into, s)) for s in self.slots))

    async def unload(self, model_id: int) -> None:
        for slot in self.slots:
            slot.post(slot.runners.pop, model_id, None)

    async def profile(self, model_id: int, example: bytes | None, max_batch: int, slo_ns: int | None) -> dict[str, Any]:
        """l(b) of a loaded model, measured on the first slot (``profiling.profile_runner``)."""
        from symphony_dask.profiling import profile_runner

        def measure() -> dict[str, Any]:
            runner = slot.runners[model_id]
            if isinstance(runner, Emulated):
                return runner.profile(max_batch).to_dict()
            if example is None:
                raise ValueError("no profile and no example: pass deploy(..., example=one_sample) to have it measured")
            return profile_runner(runner, codec.decode(example), max_batch, slo_ns).to_dict()

        slot = self.slots[0]
        return await asyncio.wrap_future(slot.call(measure))

    def _frame(self, connection: Connection, op: int, fields: list[Any], blob: memoryview) -> None:
        if op == EXECUTE:
            batch, slot, model_id, sizes, *held = fields
            job = (connection, batch, slot, model_id, read_column(sizes), blob, now_ns())
            if held:
                self.rendezvous.gather(held[0], lambda guests: self.slots[slot].post(self._run, *job, guests))
            else:
                self.slots[slot].post(self._run, *job)

    def _run(
        self,
        connection: Connection,
        batch: int,
        slot: int,
        model_id: int,
        sizes: Any,
        blob: memoryview,
        received_ns: int,
        guests: Guests | None = None,
    ) -> None:
        """Run one batch in the slot's thread and answer from the event loop."""
        start_ns = now_ns()
        try:
            runner = self.slots[slot].runners.get(model_id)
            if runner is None:
                raise LookupError(f"model {model_id} is not loaded on worker {self.address}")
            result = runner.run(blob, sizes) if guests is None else guests.run(runner, blob, sizes)
            if len(result.blob) > MAX_ANSWER_BYTES:
                raise ValueError(f"the answers of a batch have {len(result.blob)} bytes: at most {MAX_ANSWER_BYTES}")
        except BaseException:
            text = traceback.format_exc()
            if guests is not None:
                guests.fail(text)
            result = BatchResult(
                memoryview(b""), np.zeros(len(sizes), np.int64), dict.fromkeys(range(len(sizes)), text)
            )
        end_ns = now_ns()

        def answer() -> None:
            held_ns = now_ns() - received_ns
            queued_ns, run_ns = start_ns - received_ns, end_ns - start_ns
            sizes_raw = np.asarray(result.sizes, "<i8").tobytes()
            connection.send([DONE, batch, slot, queued_ns, run_ns, held_ns, sizes_raw, result.errors], result.blob)

        try:
            self._loop.call_soon_threadsafe(answer)
        except RuntimeError:  # the event loop is closed, and with it the connection
            pass


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

    async def setup(self, worker: Any) -> None:
        units = int(worker.state.total_resources.get("GPU", 0))
        if units < 1:
            return
        gpu_class = await asyncio.to_thread(gpu_class_of, worker)
        slots = [Slot(i, None) for i in range(units)]
        self._state = worker.state
        self._held: dict[Any, str] = {}
        self.rendezvous = Rendezvous(worker.state)
        self._slot_worker = slot_worker = SlotWorker(worker.address, slots, gpu_class, self.rendezvous)
        worker.handlers["symphony_load"] = slot_worker.load
        worker.handlers["symphony_unload"] = slot_worker.unload
        worker.handlers["symphony_profile"] = slot_worker.profile
        slot_worker.start(worker.scheduler, worker.security)

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
        if self._slot_worker is not None:
            self._slot_worker.close()
