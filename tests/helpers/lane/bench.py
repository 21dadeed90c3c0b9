"""A dispatcher with a fake worker and any number of clients, over TCP in one process."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from symphony_dask.clock import now_ns
from symphony_dask.dispatcher.dispatcher import Dispatcher
from symphony_dask.engine.latency_profile import LatencyProfile
from symphony_dask.wire.connection import Connection
from symphony_dask.wire.handshake import connect
from symphony_dask.wire.hello import ClientHello, WorkerHello
from symphony_dask.wire.messages import Done, Execute, Op, Result, Submit
from symphony_dask.wire.records import (
    DONE_ROW,
    SUBMIT_ROW,
    make_column,
    make_records,
)
from tests.helpers.lane.server import until


class Bench:
    """A dispatcher with one fake worker, which answers each batch with its own payloads, and any number of clients."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        self.dispatcher = dispatcher
        self.answers: dict[int, bytes] = {}
        self.batches: list[int] = []

    async def connect(self, worker: str = "") -> Connection[None]:
        """A client, or the worker of an address."""
        token = self.dispatcher.token
        said = WorkerHello(token=token, worker=worker, host="h", slots=1, gpu_class="cpu")
        return await self.greet(said if worker else ClientHello(token=token))

    async def greet(self, hello: Any) -> Connection[None]:
        port, frame = self.dispatcher.port, self.frame
        connection, _ = await connect("127.0.0.1", port, hello, frame, lambda *lost: None, peer=None)
        return connection

    def frame(self, connection: Connection[None], op: int, fields: list[Any], blob: memoryview) -> None:
        if op == Op.EXECUTE:
            batch = Execute.decode(fields, blob)
            self.batches.append(len(batch.rows))
            done = make_records(DONE_ROW, len(batch.rows), bytes=batch.rows["bytes"], link=-1)
            times = (0, 1000, 1000)
            connection.send(Done(batch.batch, batch.slot, *times, done, {}, make_column([]), (0, 1000, 0)), bytes(blob))
        else:
            assert op == Op.RESULT
            at = 0
            for request, size, *_ in Result.decode(fields, blob).rows.tolist():
                self.answers[request] = bytes(blob[at : at + size])
                at += size

    def submit(
        self, client: Connection[None], ids: list[int], payloads: list[bytes], model: int = 0, priority: int = 0
    ) -> None:
        sizes = [len(p) for p in payloads]
        rows = make_records(SUBMIT_ROW, len(ids), id=ids, bytes=sizes, model=model, priority=priority)
        client.send(Submit(rows), b"".join(payloads))

    async def answered(self, *ids: int) -> list[bytes]:
        await until(lambda: all(i in self.answers for i in ids))
        return [self.answers[i] for i in ids]


def place_nothing(made: Dispatcher) -> None:
    """Have the engine leave requests queued, as if the worker were busy."""
    for gpu in made.workers["w"].peer.gpus:
        made.engine.drain_gpu(now_ns(), gpu)


def on_bench(main: Callable[[Bench], Awaitable[None]]) -> None:
    """Run ``main`` with a served model 0 of SLO 60 s."""

    async def wrapped() -> None:
        made = Dispatcher(policy="eager", max_requests=64, on_worker=lambda c: made.add_slots(c))
        await made.start("127.0.0.1")
        bench = Bench(made)
        try:
            made.add_model(made.new_model_id(), "m", 60 * 10**9, {"cpu": LatencyProfile(0.0, 0.1, 8)})
            await bench.connect("w")
            await main(bench)
        finally:
            await made.stop()

    asyncio.run(wrapped())
