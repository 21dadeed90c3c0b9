"""The lane's servers under mutated frames: of strangers, of a client, of a worker, and of a client at a worker."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import numpy as np

from symphony_dask.dispatcher.dispatcher import Dispatcher
from symphony_dask.engine.latency_profile import LatencyProfile
from symphony_dask.slot.batch_inbox import Batch, Inbox
from symphony_dask.wire import codec
from symphony_dask.wire.connection import (
    ANSWER,
    CANCEL,
    DATA,
    DONE,
    DONE_ROW,
    EXECUTE,
    EXECUTE_ROW,
    GONE,
    HELLO,
    PING,
    PONG,
    RESULT,
    RESULT_ROW,
    SUBMIT,
    SUBMIT_ROW,
    VERSION,
    Connection,
    column,
    pack_rows,
    read_rows,
)
from symphony_dask.wire.listener import Listener
from tests.fuzz.mutation import fields, mutated, records, value
from tests.fuzz.wire import Wire, feed, frame, frames

_S = 10**9


class Peer:
    """A well-behaved peer in this process, in place of a connection: a worker that answers each batch with what came,
    or a client that notes what was answered.
    """

    def __init__(self, dispatcher: Dispatcher, **hello: Any) -> None:
        self.peer: Any = None
        self.closed = False
        self.bytes_in = self.bytes_out = self.limit_bytes = 0
        self.bounded = False
        self.waits: set[int] = set()
        self._dispatcher = dispatcher
        self._next = 0
        made: Any = self
        self._connection: Connection = made
        dispatcher._frame(
            self._connection, HELLO, [{"token": dispatcher.token, "version": VERSION} | hello], memoryview(b"")
        )

    def send(self, given: list[Any], *blobs: Any) -> None:
        blob = b"".join(blobs)
        if given[0] == EXECUTE:
            asyncio.get_running_loop().call_soon(self._answer, given, blob)
        elif given[0] == RESULT:
            self.waits -= set(read_rows(given[1], RESULT_ROW)["id"].tolist())

    def _answer(self, given: list[Any], blob: bytes) -> None:
        _, batch, slot, _, rows, *_ = given
        sizes = np.where(read_rows(rows, EXECUTE_ROW)["held"] != 0, 0, read_rows(rows, EXECUTE_ROW)["bytes"])
        done = pack_rows(DONE_ROW, len(sizes), bytes=sizes, link=-1)
        lost = column(np.flatnonzero(read_rows(rows, EXECUTE_ROW)["held"]))
        self._dispatcher._frame(self._connection, DONE, [batch, slot, 0, 1000, 1000, done, {}, lost], memoryview(blob))

    def submit(self, payload: bytes = b"good") -> None:
        self._next += 1
        self.waits.add(self._next)
        row = pack_rows(SUBMIT_ROW, 1, id=self._next, bytes=len(payload))
        self._dispatcher._frame(self._connection, SUBMIT, [row], memoryview(payload))

    def close(self) -> None:
        self.closed = True
        self._dispatcher._lost(self._connection, None)


class Strangers:
    """Whoever connects, and what they send before, in place of and after HELLO; most have no token."""

    name = "lane: strangers"

    async def start(self) -> None:
        self._heard = 0
        self._door = Listener(self._frame, lambda *lost: None)
        self._corpus = [
            frame(HELLO, {"token": "0" * 32, "version": VERSION, "role": "client"}),
            frame(HELLO, {"token": "0" * 32, "version": VERSION, "role": "worker", "worker": "w", "slots": 1}),
            frame(SUBMIT, pack_rows(SUBMIT_ROW, 2, bytes=2), blob=b"abcd"),
            frame(DONE, 1, 0, 1, 1, 1, b"", {0: "x"}, b""),
            b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(64)),
            bytes(8),
        ]

    def _frame(self, connection: Connection, op: int, given: list[Any], blob: memoryview) -> None:
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
        assert not self._door._strangers

    async def end(self) -> None:
        assert self._heard, "no frame passed: the corpus is broken"


def client_frame(by: random.Random, batch: int) -> bytes:
    """What a client of the cluster may send that means harm, or does not know better; ``batch`` is a recent one."""
    n = by.choice((0, 1, 1, 2, 5, 20))
    sizes = [by.randrange(6) for _ in range(n)]
    held = [int(by.random() < 0.1) for _ in range(n)]
    rows = np.frombuffer(
        pack_rows(
            SUBMIT_ROW, n, id=[by.randrange(50) for _ in range(n)], bytes=sizes, held=held,
            model=[by.randrange(3) for _ in range(n)], slo=[by.choice((0, 0, _S, 1)) for _ in range(n)],
        ),
        SUBMIT_ROW,
    )  # fmt: skip
    blob = bytes(sum(s for s, h in zip(sizes, held, strict=True) if not h))
    kind = by.randrange(8)
    if kind < 3:
        return frame(SUBMIT, records(rows, by).tobytes(), blob=blob)
    given: list[Any] = by.choice(
        (
            [SUBMIT, rows.tobytes()],
            [CANCEL, column([by.randrange(50)])],
            [DATA, batch - by.randrange(3), 0, column([by.randrange(50)] * n), column(sizes)],
            [PONG, 10**15],
        )
    )
    if kind < 5:
        given[1:] = fields(given[1:], by)
        return frame(*given, blob=blob)
    if kind == 5:
        given[0] = by.choice((HELLO, PING, RESULT, EXECUTE, DONE, GONE, ANSWER, 0, 99, value(by)))
    data = frame(*given, blob=blob)
    return data if kind == 6 else mutated(data, by, (frame(PONG, 1), frame(CANCEL, b"")))


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
            self._worker = Peer(made, role="worker", worker="good", host="h", slots=2, gpu_class="cpu")
        self._client = Peer(made, role="client")
        self._batches: list[list[Any]] = []
        self.hung_up = 0
        self._connect()

    def _connect(self) -> None:
        self._connection = self.dispatcher._listener._accept()
        self._wire = Wire(self._connection)
        hello = {"token": self.dispatcher.token, "version": VERSION, "role": self._role}
        if self._role == "worker":
            hello |= {"worker": "bad", "host": "h", "slots": 2, "gpu_class": "cpu", "lane": ["h", 1]}
        feed(self._connection, self._wire, frame(HELLO, hello))
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
        self._batches += [given for given, _ in frames(self._wire.out) if given[0] == EXECUTE]
        if not self._batches:
            if len(self._client.waits) < 50:
                self._client.submit()
            return frame(PONG, 1)
        _, batch, slot, _, raw, *_ = by.choice(self._batches)
        sizes = read_rows(raw, EXECUTE_ROW)["bytes"]
        done = np.frombuffer(pack_rows(DONE_ROW, len(sizes), bytes=sizes, link=-1), DONE_ROW)
        given: list[Any] = [DONE, batch, slot, 1, 1000, 1000, done.tobytes(), {}, b""]
        blob = bytes(int(sizes.sum()))
        kind = by.randrange(8)
        if kind < 2:
            given[6] = records(done, by).tobytes()
        elif kind < 5:
            given[1:] = fields(given[1:], by)
        elif kind == 5:
            given[7] = {by.randrange(3): value(by)}
        elif kind == 6:
            return mutated(frame(*given, blob=blob), by)
        if by.random() < 0.02:  # give up what it has
            self._wire.close()
        return frame(*given, blob=blob)

    async def settle(self) -> None:
        """The good client is answered, and the books are right."""
        made = self.dispatcher
        if self._role == "worker":
            self._wire.close()
            await asyncio.sleep(0)
            helper = Peer(made, role="worker", worker="good", host="h", slots=2, gpu_class="cpu")
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
    given = [DATA, batch, 1, column(ids), column(sizes)]
    blob = bytes(sum(sizes))
    kind = by.randrange(5)
    if kind == 0:
        return frame(*given, blob=blob)
    if kind < 4:
        return frame(DATA, *fields(given[1:], by), blob=blob)
    return mutated(frame(*given, blob=blob), by)


class AtAWorker:
    """A client's payloads for batches at a worker, some of which come, and some never do."""

    name = "lane: a client at a worker"

    async def start(self) -> None:
        self._inbox = Inbox(self._complete)
        self._inbox.token = "t"
        self._completed = self._number = self._hung_up = 0
        self._connect()

    def _complete(self, batch: Batch) -> None:
        self._completed += 1
        assert codec.blob_bytes(batch.blob) == int(batch.present_sizes().sum())

    def _connect(self) -> None:
        self._connection = self._inbox._listener._accept()
        self._wire = Wire(self._connection)
        hello = {"token": "t", "version": VERSION, "client": 1, "link": 0}
        feed(self._connection, self._wire, frame(HELLO, hello))

    def step(self, by: random.Random) -> bytes:
        if self._wire.is_closing():
            self._hung_up += 1
            self._connect()
        n = by.randrange(1, 4)
        ids, sizes = list(range(n)), [by.randrange(5) for _ in range(n)]
        rows = pack_rows(EXECUTE_ROW, n, id=ids, bytes=sizes, client=[by.choice((1, 1, 2)) for _ in ids], held=1)
        self._number += 1
        data = data_frame(by, self._number + by.choice((0, 0, 0, 1, -1)), ids, sizes)
        if by.random() < 0.7:
            self._inbox.execute([self._number, 0, 0, rows, 5 * _S], memoryview(b""))
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
