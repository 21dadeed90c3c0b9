from __future__ import annotations

import asyncio
import gc
import socket
import struct
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from itertools import pairwise
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from symphony_dask.clock import now_ns
from symphony_dask.dispatcher.delay import Latency
from symphony_dask.dispatcher.dispatcher import Dispatcher
from symphony_dask.engine.latency_profile import LatencyProfile
from symphony_dask.errors import BadInput
from symphony_dask.trace import Outcome
from symphony_dask.wire import connection as lane
from symphony_dask.wire.connection import Connection
from symphony_dask.wire.handshake import connect
from symphony_dask.wire.hello import ClientHello, LinkHello, WorkerHello
from symphony_dask.wire.messages import Cancel, Done, Execute, Op, Result, Submit, in_parts
from symphony_dask.wire.records import (
    DONE_ROW,
    SUBMIT_ROW,
    make_column,
    make_records,
    read_column,
)
from tests.helpers.lane import Raw, fields_of, raw_frame

Frame = tuple[int, list[Any], bytes]

FIELDS = st.lists(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.binary(max_size=40) | st.text(max_size=20),
    max_size=4,
)
FRAMES = st.lists(st.tuples(st.integers(0, 9), FIELDS, st.binary(max_size=200)), max_size=8)


class Server:
    """A lane server that keeps what it gets."""

    def __init__(self) -> None:
        self.frames: list[Frame] = []
        self.connections: list[Connection[None]] = []
        self.lost: list[Exception | None] = []

    def accept(self) -> Connection[None]:
        self.connections.append(Connection(self.frame, lambda _, error: self.lost.append(error), None))
        return self.connections[-1]

    def frame(self, connection: Connection[None], op: int, fields: list[Any], blob: memoryview) -> None:
        self.frames.append((op, fields, bytes(blob)))


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0)


@asynccontextmanager
async def listening(accept: Callable[[], Connection[None]]) -> AsyncIterator[int]:
    """The port of a server on the loopback interface."""
    server = await asyncio.get_running_loop().create_server(accept, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


def received(pieces: list[bytes]) -> list[Frame]:
    """The frames that a server makes of ``pieces``, each given to it by one read."""

    async def main() -> list[Frame]:
        server = Server()
        connection = server.accept()
        for piece in pieces:
            feed(connection, piece)
        return server.frames

    return asyncio.run(main())


def feed(connection: Connection[None], piece: bytes) -> None:
    """Have a connection read ``piece``, as a transport does."""
    while piece:
        buffer = connection.get_buffer(-1)
        n = min(len(piece), len(buffer))
        buffer[:n] = piece[:n]
        connection.buffer_updated(n)
        piece = piece[n:]


def exchanged(write: Callable[[asyncio.StreamWriter], Awaitable[None]]) -> Server:
    """The server after a client wrote to it over TCP and the connection ended, which the server must see to."""

    async def main() -> Server:
        server = Server()
        async with listening(server.accept) as port, asyncio.timeout(10):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            await write(writer)
            assert await reader.read() == b""
            writer.close()
            await until(lambda: server.lost)
        return server

    return asyncio.run(main())


THREE: list[Frame] = [
    (Op.SUBMIT, [1, b"ab"], b"payload"),
    (Op.PONG, [2**62], b""),
    (Op.RESULT, [{0: ["ModelError", "x"]}], b"z"),
]


def test_a_frame_cut_anywhere_arrives_whole() -> None:
    data = b"".join(raw_frame(frame[0], *frame[1], blob=frame[2]) for frame in THREE)
    for at in range(len(data) + 1):
        assert received([data[:at], data[at:]]) == THREE


def test_frames_that_come_byte_by_byte_arrive_whole() -> None:
    data = b"".join(raw_frame(frame[0], *frame[1], blob=frame[2]) for frame in THREE)
    assert received([data[i : i + 1] for i in range(len(data))]) == THREE


def test_many_frames_in_one_read_arrive_in_order() -> None:
    frames: list[Frame] = [(Op.PONG, [i], b"x" * (i % 5)) for i in range(1000)]
    assert received([b"".join(raw_frame(frame[0], *frame[1], blob=frame[2]) for frame in frames)]) == frames


@given(FRAMES, st.lists(st.integers(0, 2000), max_size=5))
@settings(max_examples=60, deadline=None)
def test_what_is_sent_is_what_arrives(frames: list[Frame], cuts: list[int]) -> None:
    data = b"".join(raw_frame(frame[0], *frame[1], blob=frame[2]) for frame in frames)
    edges = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    assert received([data[a:b] for a, b in pairwise(edges)]) == frames


@given(FRAMES)
@settings(max_examples=20, deadline=None)
def test_send_delivers_over_tcp(frames: list[Frame]) -> None:
    async def main() -> None:
        server, sender = Server(), Server()
        async with listening(server.accept) as port:
            _, connection = await asyncio.get_running_loop().create_connection(sender.accept, "127.0.0.1", port)
            for op, fields, blob in frames:
                connection.send(Raw(op, *fields), blob)
            connection.close()
            await until(lambda: server.lost)
        assert server.frames == frames

    asyncio.run(main())


def test_frames_of_one_tick_leave_in_one_write() -> None:
    async def main() -> None:
        writes: list[bytes] = []

        class Transport(asyncio.Transport):
            def write(self, data: Any) -> None:
                writes.append(bytes(data))

            def is_closing(self) -> bool:
                return False

            def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
                pass

        connection = Server().accept()
        connection.connection_made(Transport({"socket": socket.socket()}))
        connection.send(Raw(Op.PING, 1))
        connection.send(Raw(Op.RESULT), b"blob")
        await until(lambda: writes)
        assert writes == [raw_frame(Op.PING, 1) + raw_frame(Op.RESULT, blob=b"blob")]

    asyncio.run(main())


def test_a_frame_above_the_limit_closes_the_connection_before_its_bytes_come(caplog: pytest.LogCaptureFixture) -> None:
    async def write(writer: asyncio.StreamWriter) -> None:
        writer.write(struct.pack("<II", 10, lane.MAX_FRAME_BYTES))

    assert exchanged(write).frames == []
    assert "the most is 1073741824" in caplog.text


@pytest.mark.parametrize(
    "data",
    [
        struct.pack("<II", 3, 0) + b"\xc1\xc1\xc1",  # no msgpack
        struct.pack("<II", 0, 0),  # no header
        struct.pack("<II", 1, 0) + msgpack.packb(5),  # a header that is no list
        struct.pack("<II", 1, 0) + msgpack.packb([]),  # without an op
        struct.pack("<II", 2, 0) + msgpack.packb(5) * 2,  # two values
        struct.pack("<II", 2, 0) + b"\x92\x01",  # a list cut short
    ],
)
def test_a_malformed_header_closes_the_connection(data: bytes) -> None:
    async def write(writer: asyncio.StreamWriter) -> None:
        writer.write(raw_frame(Op.PONG, 1))
        writer.write(data)
        writer.write(raw_frame(Op.PONG, 2))

    assert exchanged(write).frames == [(Op.PONG, [1], b"")]


def test_what_the_host_raises_closes_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any) -> None:
        raise BadInput("no")

    monkeypatch.setattr(Server, "frame", refuse)

    async def write(writer: asyncio.StreamWriter) -> None:
        writer.write(raw_frame(Op.PONG, 1) * 3)

    assert len(exchanged(write).lost) == 1


def test_a_closed_connection_sends_nothing_and_loses_nothing_twice() -> None:
    async def main() -> None:
        server, sender = Server(), Server()
        async with listening(server.accept) as port:
            _, connection = await asyncio.get_running_loop().create_connection(sender.accept, "127.0.0.1", port)
            connection.send(Raw(Op.PONG, 1))
            connection.close()
            connection.close()
            connection.send(Raw(Op.PONG, 2))
            await until(lambda: server.lost and sender.lost)
        assert server.frames == [(Op.PONG, [1], b"")]
        assert (server.lost, sender.lost) == ([None], [None])

    asyncio.run(main())


def test_a_closed_connection_is_kept_by_nobody() -> None:
    async def main() -> None:
        server, sender = Server(), Server()
        async with listening(server.accept) as port:
            await asyncio.get_running_loop().create_connection(sender.accept, "127.0.0.1", port)
            await until(lambda: server.connections)
            kept = [weakref.ref(found) for found in server.connections + sender.connections]
            server.connections.pop().close()
            await until(lambda: server.lost and sender.lost)
            sender.connections.clear()
            gc.collect()
            assert [found() for found in kept] == [None, None]

    asyncio.run(main())


def test_a_large_blob_that_the_peer_takes_slowly_arrives_whole_and_in_order() -> None:
    async def main() -> None:
        server, sender = Server(), Server()
        blobs = [bytes([i]) * 3_000_000 for i in range(4)]
        async with listening(server.accept) as port:
            _, connection = await asyncio.get_running_loop().create_connection(sender.accept, "127.0.0.1", port)
            await until(lambda: server.connections and server.connections[0]._transport)
            assert server.connections[0]._transport is not None
            server.connections[0]._transport.pause_reading()
            for i, blob in enumerate(blobs):
                connection.send(Raw(Op.DONE, i), blob, b"tail")
            await until(lambda: connection.stuck)
            # What the kernel did not take stays uncopied: at most one piece of it is in the transport.
            assert connection._transport is not None
            assert connection._transport.get_write_buffer_size() <= lane._WRITE_BYTES
            server.connections[0]._transport.resume_reading()
            connection.on_drained = connection.close
            await until(lambda: server.lost)
        assert server.frames == [(Op.DONE, [i], blob + b"tail") for i, blob in enumerate(blobs)]

    asyncio.run(main())


class Echo(Server):
    """A server end that sends a megabyte for each frame, and does not serve whom it cannot send to."""

    def accept(self) -> Connection[None]:
        connection = super().accept()
        connection.bounded = True
        return connection

    def frame(self, connection: Connection[None], op: int, fields: list[Any], blob: memoryview) -> None:
        self.frames.append((op, fields, b""))
        connection.send(Raw(Op.RESULT, *fields), bytes(1_000_000))


def test_who_does_not_read_answers_is_read_from_no_more_until_it_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lane, "PAUSE_BYTES", 2_000_000)
    n = 100

    async def main() -> None:
        server, client = Echo(), Server()
        async with listening(server.accept) as port:
            _, connection = await asyncio.get_running_loop().create_connection(client.accept, "127.0.0.1", port)
            await until(lambda: server.connections and server.connections[0]._transport)
            assert connection._transport is not None
            connection._transport.pause_reading()
            for i in range(n):
                # A read of the server takes one of these at most, so that it can stop after any.
                connection.send(Raw(Op.PONG, i), bytes(lane._READ_BYTES))
            await until(lambda: not server.connections[0]._reading)
            served = len(server.frames)
            assert served < n
            assert server.connections[0]._unsent <= 2_000_000 + 2_100_000
            connection._transport.resume_reading()
            await until(lambda: len(client.frames) == n)
            assert [fields for _, fields, _ in client.frames] == [[i] for i in range(n)]
            connection.close()

    asyncio.run(main())


def test_who_leaves_too_much_unread_is_hung_up_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(lane, "MOST_UNSENT_BYTES", 20_000_000)

    async def main() -> None:
        server, client = Echo(), Server()
        async with listening(server.accept) as port:
            _, connection = await asyncio.get_running_loop().create_connection(client.accept, "127.0.0.1", port)
            await until(lambda: server.connections and server.connections[0]._transport)
            assert connection._transport is not None
            connection._transport.pause_reading()
            for i in range(100):
                connection.send(Raw(Op.PONG, i))
            await until(lambda: server.lost)
            connection.close()

    asyncio.run(main())
    assert "bytes unread, and does not read them" in caplog.text


@pytest.mark.parametrize("reads", [True, False])
def test_who_has_much_to_read_may_take_its_time_but_must_read(monkeypatch: pytest.MonkeyPatch, reads: bool) -> None:
    monkeypatch.setattr(lane, "MAX_UNSENT_BYTES", 20_000_000)
    monkeypatch.setattr(lane, "LEAST_READ_BYTES_PER_S", 1_000_000)

    async def main() -> None:
        server, client = Server(), Server()
        async with listening(server.accept) as port:
            _, connection = await asyncio.get_running_loop().create_connection(client.accept, "127.0.0.1", port)
            await until(lambda: server.connections and server.connections[0]._transport)
            (sender,) = server.connections
            sender.bounded = True
            assert connection._transport is not None
            connection._transport.pause_reading()
            for i in range(40):
                sender.send(Raw(Op.RESULT, i), bytes(1_000_000))
            await until(lambda: sender.stuck)
            for _ in range(6):  # six seconds, as the listener counts them
                sender.mind_slow_reader(1.0)
                if reads and not sender.closed:
                    before = sender.bytes_out
                    connection._transport.resume_reading()
                    await until(lambda: sender.bytes_out >= before + 1_000_000)  # noqa: B023
                    connection._transport.pause_reading()
            assert sender.closed is not reads
            connection._transport.resume_reading()
            if reads:
                await until(lambda: len(client.frames) == 40)
            connection.abort()
            sender.abort()

    asyncio.run(main())


def test_a_peer_that_reads_as_fast_as_it_is_sent_to_leaves_others_their_turn() -> None:
    async def main() -> None:
        server, client = Server(), Server()
        async with listening(server.accept) as port:
            _, connection = await asyncio.get_running_loop().create_connection(client.accept, "127.0.0.1", port)
            await until(lambda: server.connections and server.connections[0]._transport)
            (sender,) = server.connections
            most = 0
            write = sender._write_some

            def counted(transport: Any) -> None:
                nonlocal written
                write(transport)
                written += 1

            written = 0
            sender._write_some = counted  # type: ignore[method-assign]
            sender.send(Raw(Op.RESULT, 0), bytes(100_000_000))
            while not client.frames:
                written = 0
                await asyncio.sleep(0)
                most = max(most, written)
            assert 1 <= most <= lane._TURN_BYTES // lane._WRITE_BYTES + 2
            connection.abort()
            sender.abort()

    asyncio.run(main())


def test_closing_sends_what_was_sent_before_however_much_it_is_and_takes_nothing_new() -> None:
    async def main() -> None:
        server, client = Server(), Server()
        async with listening(server.accept) as port:
            await asyncio.get_running_loop().create_connection(client.accept, "127.0.0.1", port)
            await until(lambda: server.connections and server.connections[0]._transport)
            (sender,) = server.connections
            sender.send(Raw(Op.RESULT, 0), bytes(50_000_000))
            sender.close()
            sender.send(Raw(Op.RESULT, 1))
            await until(lambda: client.lost and server.lost)
            assert [fields for _, fields, _ in client.frames] == [[0]]

    asyncio.run(main())


def test_payloads_go_into_frames_that_end_with_the_one_that_fills_them() -> None:
    mib = 1 << 20
    found = list(in_parts([mib, 20 * mib, -1, 15 * mib, mib, 3]))
    assert [(part.start, part.stop) for part in found] == [(0, 2), (2, 5), (5, 6)]
    assert list(in_parts([])) == []


def test_who_has_not_said_hello_cannot_reserve_memory() -> None:
    async def main(bench: Bench) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", bench.dispatcher.port)
        writer.write(struct.pack("<II", 10, lane.MAX_HELLO_BYTES))
        async with asyncio.timeout(10):
            assert await reader.read() == b""
        writer.close()

    on_bench(main)


def test_a_silent_peer_is_probed_by_the_kernel() -> None:
    async def main() -> None:
        server = Server()
        async with listening(server.accept) as port:
            _, connection = await asyncio.get_running_loop().create_connection(Server().accept, "127.0.0.1", port)
            await until(lambda: server.connections and server.connections[0]._transport)
            for end in (connection, server.connections[0]):
                assert end._transport is not None
                sock = end._transport.get_extra_info("socket")
                assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
                assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 30_000
            connection.close()

    asyncio.run(main())


def test_a_column_is_little_endian_bytes() -> None:
    assert make_column([1, -1]).tobytes() == b"\x01" + bytes(7) + b"\xff" * 8
    assert read_column(make_column([2**62, -5]).tobytes()).tolist() == [2**62, -5]
    with pytest.raises(BadInput, match="cannot be read as int64"):
        read_column(b"1234567")


def test_a_latency_is_smoothed_as_tcp_does() -> None:
    latency = Latency()
    latency.add(800)
    assert (latency.mean_ns, latency.deviation_ns) == (800, 400)
    latency.add(1600)
    assert (latency.mean_ns, latency.deviation_ns) == (900, 500)


# The dispatcher behind a lane


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


def test_each_request_gets_its_own_answer() -> None:
    async def main(bench: Bench) -> None:
        client = await bench.connect()
        payloads = [bytes([i]) * i for i in range(30)]
        bench.submit(client, list(range(30)), payloads)
        assert await bench.answered(*range(30)) == payloads
        assert sum(bench.batches) == 30
        assert max(bench.batches) == 8
        bench.dispatcher.engine.validate()

    on_bench(main)


@pytest.mark.parametrize(
    "first",
    [
        [Op.HELLO, {"token": "wrong", "versions": [8, 8], "role": "client"}],
        [Op.HELLO, {"token": "naïve", "versions": [8, 8], "role": "client"}],
        [Op.HELLO, {"versions": [8, 8], "role": "client"}],
        [Op.HELLO, "token"],
        [Op.HELLO],
        [Op.SUBMIT, b""],
        [Op.WELCOME, {}],
        [99],
    ],
    ids=str,
)
def test_who_does_not_say_hello_with_the_token_is_turned_away_and_others_are_served(first: list[Any]) -> None:
    async def main(bench: Bench) -> None:
        client = await bench.connect()
        reader, writer = await asyncio.open_connection("127.0.0.1", bench.dispatcher.port)
        writer.write(raw_frame(*first))
        async with asyncio.timeout(10):
            assert await reader.read() == b""
        writer.close()
        bench.submit(client, [1], [b"still here"])
        assert await bench.answered(1) == [b"still here"]

    on_bench(main)


def test_another_version_is_told_to_install_one_release(caplog: pytest.LogCaptureFixture) -> None:
    text = "the peer speaks lane versions 9 to 12, this release speaks version 8: install one release"

    async def main(bench: Bench) -> None:
        with pytest.raises(ConnectionError, match=text):
            await bench.greet(ClientHello(token=bench.dispatcher.token, versions=(9, 12)))

    on_bench(main)
    assert text in caplog.text


def test_a_client_of_version_7_is_told_so_and_hung_up_on() -> None:
    async def main(bench: Bench) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", bench.dispatcher.port)
        writer.write(raw_frame(Op.HELLO, {"token": bench.dispatcher.token, "version": 7, "role": "client"}))
        async with asyncio.timeout(10):
            said = await reader.read()
        writer.close()
        (op, text), _ = fields_of(said)
        assert op == Op.REFUSED
        assert text.startswith("the peer speaks lane version 7, this release speaks version 8: install one release")

    on_bench(main)


def test_a_client_that_means_a_worker_is_turned_away() -> None:
    async def main(bench: Bench) -> None:
        with pytest.raises(ConnectionError, match="turned the connection away"):
            await bench.greet(LinkHello(token=bench.dispatcher.token, client=1, link=0))

    on_bench(main)


def _submit(n: int = 1, **fields: Any) -> list[Any]:
    return Submit(make_records(SUBMIT_ROW, n, **{"id": 1, "bytes": 3, **fields})).encode()


@pytest.mark.parametrize(
    "fields",
    [
        _submit(bytes=4),
        _submit(bytes=-3),
        _submit(2),
        _submit(2, bytes=[2**62, 3 - 2**62]),
        _submit(4, bytes=[2**62, 2**62, 2**63 - 1, 4]),
        _submit(held=1),
        [Op.SUBMIT, b"123"],
        [Op.SUBMIT, 7],
        [Op.SUBMIT],
        [Op.DONE, 0, 0, 0, 0, 0, b"", {}, b"", [0, 0, 0]],
        [Op.EXECUTE],
    ],
    ids=[
        "size above the blob",
        "negative size",
        "sizes above the blob",
        "sizes that cancel out",
        "sizes that wrap around",
        "a blob of what is held",
        "half a record",
        "a number",
        "short",
        "of a worker",
        "of the scheduler",
    ],
)
def test_a_client_that_sends_nonsense_is_cut_off_and_others_are_served(fields: list[Any]) -> None:
    async def main(bench: Bench) -> None:
        good, bad = await bench.connect(), await bench.connect()
        bad.send(Raw(*fields), b"abc")
        await until(lambda: bad.closed)
        bench.submit(good, [2], [b"still here"])
        assert await bench.answered(2) == [b"still here"]
        assert bench.dispatcher.status()["clients"] == 1

    on_bench(main)


@pytest.mark.parametrize(
    ("sizes", "errors", "times"),
    [
        ([1], {}, (0, 0, 0)),
        ([2, 2], {}, (0, 0, 0)),
        ([4, -1], {}, (0, 0, 0)),
        ([3, 0], {2: [5, "an error of a third request"]}, (0, 0, 0)),
        ([1, 2], {0: [6, "an error that a worker does not know of"]}, (0, 0, 0)),
        ([1, 2], {0: ["no text"]}, (0, 0, 0)),
        ([1, 2], {}, (0, 2**62, 0)),
        ([1, 2], {}, (-1, 0, 0)),
        ([1, 2], {}, (0, 1.5, 0)),
        ([1, 2], {}, (0, "1", 0)),
    ],
)
def test_a_worker_that_reports_nonsense_is_cut_off_and_its_requests_are_run_elsewhere(
    sizes: list[int], errors: dict[int, Any], times: tuple[Any, ...]
) -> None:
    async def main(bench: Bench) -> None:
        def nonsense(connection: Connection[None], op: int, fields: list[Any], blob: memoryview) -> None:
            batch = Execute.decode(fields, blob)
            done = make_records(DONE_ROW, len(sizes), bytes=sizes, link=-1).tobytes()
            head = (Op.DONE, batch.batch, batch.slot, *times)
            connection.send(Raw(*head, done, errors, b"", [0, 0, 0]), bytes(blob))

        good_frame, bench.frame = bench.frame, nonsense  # type: ignore[method-assign]
        bench.dispatcher.drop_worker("w")
        bad = await bench.connect("bad")
        bench.frame = good_frame  # type: ignore[method-assign]
        client = await bench.connect()
        bench.submit(client, [1, 2], [b"a", b"bc"])
        await until(lambda: bad.closed)
        await bench.connect("good")
        assert await bench.answered(1, 2) == [b"a", b"bc"]
        bench.dispatcher.engine.validate()

    on_bench(main)


def test_requests_of_absurd_ages_and_slos_do_not_keep_others_from_being_served() -> None:
    ends = [2**63 - 1, -(2**63), 2**62, 2**61, -1, 0]

    async def main(bench: Bench) -> None:
        good, odd = await bench.connect(), await bench.connect()
        place_nothing(bench.dispatcher)
        rows = [(slo, age) for slo in ends for age in ends]
        slos, ages = zip(*rows, strict=True)
        ids = range(100, 100 + len(rows))
        odd.send(Submit(make_records(SUBMIT_ROW, len(rows), id=ids, bytes=1, slo=slos, age=ages)), b"x" * len(rows))
        bench.submit(good, [1], [b"served"])
        await until(lambda: bench.dispatcher.status()["models"]["m"]["queued"] > 1)
        await bench.connect("v")
        assert await bench.answered(1) == [b"served"]
        await bench.answered(*ids)  # in one way or another
        bench.dispatcher.engine.validate()

    on_bench(main)


def test_what_a_client_says_of_held_payloads_does_not_spoil_the_batch_of_another() -> None:
    async def main(bench: Bench) -> None:
        batches: list[Execute] = []

        def watch(connection: Connection[None], op: int, fields: list[Any], blob: memoryview) -> None:
            if op == Op.EXECUTE:
                batches.append(Execute.decode(fields, blob))

        good = await bench.connect()
        place_nothing(bench.dispatcher)
        bench.frame = watch  # type: ignore[method-assign]
        odd = await bench.connect()
        rows = make_records(SUBMIT_ROW, 2, id=[8, 9], bytes=[5, 5], held=[1, -1])  # which cancelled out once
        odd.send(Submit(rows))
        bench.submit(good, [1], [b"served"])
        await until(lambda: bench.dispatcher.status()["models"]["m"]["queued"] == 3)
        await bench.connect("v")
        await until(lambda: batches)
        assert sorted(batches[0].rows["held"].tolist()) == [0, 1, 1]
        assert batches[0].wait_ns > 0

    on_bench(main)


def test_counts_add_up_when_requests_are_cancelled_in_flight_and_their_worker_is_lost() -> None:
    async def main(bench: Bench) -> None:
        answer, bench.frame = bench.frame, lambda *frame: None  # type: ignore[method-assign,assignment]
        bench.dispatcher.drop_worker("w")
        await bench.connect("mute")
        bench.frame = answer  # type: ignore[method-assign]
        client = await bench.connect()
        bench.submit(client, [1, 2], [b"a", b"b"])
        await until(lambda: bench.dispatcher.in_flight("mute"))
        client.send(Cancel(make_column([1])))
        await until(lambda: np.count_nonzero(bench.dispatcher._requests.client >= 0) == 1)
        bench.dispatcher.drop_worker("mute")
        await bench.connect("w")
        assert await bench.answered(2) == [b"b"]
        outcomes = bench.dispatcher.status()["models"]["m"]["outcomes"]
        assert {k: v for k, v in outcomes.items() if v} == {"ok": 1, "cancelled": 1}
        bench.dispatcher.engine.validate()

    on_bench(main)


def test_requests_of_a_client_that_leaves_are_cancelled() -> None:
    async def main(bench: Bench) -> None:
        place_nothing(bench.dispatcher)
        client = await bench.connect()
        bench.submit(client, [1, 2, 3], [b"a", b"b", b"c"])
        await until(lambda: bench.dispatcher.status()["models"]["m"]["queued"] == 3)
        client.close()
        await until(lambda: bench.dispatcher.status()["models"]["m"]["queued"] == 0)
        assert bench.dispatcher.status()["models"]["m"]["outcomes"]["cancelled"] == 3
        bench.dispatcher.engine.validate()

    on_bench(main)


def test_a_request_of_higher_priority_takes_the_room_of_one_of_a_full_queue_which_is_answered_at_once() -> None:
    async def main(bench: Bench) -> None:
        made = bench.dispatcher
        made.add_model(
            made.new_model_id(), "narrow", 10_000_000_000, {"cpu": LatencyProfile(0.0, 0.1, 8)}, queue_limit=2
        )
        place_nothing(made)
        client = await bench.connect()
        bench.submit(client, [1, 2], [b"a", b"b"], model=1)
        await until(lambda: made.status()["models"]["narrow"]["queued"] == 2)
        bench.submit(client, [3], [b"c"], model=1, priority=1)
        assert await bench.answered(2) == [b""]
        assert made.status()["models"]["narrow"]["outcomes"]["rejected"] == 1
        await bench.connect("v")
        assert await bench.answered(1, 3) == [b"a", b"c"]
        made.engine.validate()

    on_bench(main)


def test_requests_left_without_a_gpu_end_at_their_deadline() -> None:
    async def main(bench: Bench) -> None:
        made = bench.dispatcher
        made.add_model(made.new_model_id(), "short", 50_000_000, {"cpu": LatencyProfile(0.0, 0.1, 8)})
        place_nothing(made)
        client = await bench.connect()
        bench.submit(client, [1], [b"a"], model=1)
        await until(lambda: made.status()["models"]["short"]["queued"] == 1)
        made.drop_worker("w")
        assert await bench.answered(1) == [b""]
        assert made.status()["models"]["short"]["outcomes"]["dropped"] == 1

    on_bench(main)


def test_delays_for_which_all_is_refused_are_soon_thought_to_be_over() -> None:
    async def main(bench: Bench) -> None:
        made = bench.dispatcher
        made.add_model(made.new_model_id(), "tight", 30_000_000, {"cpu": LatencyProfile(1.0, 20.0, 8)})
        client = await bench.connect()
        worker = made.workers["w"].peer
        worker.reply.mean_ns, worker.reply.deviation_ns = 5e9, 0.0  # no 9 ms are left of the SLO
        worker.control.mean_ns = 5e9
        made._follow_latency()
        counts = made.models[1].counts
        loop, end = asyncio.get_running_loop(), asyncio.get_running_loop().time() + 10
        while not counts[Outcome.OK] + counts[Outcome.LATE] and loop.time() < end:
            bench.submit(client, [1], [b"a"], model=1)
            bench.answers.clear()
            await bench.answered(1)
        assert counts[Outcome.OK] + counts[Outcome.LATE] > 0
        assert counts[Outcome.DROPPED] > 0

    on_bench(main)


def test_where_another_worker_serves_a_drained_one_gets_no_batch_and_may_come_back() -> None:
    async def main(bench: Bench) -> None:
        made = bench.dispatcher
        other = await bench.connect("v")
        await until(lambda: len(made.workers) == 2)
        made.drain_workers(["w", "gone"])
        assert (made.is_draining("w"), made.is_closing("w")) == (True, False)
        other.close()
        await until(lambda: len(made.workers) == 1)
        client = await bench.connect()
        bench.submit(client, [1], [b"a"])
        assert await bench.answered(1) == [b""]  # refused: nobody else is there
        assert made.undrain_worker("w")
        made.add_slots(made.workers["w"])
        bench.submit(client, [2], [b"b"])
        assert await bench.answered(2) == [b"b"]
        assert not made.undrain_worker("w")
        made.engine.validate()

    on_bench(main)


def test_the_last_worker_takes_what_is_queued_and_nothing_new_and_then_drains() -> None:
    async def main(bench: Bench) -> None:
        made = bench.dispatcher
        answer, bench.frame = bench.frame, lambda *frame: None  # type: ignore[method-assign,assignment]
        mute = await bench.connect("v")
        made.drop_worker("w")
        bench.frame = answer  # type: ignore[method-assign]
        client = await bench.connect()
        for i, there in enumerate((1, 2, 2)):  # two batches are at the worker, the third is queued
            bench.submit(client, [i], [b"a"])
            await until(lambda n=there: made.in_flight("v") == n)  # type: ignore[misc]
        await until(lambda: made.status()["models"]["m"]["queued"] == 1)
        made.drain_workers(["v"])
        assert made.is_closing("v")
        bench.submit(client, [9], [b"z"])
        assert await bench.answered(9) == [b""]
        made.drop_worker("v")  # the three are queued again
        mute.close()
        await bench.connect("u")
        assert await bench.answered(0, 1, 2) == [b"a"] * 3
        made.engine.validate()

    on_bench(main)


def test_a_request_whose_workers_keep_dying_ends_after_the_third() -> None:
    async def main(bench: Bench) -> None:
        made = bench.dispatcher
        answer, bench.frame = bench.frame, lambda *frame: None  # type: ignore[method-assign,assignment]
        made.drop_worker("w")
        mute = [await bench.connect(f"{i}") for i in range(3)]
        bench.frame = answer  # type: ignore[method-assign]
        client = await bench.connect()
        bench.submit(client, [1], [b"a"])
        for _ in mute:
            await until(lambda: any(made.in_flight(str(i)) for i in range(3)))
            made.drop_worker(next(str(i) for i in range(3) if made.in_flight(str(i))))
        assert await bench.answered(1) == [b""]
        assert made.status()["models"]["m"]["outcomes"]["failed"] == 1
        made.engine.validate()

    on_bench(main)
