from __future__ import annotations

import asyncio
from typing import Any

import pytest

from symphony_dask.wire import connection as lane
from symphony_dask.wire.connection import Connection
from symphony_dask.wire.messages import Op
from tests.helpers.lane.frames import Raw
from tests.helpers.lane.server import Server, listening, until


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
