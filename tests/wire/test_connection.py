from __future__ import annotations

import asyncio
import gc
import socket
import struct
import weakref
from collections.abc import Awaitable, Callable
from itertools import pairwise
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from symphony_dask.errors import BadInput
from symphony_dask.wire import connection as lane
from symphony_dask.wire.messages import Op
from tests.helpers.lane.frames import Raw, raw_frame
from tests.helpers.lane.server import Frame, Server, listening, received, until

FIELDS = st.lists(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.binary(max_size=40) | st.text(max_size=20),
    max_size=4,
)


FRAMES = st.lists(st.tuples(st.integers(0, 9), FIELDS, st.binary(max_size=200)), max_size=8)


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


def test_a_message_that_cannot_be_written_spoils_none_after_it() -> None:
    async def main() -> None:
        server, sender = Server(), Server()
        async with listening(server.accept) as port:
            _, connection = await asyncio.get_running_loop().create_connection(sender.accept, "127.0.0.1", port)
            for field in (object(), 1 << 70, "\ud800"):
                with pytest.raises((TypeError, OverflowError, UnicodeEncodeError)):
                    connection.send(Raw(Op.CANCEL, "well", field))
            connection.send(Raw(Op.CANCEL, 7))
            await until(lambda: server.frames)
            connection.close()
        assert server.frames == [(Op.CANCEL, [7], b"")]

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
