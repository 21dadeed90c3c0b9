"""Who is let in on a lane, and who is cut off for being slow."""

from __future__ import annotations

import asyncio
import gc
import secrets
import ssl
import struct
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from symphony_dask.dispatcher.sessions import worker_of
from symphony_dask.errors import BadInput
from symphony_dask.slot.batch_inbox import BatchInbox
from symphony_dask.timeouts import ConnectionTimeouts
from symphony_dask.wire import hello as greeting
from symphony_dask.wire import listener
from symphony_dask.wire.connection import Connection
from symphony_dask.wire.handshake import accept, connect
from symphony_dask.wire.hello import ClientHello, LinkHello, Welcome, WorkerHello, read_hello
from symphony_dask.wire.listener import Listener
from symphony_dask.wire.messages import Data, Op
from symphony_dask.wire.records import make_column
from tests.helpers.lane.frames import Raw, frame, raw_frame

TOKEN = "5" * 32


HELLO_FRAME = frame(ClientHello(token=TOKEN))


class Host:
    """Welcomes who has the token, and keeps what comes then."""

    def __init__(self, timeouts: ConnectionTimeouts) -> None:
        self.frames: list[tuple[int, int]] = []
        self.door: Listener[str] = Listener(self.frame, lambda *lost: None, timeouts=timeouts)

    def frame(self, connection: Connection[str | None], op: int, fields: list[Any], blob: memoryview) -> None:
        if connection.peer is None:
            accept(connection, op, fields, TOKEN)
            self.door.welcome(connection)
            connection.peer = "known"
            connection.send(Welcome())
        else:
            self.frames.append((op, len(blob)))


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> ConnectionTimeouts:
    monkeypatch.setattr(listener, "LOOK_S", 0.02)
    return ConnectionTimeouts(hello_s=0.2, frame_s=0.2)


def hosted(
    timeouts: ConnectionTimeouts, main: Callable[[Host], Awaitable[None]], context: ssl.SSLContext | None = None
) -> None:
    async def wrapped() -> None:
        host = Host(timeouts)
        await host.door.listen("127.0.0.1", 0, context)
        try:
            async with asyncio.timeout(20):
                await main(host)
        finally:
            host.door.close()
            host.door.hang_up()

    asyncio.run(wrapped())


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.001)


async def cut_off(reader: asyncio.StreamReader) -> None:
    """Return when the server has ended the connection."""
    try:
        while await reader.read(1000):
            pass
    except ConnectionError:
        pass


async def drip(writer: asyncio.StreamWriter, data: bytes) -> None:
    """A byte every 10 ms, for as long as the server lets one."""
    try:
        for byte in data:
            writer.write(bytes([byte]))
            await writer.drain()
            await asyncio.sleep(0.01)
    except ConnectionError:
        pass


async def entered(host: Host) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", host.door.port)
    writer.write(HELLO_FRAME)
    await reader.readexactly(len(frame(Welcome())))
    return reader, writer


@pytest.mark.parametrize("dripped", [b"", HELLO_FRAME[:-1]], ids=["silence", "a HELLO that drips"])
def test_who_has_not_said_hello_in_time_is_cut_off(quick: ConnectionTimeouts, dripped: bytes) -> None:
    async def main(host: Host) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", host.door.port)
        sending = asyncio.ensure_future(drip(writer, dripped))
        await cut_off(reader)
        await sending
        await until(lambda: not host.door.connections)
        writer.close()

    hosted(quick, main)


@pytest.mark.parametrize(
    "data",
    [
        b"\x05\0",  # a prefix without its end
        struct.pack("<II", 1000, 0) + b"x" * 100,  # a header
        struct.pack("<II", 1, 1 << 20) + b"\x90" + b"x" * 200,  # a body in a buffer of its own
    ],
    ids=["prefix", "header", "body"],
)
def test_who_lets_a_frame_drip_is_cut_off(
    quick: ConnectionTimeouts, data: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async def main(host: Host) -> None:
        reader, writer = await entered(host)
        sending = asyncio.ensure_future(drip(writer, data))
        await cut_off(reader)
        await sending
        await until(lambda: not host.door.connections)
        writer.close()

    hosted(quick, main)
    assert "a frame of which" in caplog.text


def test_who_is_idle_between_frames_stays(quick: ConnectionTimeouts) -> None:
    async def main(host: Host) -> None:
        _, writer = await entered(host)
        await asyncio.sleep(0.5)
        writer.write(raw_frame(Op.DATA, blob=b"abc"))
        await until(lambda: host.frames)
        assert host.frames == [(Op.DATA, 3)]
        writer.close()

    hosted(quick, main)


def test_a_large_frame_that_comes_fast_enough_may_take_longer(quick: ConnectionTimeouts) -> None:
    size = 400_000

    async def main(host: Host) -> None:
        _, writer = await entered(host)
        frame = raw_frame(Op.DATA, blob=bytes(size))
        for at in range(0, len(frame), 8_000):  # 400 kB/s at most, for half a second at least
            writer.write(frame[at : at + 8_000])
            await writer.drain()
            await asyncio.sleep(0.02)
        await until(lambda: host.frames)
        assert host.frames == [(Op.DATA, size)]
        writer.close()

    hosted(quick, main)


def test_frames_that_never_leave_the_buffer_empty_are_not_taken_for_one_that_drips(quick: ConnectionTimeouts) -> None:
    async def main(host: Host) -> None:
        _, writer = await entered(host)
        data = raw_frame(Op.DATA, blob=b"abc") * 60
        for at in range(0, len(data), 10):  # a frame is cut at nearly every write
            writer.write(data[at : at + 10])
            await writer.drain()
            await asyncio.sleep(0.005)
        await until(lambda: len(host.frames) == 60)
        writer.close()

    hosted(quick, main)


def test_tls_that_does_not_come_to_an_end_is_cut_off_and_leaves_nothing(
    quick: ConnectionTimeouts, tmp_path: Path
) -> None:
    pytest.importorskip("cryptography")
    from tests.helpers.certificates import Authority

    def alive() -> set[int]:
        gc.collect()
        return {id(found) for found in gc.get_objects() if isinstance(found, Connection)}

    async def main(host: Host) -> None:
        for sent in (b"", b"\x16\x03\x01", b"GET / HTTP/1.1\r\n\r\n"):
            reader, writer = await asyncio.open_connection("127.0.0.1", host.door.port)
            writer.write(sent)
            await cut_off(reader)
            writer.close()
        assert not host.door.connections

    before = alive()
    hosted(quick, main, Authority(tmp_path, "a").issue("server").server_context())
    assert alive() <= before


def test_lists_that_promise_more_than_they_have_cost_no_time() -> None:
    nested = b"\xdc\xff\xf0" * 1020 + bytes(62_000)  # which took msgpack 0.2 s once
    frame = struct.pack("<II", len(nested), 0) + nested

    async def main(host: Host) -> None:
        reader, writer = await entered(host)
        writer.write(frame)
        before = time.thread_time()
        await cut_off(reader)
        assert time.thread_time() - before < 0.05
        writer.close()

    hosted(ConnectionTimeouts(), main)


# Tokens


def test_tokens_are_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[bytes, bytes]] = []

    def compare(a: bytes, b: bytes) -> bool:
        compared.append((a, b))
        return secrets.compare_digest(a, b)

    monkeypatch.setattr(greeting, "compare_digest", compare)
    assert read_hello([{"token": TOKEN, "versions": [8, 8], "role": "client"}], TOKEN)[0].token == TOKEN
    for wrong in ("", TOKEN[:-1], None, 5, [TOKEN]):
        with pytest.raises(BadInput, match="wrong token"):
            read_hello([{"token": wrong, "versions": [8, 8], "role": "client"}], TOKEN)
    assert len(compared) == 6


def test_what_is_wrong_with_a_hello_is_told_without_the_token(caplog: pytest.LogCaptureFixture) -> None:
    for hello in ({"token": "guess-1"}, {"token": TOKEN, "version": 0}):
        with pytest.raises(BadInput) as raised:
            read_hello([hello], TOKEN)
        assert TOKEN not in str(raised.value)
        assert "guess-1" not in str(raised.value)


@pytest.mark.parametrize("known", [TOKEN, None], ids=["token known", "scheduler not reached yet"])
@pytest.mark.parametrize("token", [None, "", "0" * 32, TOKEN], ids=["none", "empty", "wrong", "right"])
def test_a_worker_takes_payloads_only_from_who_has_the_token(known: str | None, token: str | None) -> None:
    async def main() -> bool:
        inbox = BatchInbox(lambda batch: None)
        inbox.token = known
        port = await inbox.listen("127.0.0.1", [0], None)
        hello: Any = Raw(1, {"token": token, "versions": [8, 8], "role": "link", "client": 1, "link": 0})
        try:
            connection, _ = await connect("127.0.0.1", port, hello, lambda *frame: None, lambda *lost: None, peer=None)
        except ConnectionError:
            return False
        finally:
            inbox.close()
        connection.close()
        return True

    assert asyncio.run(main()) == (token == known == TOKEN)


@pytest.mark.parametrize("wrong", [{"client": -1}, {"client": "1"}, {"link": 2**31}, {"link": None}])
def test_a_worker_takes_no_numbers_that_it_could_not_answer_with(wrong: dict[str, Any]) -> None:
    async def main() -> None:
        inbox = BatchInbox(lambda batch: None)
        inbox.token = TOKEN
        port = await inbox.listen("127.0.0.1", [0], None)
        said = {"token": TOKEN, "versions": [8, 8], "role": "link", "client": 1, "link": 0}
        hello: Any = Raw(1, said | wrong)
        with pytest.raises(ConnectionError, match="turned the connection away"):
            await connect("127.0.0.1", port, hello, lambda *frame: None, lambda *lost: None, peer=None)
        inbox.close()

    asyncio.run(main())


@pytest.mark.parametrize(
    "wrong",
    [
        {"slots": 0},
        {"slots": 10**9},
        {"slots": "1"},
        {"worker": ["w"]},
        {"gpu_class": {}},
        {"lane": ["h", 70_000]},
        {"lane": [1, 2]},
        {"memory": -1},
        {"memory": "lots"},
    ],
    ids=str,
)
def test_a_worker_that_says_nonsense_of_itself_is_turned_away(wrong: dict[str, Any]) -> None:
    said = {"worker": "tcp://w:1", "host": "h", "gpu_class": "cpu", "slots": 1, "lane": ["h", 1], "memory": None}
    sound = {"token": TOKEN, "versions": [8, 8], "role": "worker", **said}
    hello, _ = read_hello([sound], TOKEN)
    assert isinstance(hello, WorkerHello)
    assert worker_of(hello).lane == ("h", 1)
    with pytest.raises(BadInput, match="lane HELLO has"):
        read_hello([sound | wrong], TOKEN)


@pytest.mark.parametrize("op", ["x\nERROR all is lost", b"\n" * 3000, [1] * 60])
def test_a_stranger_writes_no_line_of_its_own_into_the_log(op: Any, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        inbox = BatchInbox(lambda batch: None)
        inbox.token = TOKEN
        port = await inbox.listen("127.0.0.1", [0], None)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(raw_frame(op))
        await cut_off(reader)
        writer.close()
        inbox.close()

    asyncio.run(main())
    (line,) = [record.getMessage() for record in caplog.records if "bad frame" in record.getMessage()]
    assert "\n" not in line
    assert len(line) < 300


# Payloads for batches that are not there


def test_what_a_client_sends_for_batches_that_never_come_is_bounded_and_forgotten_with_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("symphony_dask.slot.batch_inbox.MOST_EARLY", 3)

    async def main() -> None:
        inbox = BatchInbox(lambda batch: None)
        inbox.token = TOKEN
        port = await inbox.listen("127.0.0.1", [0], None)
        hello = LinkHello(token=TOKEN, client=1, link=0)
        connection, _ = await connect("127.0.0.1", port, hello, lambda *frame: None, lambda *lost: None, peer=None)
        for batch in range(3):
            connection.send(Data(2**40 + batch, 1, make_column([1]), make_column([2])), b"ab")
        await until(lambda: len(inbox._early) == 3)
        inbox.data(Data(2**41, 2, make_column([1]), make_column([1])), memoryview(b"x"))  # another client's
        connection.send(Data(2**40 + 9, 1, make_column([1]), make_column([2])), b"ab")
        await until(lambda: connection.closed)
        await until(lambda: list(inbox._early) == [2**41])
        inbox.close()

    asyncio.run(main())
