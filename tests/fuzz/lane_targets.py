"""The lane's servers under mutated frames: of strangers, of a client, of a worker, and of a client at a worker."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import msgpack
import numpy as np

from symphony_dask.dispatcher.dispatcher import Dispatcher
from symphony_dask.engine.latency_profile import LatencyProfile
from symphony_dask.slot.batch_inbox import Batch, BatchInbox
from symphony_dask.wire import batch_codec
from symphony_dask.wire.connection import Connection, Message
from symphony_dask.wire.error_codes import ErrorCode
from symphony_dask.wire.hello import ClientHello, Hello, LinkHello, WorkerHello
from symphony_dask.wire.listener import Listener
from symphony_dask.wire.messages import Cancel, Data, Done, Execute, Op, Pong, Result, Submit
from symphony_dask.wire.records import DONE_ROW, EXECUTE_ROW, SUBMIT_ROW, Records, make_column, make_records
from tests.fuzz.mutation import fields, mutated, records, value
from tests.fuzz.wire import Wire, feed, frames
from tests.helpers.lane.frames import frame, raw_frame

_S = 10**9


def hello_of(token: str, worker: str = "") -> Hello:
    """Of a client, or of the worker of an address."""
    if worker:
        return WorkerHello(token=token, worker=worker, host="h", slots=2, gpu_class="cpu", lane=("h", 1))
    return ClientHello(token=token)


def done_fields(batch: Execute, rows: Records) -> list[Any]:
    """A DONE as it should be, to be spoilt."""
    return Done(batch.batch, batch.slot, 1, 1000, 1000, rows, {}, make_column([]), (0, 1000, 0)).encode()


class Peer:
    """A well-behaved peer in this process, in place of a connection: a worker that answers each batch with what came,
    or a client that notes what was answered.
    """

    def __init__(self, dispatcher: Dispatcher, worker: str = "") -> None:
        self.peer: Any = None
        self.closed = False
        self.bytes_in = self.bytes_out = self.limit_bytes = 0
        self.bounded = False
        self.waits: set[int] = set()
        self._dispatcher = dispatcher
        self._next = 0
        made: Any = self
        self._connection: Connection[Any] = made
        self._say(hello_of(dispatcher.token, worker))

    def _say(self, message: Message, blob: bytes = b"") -> None:
        op, *given = msgpack.unpackb(msgpack.packb(message.encode()), strict_map_key=False)
        self._dispatcher._frame(self._connection, op, given, memoryview(blob))

    def send(self, message: Message, *blobs: Any) -> None:
        blob = b"".join(blobs)
        if isinstance(message, Execute):
            asyncio.get_running_loop().call_soon(self._answer, message, blob)
        elif isinstance(message, Result):
            self.waits -= set(message.rows["id"].tolist())

    def _answer(self, batch: Execute, blob: bytes) -> None:
        sizes = np.where(batch.rows["held"] != 0, 0, batch.rows["bytes"])
        rows = make_records(DONE_ROW, len(sizes), bytes=sizes, link=-1)
        lost = make_column(np.flatnonzero(batch.rows["held"]))
        self._say(Done(batch.batch, batch.slot, 0, 1000, 1000, rows, {}, lost, (0, 1000, 0)), blob)

    def submit(self, payload: bytes = b"good") -> None:
        self._next += 1
        self.waits.add(self._next)
        self._say(Submit(make_records(SUBMIT_ROW, 1, id=self._next, bytes=len(payload))), payload)

    def close(self) -> None:
        self.closed = True
        self._dispatcher._lost(self._connection, None)


class Strangers:
    """Whoever connects, and what they send before, in place of and after HELLO; most have no token."""

    name = "lane: strangers"

    async def start(self) -> None:
        self._heard = 0
        self._door: Listener[Any] = Listener(self._frame, lambda *lost: None)
        self._corpus = [
            frame(hello_of("0" * 32)),
            frame(hello_of("0" * 32, "w")),
            frame(Submit(make_records(SUBMIT_ROW, 2, bytes=2)), b"abcd"),
            raw_frame(Op.DONE, 1, 0, 1, 1, 1, b"", {0: [ErrorCode.MODEL_ERROR, "x"]}, b"", [0, 1, 0]),
            b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(64)),
            bytes(8),
        ]

    def _frame(self, connection: Connection[Any], op: int, given: list[Any], blob: memoryview) -> None:
        """Takes every frame, so that all of them are parsed."""
        self._heard += 1

    def step(self, by: random.Random) -> bytes:
        data = b"".join(by.choice(self._corpus) for _ in range(by.randrange(1, 4)))
        data = mutated(data, by, self._corpus)
        connection = self._door._accept()
        wire = Wire(connection)
        at = by.randrange(len(data) + 1) if by.random() < 0.5 else len(data)
        feed(connection, wire, data[:at])
        feed(connection, wire, data[at:])
        assert connection._large is None or len(connection._large) <= connection.limit_bytes
        wire.close()
        return data

    async def settle(self) -> None:
        await asyncio.sleep(0)
        assert not self._door.connections, "connections that have ended are kept"
        assert not self._door._before_hello

    async def end(self) -> None:
        assert self._heard, "no frame passed: the corpus is broken"


def client_frame(by: random.Random, batch: int) -> bytes:
    """What a client of the cluster may send that means harm, or does not know better; ``batch`` is a recent one."""
    n = by.choice((0, 1, 1, 2, 5, 20))
    sizes = [by.randrange(6) for _ in range(n)]
    held = [int(by.random() < 0.1) for _ in range(n)]
    rows = make_records(
        SUBMIT_ROW, n, id=[by.randrange(50) for _ in range(n)], bytes=sizes, held=held,
        model=[by.randrange(3) for _ in range(n)], slo=[by.choice((0, 0, _S, 1)) for _ in range(n)],
    )  # fmt: skip
    blob = bytes(sum(s for s, h in zip(sizes, held, strict=True) if not h))
    kind = by.randrange(8)
    if kind < 3:
        return frame(Submit(records(rows, by)), blob)
    given: list[Any] = by.choice(
        (
            Submit(rows).encode(),
            Cancel(make_column([by.randrange(50)])).encode(),
            Data(batch - by.randrange(3), 0, make_column([by.randrange(50)] * n), make_column(sizes)).encode(),
            Pong(10**15).encode(),
        )
    )
    if kind < 5:
        given[1:] = fields(given[1:], by)
        return raw_frame(*given, blob=blob)
    if kind == 5:
        given[0] = by.choice((*range(1, 18), 0, 99, value(by)))
    data = raw_frame(*given, blob=blob)
    return data if kind == 6 else mutated(data, by, (frame(Pong(1)), frame(Cancel(make_column([])))))


class OfTheCluster:
    """A dispatcher with two models, a good client, and in ``dispatcher._listener`` one connection that is not good."""

    def __init__(self, role: str) -> None:
        self._role = role
        self.name = f"lane: a {role}"

    async def start(self) -> None:
        self.dispatcher = made = Dispatcher(policy="eager", max_requests=512, on_worker=lambda c: made.add_slots(c))
        await made.start("127.0.0.1")
        for name in ("m", "n"):
            made.add_model(made.new_model_id(), name, 60 * _S, {"cpu": LatencyProfile(0.0, 0.01, 8)})
        if self._role == "client":
            self._worker = Peer(made, "good")
        self._client = Peer(made)
        self._batches: list[Execute] = []
        self.hung_up = 0
        self._connect()

    def _connect(self) -> None:
        self._connection = self.dispatcher._listener._accept()
        self._wire = Wire(self._connection)
        hello = hello_of(self.dispatcher.token, "bad" if self._role == "worker" else "")
        feed(self._connection, self._wire, frame(hello))
        self._batches.clear()

    def step(self, by: random.Random) -> bytes:
        if self._wire.is_closing():
            self.hung_up += 1
            self._connect()
        if self._role == "client":
            self._wire.out.clear()
            data = client_frame(by, max(self.dispatcher._flights, default=0))
        else:
            data = self._of_a_worker(by)
        feed(self._connection, self._wire, data)
        if self._connection._filled and by.random() < 0.8:  # it promised more; most of what follows would be just that
            self._wire.close()
        return data

    def _of_a_worker(self, by: random.Random) -> bytes:
        self._batches += [
            Execute.decode(given[1:], memoryview(blob))
            for given, blob in frames(self._wire.out)
            if given[0] == Op.EXECUTE
        ]
        if not self._batches:
            if len(self._client.waits) < 50:
                self._client.submit()
            return frame(Pong(1))
        batch = by.choice(self._batches)
        sizes = batch.rows["bytes"]
        done = make_records(DONE_ROW, len(sizes), bytes=sizes, link=-1)
        given = done_fields(batch, done)
        blob = bytes(int(sizes.sum()))
        kind = by.randrange(8)
        if kind < 2:
            given[6] = records(done, by).tobytes()
        elif kind < 5:
            given[1:] = fields(given[1:], by)
        elif kind == 5:
            given[7] = {by.randrange(3): by.choice((value(by), [ErrorCode.MODEL_ERROR, value(by)]))}
        elif kind == 6:
            return mutated(raw_frame(*given, blob=blob), by)
        if by.random() < 0.02:  # give up what it has
            self._wire.close()
        return raw_frame(*given, blob=blob)

    async def settle(self) -> None:
        """The good client is answered, and the books are right."""
        made = self.dispatcher
        if self._role == "worker":
            self._wire.close()
            await asyncio.sleep(0)
            helper = Peer(made, "good")
        self._client.submit()
        async with asyncio.timeout(20):
            while self._client.waits:  # noqa: ASYNC110
                await asyncio.sleep(0)
        if self._role == "worker":
            helper.close()
        made.engine.validate()

    async def end(self) -> None:
        self._wire.close()
        await asyncio.sleep(0)
        assert self.hung_up, "nothing was found to be wrong: the mutations are broken"
        assert not np.any(self.dispatcher._requests.client >= 0), "requests of connections that are gone are kept"
        await self.dispatcher.stop()


def data_frame(by: random.Random, batch: int, ids: list[int], sizes: list[int]) -> bytes:
    """Payloads for a batch, whole or spoilt."""
    data = Data(batch, 1, make_column(ids), make_column(sizes))
    blob = bytes(sum(sizes))
    kind = by.randrange(5)
    if kind == 0:
        return frame(data, blob)
    if kind < 4:
        return raw_frame(Op.DATA, *fields(data.encode()[1:], by), blob=blob)
    return mutated(frame(data, blob), by)


class AtAWorker:
    """A client's payloads for batches at a worker, some of which come, and some never do."""

    name = "lane: a client at a worker"

    async def start(self) -> None:
        self._inbox = BatchInbox(self._complete)
        self._inbox.token = "t"
        self._completed = self._number = self._hung_up = 0
        self._connect()

    def _complete(self, batch: Batch) -> None:
        self._completed += 1
        assert batch_codec.blob_bytes(batch.blob) == int(batch.present_sizes().sum())

    def _connect(self) -> None:
        self._connection = self._inbox._listener._accept()
        self._wire = Wire(self._connection)
        feed(self._connection, self._wire, frame(LinkHello(token="t", client=1, link=0)))

    def step(self, by: random.Random) -> bytes:
        if self._wire.is_closing():
            self._hung_up += 1
            self._connect()
        n = by.randrange(1, 4)
        ids, sizes = list(range(n)), [by.randrange(5) for _ in range(n)]
        rows = make_records(EXECUTE_ROW, n, id=ids, bytes=sizes, client=[by.choice((1, 1, 2)) for _ in ids], held=1)
        self._number += 1
        data = data_frame(by, self._number + by.choice((0, 0, 0, 1, -1)), ids, sizes)
        if by.random() < 0.7:
            self._inbox.execute(Execute(self._number, 0, 0, rows, 5 * _S), memoryview(b""))
        feed(self._connection, self._wire, data)
        if self._connection._filled and by.random() < 0.8:  # it promised more; most of what follows would be just that
            self._wire.close()
        return data

    async def settle(self) -> None:
        for client in (1, 2):
            self._inbox.gone(client)
        await asyncio.sleep(0)
        assert not self._inbox._waiting
        assert sum(map(len, self._inbox._early.values())) <= 1024

    async def end(self) -> None:
        assert self._completed
        assert self._hung_up
        self._inbox.close()
        await asyncio.sleep(0)
