"""The lane: frames between clients, scheduler and workers, beside Dask's own comms.

A frame is a length-prefixed msgpack header and a blob of raw bytes:

    header bytes u32 LE | blob bytes u32 LE | header: msgpack [op, field, ...] | blob

One frame carries many requests: its fields are columns (raw little-endian int64 or int32 arrays), its blob the payloads
one after the other. So a request costs no object of its own until its payload is cut out. What is sent during one tick
of the event loop leaves in one write.

The first frame on a connection is HELLO with the cluster's token, which travels only over Dask's own channel. Anything
malformed closes the connection.

    op       direction            fields                                                      blob
    HELLO    to the scheduler     {token, version, role, worker, host, slots}
    WELCOME  from the scheduler   {connection}
    PING     from the scheduler   t_ns                                                        (answered by PONG t_ns)
    SUBMIT   from a client        models i4[], slos_ns i8[], ages_ns i8[], ids i8[], bytes i8[],  payloads
                                  priorities i1[]
    CANCEL   from a client        ids i8[]
    RESULT   to a client          ids i8[], outcomes i1[], bytes i8[], {index: [error, text]}    answers
    EXECUTE  to a worker          batch, slot, model, bytes i8[], [{index: held task}]        payloads
    DONE     from a worker        batch, slot, queued_ns, run_ns, held_ns, bytes i8[], {index: text}  answers
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
import struct
import time
from collections.abc import Callable
from typing import Any

import msgpack
import numpy as np
import numpy.typing as npt

from symphony_dask.errors import BadInput

logger = logging.getLogger(__name__)

#: Raised by one when frames change their meaning; both ends must agree.
VERSION = 2

HELLO, WELCOME, PING, PONG, SUBMIT, CANCEL, RESULT, EXECUTE, DONE = range(1, 10)

#: A frame with more bytes than this closes the connection.
MAX_FRAME_BYTES = 1 << 30

#: A peer that vanished without a word is given up after about so many seconds, as Dask's comms do it.
SILENCE_S = 30

_PREFIX = struct.Struct("<II")

Buffer = bytes | bytearray | memoryview


def column(values: Any, dtype: str = "<i8") -> bytes:
    """A column of a frame: ``values`` as raw little-endian bytes."""
    return np.asarray(values, dtype).tobytes()


def read_column(data: bytes, dtype: str = "<i8") -> npt.NDArray[Any]:
    """The column as an array; raises ``BadInput`` if its bytes do not make whole entries."""
    try:
        return np.frombuffer(data, dtype)
    except (ValueError, TypeError) as error:
        raise BadInput(f"lane column cannot be read as {dtype}: {error}") from None


class Connection(asyncio.Protocol):
    """One end of a lane connection.

    on_frame: called with (connection, op, fields, blob) for each frame; what it raises closes the connection.
    on_lost: called once with (connection, exception or None) when the connection is gone.
    """

    def __init__(
        self,
        on_frame: Callable[[Connection, int, list[Any], memoryview], None],
        on_lost: Callable[[Connection, Exception | None], None],
    ) -> None:
        self._on_frame = on_frame
        self._on_lost = on_lost
        self._buffer = bytearray()
        self._out: list[Buffer] = []
        self._flush_due = False
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self.closed = False
        #: What the host keeps about the peer.
        self.peer: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        _notice_silence(transport.get_extra_info("socket"))

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        self._out.clear()
        self._on_lost(self, exc)

    def data_received(self, data: bytes) -> None:
        if self._buffer:
            self._buffer += data
            if len(self._buffer) < _PREFIX.size or len(self._buffer) < self._frame_bytes(self._buffer, 0):
                return
            data = bytes(self._buffer)
            self._buffer.clear()
        at = 0
        view = memoryview(data)
        try:
            while not self.closed and len(data) - at >= _PREFIX.size:
                header_bytes, _ = _PREFIX.unpack_from(data, at)
                end = at + self._frame_bytes(data, at)
                if end > len(data):
                    break
                start = at + _PREFIX.size
                fields = msgpack.unpackb(view[start : start + header_bytes], strict_map_key=False)
                at = end
                self._on_frame(self, fields[0], fields[1:], view[start + header_bytes : end])
        except Exception:
            logger.warning("lane connection with %s closed: bad frame", self.describe(), exc_info=True)
            self.close()
            return
        self._buffer += view[at:]

    def _frame_bytes(self, data: bytes | bytearray, at: int) -> int:
        header_bytes, blob_bytes = _PREFIX.unpack_from(data, at)
        total: int = _PREFIX.size + header_bytes + blob_bytes
        if total > MAX_FRAME_BYTES:
            self.close()
            raise BadInput(f"lane frame of {total} bytes: the most is {MAX_FRAME_BYTES}")
        return total

    def send(self, fields: list[Any], blob: Buffer = b"") -> None:
        """Send a frame ``[op, field, ...]`` at the end of this tick; does nothing once the connection is closed."""
        if self.closed:
            return
        header = msgpack.packb(fields)
        self._out.append(_PREFIX.pack(len(header), len(blob)) + header)
        if len(blob):
            self._out.append(blob)
        if not self._flush_due:
            self._flush_due = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_due = False
        if self._transport is not None and self._out and not self._transport.is_closing():
            self._transport.write(self._out[0] if len(self._out) == 1 else b"".join(self._out))
        self._out.clear()

    def close(self) -> None:
        """Close after what was sent has left."""
        if not self.closed and self._transport is not None:
            self._flush()
            self.closed = True
            self._transport.close()

    def describe(self) -> str:
        """Address of the peer, for logs."""
        if self._transport is None:
            return "nobody"
        return str(self._transport.get_extra_info("peername"))


def _notice_silence(sock: Any) -> None:
    """Have the kernel probe an idle peer, and give up one that does not acknowledge what is sent to it."""
    options = {"TCP_KEEPIDLE": SILENCE_S // 3, "TCP_KEEPINTVL": SILENCE_S // 15, "TCP_KEEPCNT": 10}
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in (options | {"TCP_USER_TIMEOUT": SILENCE_S * 1000}).items():
            if hasattr(socket, name):
                sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    except OSError as error:
        logger.debug("lane connection without keepalive: %s", error)


async def connect(
    host: str,
    port: int,
    hello: dict[str, Any],
    on_frame: Callable[[Connection, int, list[Any], memoryview], None],
    on_lost: Callable[[Connection, Exception | None], None],
    *,
    ssl_context: ssl.SSLContext | None = None,
    timeout_s: float = 10.0,
) -> Connection:
    """Connect to a lane server and be welcomed; answers pings by itself.

    Raises ``OSError`` if the server cannot be reached or turns the connection away.
    """
    loop = asyncio.get_running_loop()
    welcomed: asyncio.Future[None] = loop.create_future()

    def frame(connection: Connection, op: int, fields: list[Any], blob: memoryview) -> None:
        if op == PING:
            connection.send([PONG, fields[0]])
        elif op == WELCOME:
            if not welcomed.done():
                welcomed.set_result(None)
        else:
            on_frame(connection, op, fields, blob)

    def lost(connection: Connection, error: Exception | None) -> None:
        if welcomed.done():
            on_lost(connection, error)
        else:
            welcomed.set_exception(ConnectionError(f"lane server {host}:{port} turned the connection away ({error})"))

    async def greet() -> Connection:
        _, connection = await loop.create_connection(lambda: Connection(frame, lost), host, port, ssl=ssl_context)
        connection.send([HELLO, hello])
        try:
            await welcomed
        except BaseException:
            connection.close()
            raise
        return connection

    return await asyncio.wait_for(greet(), timeout_s)


def now_ns() -> int:
    """The lane's clock: monotonic, the one that ``loop.call_at`` runs by."""
    return time.monotonic_ns()
