"""Carries frames between clients, scheduler and workers: the framing and flow control of the lane's connections.

A frame is a length-prefixed msgpack header and a blob of raw bytes:

    header bytes u32 LE | blob bytes u32 LE | header: msgpack [op, field, ...] | blob

What the fields mean is the business of ``messages``. One frame carries many requests. What is sent during one tick of
the event loop leaves together. A large frame is read into the one buffer that its payloads stay in, and large blobs are
handed to the kernel as they are, not joined; they leave in slices, so that a loop that moves gigabytes still answers
pings. Anything malformed closes the connection.

Back-pressure: an end that serves clients (``Connection.bounded``) stops reading from a client that leaves more than
``PAUSE_BYTES`` unread, until that is read, and hangs up on one that leaves more than ``MAX_UNSENT_BYTES`` and reads too
slowly, or more than ``MOST_UNSENT_BYTES``. Clients read
always, and scheduler and workers always read each other, so no two ends can wait for each other; what is under way
between the latter is bounded by the two batches that a slot may have.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, Generic, NoReturn, Protocol, TypeVar, cast

import msgpack
import numpy as np

from symphony_dask.errors import BadInput

logger = logging.getLogger(__name__)

#: A frame with more bytes than this closes the connection.
MAX_FRAME_BYTES = 1 << 30

#: The largest frame that a server takes from who has not said HELLO yet.
MAX_HELLO_BYTES = 1 << 12

#: No list in a header has more entries. Without a limit, 1,000 nested ones in 64 KiB take msgpack 0.2 s.
_MAX_LIST = 64

#: A server reads no more from a client that leaves so much unread, bytes.
PAUSE_BYTES = 1 << 24

#: A client that leaves so much unread, bytes, must read at this rate, bytes/s, and pause no longer than so many s.
MAX_UNSENT_BYTES, LEAST_READ_BYTES_PER_S, UNREAD_S = 1 << 28, 1 << 22, 1.0

#: It is hung up on at once if it leaves so much unread; the frame that passes the limit is still sent.
MOST_UNSENT_BYTES = 1 << 31

#: What a peer has not read so long after the connection was closed is thrown away, s.
CLOSE_S = 10.0

#: A peer that vanished without a word is given up after about so many seconds, as Dask's comms do it.
SILENCE_S = 30

_PREFIX = struct.Struct("<II")
_PREFIX_BYTES = _PREFIX.size

_packers = threading.local()

#: Bytes that one read takes at most, but for large frames.
_READ_BYTES = 1 << 16

#: A frame of more bytes that has not come whole gets a buffer of its own.
_LARGE_BYTES = 1 << 14

#: What is smaller leaves in one write; what is larger is written in pieces, so that little of it is ever copied.
_JOIN_BYTES = 1 << 16
_WRITE_BYTES = 1 << 18

#: After so many bytes, sent or read, others have their turn. A peer that reads as fast would keep the loop for ever.
_TURN_BYTES = 1 << 21

Buffer = bytes | bytearray | memoryview

P = TypeVar("P")


class Message(Protocol):
    """What a connection sends, as ``messages`` and ``hello`` define them."""

    def encode(self) -> list[Any]:
        """The fields of the frame's header, its op first."""


#: Called with (connection, op, fields, blob) for each frame; and once with (connection, exception or None) at its end.
OnFrame = Callable[["Connection[P]", int, list[Any], memoryview], None]
OnLost = Callable[["Connection[P]", Exception | None], None]


class Connection(asyncio.BufferedProtocol, Generic[P]):
    """One end of a lane connection.

    on_frame: called with (connection, op, fields, blob) for each frame; what it raises closes the connection. The blob
        may be kept: its memory is never used again.
    on_lost: called once with (connection, exception or None) when the connection is gone.
    peer: what the host keeps about the peer; None before HELLO, where there is something to keep.
    """

    def __init__(self, on_frame: OnFrame[P], on_lost: OnLost[P], peer: P) -> None:
        self._on_frame = on_frame
        self._on_lost = on_lost
        # Either the buffer of a large frame under way, or the one that everything else is read into.
        self._large: memoryview | None = None
        self._small = np.empty(_READ_BYTES, np.uint8).data
        self._filled = 0
        self._needed = _PREFIX_BYTES
        self._out: deque[Buffer] = deque()
        self._unsent = 0
        self._flush_due = False
        self._reading = True
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self.closed = False
        # Where in the stream the frame under way began when it was looked at, and how long ago that was.
        self._frame_at, self._frame_s = -1, 0.0
        #: Called when the connection is there, TLS included.
        self.on_made: Callable[[Connection[P]], None] | None = None
        self.peer = peer
        #: A larger frame closes the connection, bytes.
        self.limit_bytes = MAX_FRAME_BYTES
        #: Whether a peer that does not read is read from no more, and hung up on at last.
        self.bounded = False
        #: Whether the peer, or the network, is not taking what is sent; ``on_drained`` is called when it does again.
        self.stuck = False
        self.on_drained: Callable[[], None] | None = None
        self.bytes_in = 0
        self.bytes_out = 0
        #: How often the peer was found to have read what it, or the network, had not taken before.
        self.taken = 0
        # Since more is unread than a client may leave without reading on: bytes that had left, and how long ago, s.
        self._behind: tuple[int, float] | None = None
        self._taken_s = 0.0  # when something was last taken, by the loop's clock
        self._ends = False  # closed, and what was sent before leaves still
        self._abort_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none, and has all its methods
        # What the kernel does not take stays here, uncopied, and not in the transport.
        self._transport.set_write_buffer_limits(1, 0)
        notice_silence(transport.get_extra_info("socket"))
        if self.on_made is not None:
            self.on_made(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        self._forget_output()
        if self._abort_timer is not None:  # it would keep this object, buffer and all, for as long
            self._abort_timer.cancel()
        self._on_lost(self, exc)

    def get_buffer(self, sizehint: int) -> memoryview:
        if self._large is None:
            return self._small[self._filled :]
        return self._large[self._filled : self._filled + _TURN_BYTES]

    def buffer_updated(self, nbytes: int) -> None:
        self.bytes_in += nbytes
        self._filled += nbytes
        if self._filled < self._needed:
            return
        if self._large is not None:
            data, self._large = self._large, None
        else:
            data = memoryview(bytes(self._small[: self._filled]))
        try:
            self._keep(data[self._take_frames(data) :])
        except Exception as error:
            text = "lane connection with %s closed: bad frame: %s: %s"
            # Strangers may send as many as they like: a line for each, not a page.
            logger.warning(text, self.describe(), type(error).__name__, error, exc_info=self.peer is not None)
            self.close()
            self._filled, self._needed = 0, _PREFIX_BYTES

    def _take_frames(self, data: memoryview) -> int:
        """Hand on the whole frames that ``data`` begins with; returns where the rest starts."""
        at, size = 0, len(data)
        while not self.closed and size - at >= _PREFIX_BYTES:
            header_bytes, blob_bytes = _PREFIX.unpack_from(data, at)
            blob_at = at + _PREFIX_BYTES + header_bytes
            end = blob_at + blob_bytes
            if end > size:
                break
            if end - at > self.limit_bytes:
                self._refuse_size(end - at)
            fields = msgpack.unpackb(data[at + _PREFIX_BYTES : blob_at], strict_map_key=False, max_array_len=_MAX_LIST)
            if type(fields) is not list or not fields:
                raise BadInput(f"lane frame begins with a {type(fields).__name__}: it must be a list with an op")
            at = end
            self._on_frame(self, fields[0], fields[1:], data[blob_at:end])
        return at

    def _keep(self, rest: memoryview) -> None:
        """Start the next read behind ``rest``, the begin of a frame."""
        if self.closed:  # TLS may still deliver some; it is written over
            rest = rest[:0]
        self._filled = len(rest)
        self._needed = self._frame_bytes(rest) if len(rest) >= _PREFIX_BYTES else _PREFIX_BYTES
        if self._needed > _LARGE_BYTES:
            self._large = np.empty(self._needed, np.uint8).data
            self._large[: len(rest)] = rest
        else:
            self._small[: len(rest)] = rest

    def frame_under_way(self, seconds: float) -> tuple[int, float]:
        """How many bytes of the next frame are here, and for how long it has been coming, s: (0, 0) if none is.

        To be called every ``seconds``, in which this is counted. While the peer is not read from, no time passes.
        """
        began_at = self.bytes_in - self._filled
        if self._filled and self._reading and began_at == self._frame_at:
            self._frame_s += seconds
        else:
            self._frame_at, self._frame_s = began_at, 0.0
        return self._filled, self._frame_s

    def _frame_bytes(self, data: memoryview) -> int:
        """How long the frame is that ``data`` begins with."""
        header_bytes, blob_bytes = _PREFIX.unpack_from(data)
        total: int = _PREFIX_BYTES + header_bytes + blob_bytes
        if total > self.limit_bytes:
            self._refuse_size(total)
        return total

    def _refuse_size(self, total: int) -> NoReturn:
        self.close()
        raise BadInput(f"lane frame of {total} bytes: the most is {self.limit_bytes}")

    def send(self, message: Message, *blobs: Buffer) -> None:
        """Send a message in a frame at the end of this tick; does nothing once the connection is closed.

        The blobs, which make up the frame's blob together, must not change any more.
        """
        if self.closed:
            return
        if not self._unsent:
            self._taken_s = self._loop.time()
        elif self.bounded and self._reads_too_little():
            self._hang_up()
            return
        header = _packed(message.encode())
        blob_bytes = len(blobs[0]) if len(blobs) == 1 else sum(map(len, blobs))
        self._out.append(_PREFIX.pack(len(header), blob_bytes) + header)
        self._out.extend(blobs)
        self._unsent += _PREFIX_BYTES + len(header) + blob_bytes
        if not self._flush_due:
            self._flush_due = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_due = False
        transport = self._transport
        if transport is None or transport.is_closing():
            self._forget_output()
            return
        most = self.bytes_out + _TURN_BYTES
        while self._out and not self.stuck and self.bytes_out < most:
            self._write_some(transport)
        if self._out and not self.stuck:
            self._flush_due = True
            self._loop.call_soon(self._flush)
        elif self._ends and not self._out:
            self._end(transport)
        else:
            self._mind_the_unread(transport)

    def _write_some(self, transport: asyncio.Transport) -> None:
        """Hand the transport small buffers together, or a piece of a large one."""
        out = self._out
        piece: Buffer
        if self._unsent <= _JOIN_BYTES:
            piece = b"".join(out)
            out.clear()
        elif len(out[0]) <= _JOIN_BYTES:
            parts, left = [], _JOIN_BYTES
            while out and len(out[0]) <= left:
                left -= len(out[0])
                parts.append(out.popleft())
            piece = b"".join(parts)
        else:
            whole = memoryview(out.popleft())
            piece = whole[:_WRITE_BYTES]
            if len(whole) > _WRITE_BYTES:
                out.appendleft(whole[_WRITE_BYTES:])
        self._unsent -= len(piece)
        self.bytes_out += len(piece)
        self._taken_s = self._loop.time()
        if len(piece):
            transport.write(piece)

    def _mind_the_unread(self, transport: asyncio.Transport) -> None:
        reading = not self.bounded or self._unsent <= PAUSE_BYTES
        if reading != self._reading and not transport.is_closing():
            self._reading = reading
            if reading:
                transport.resume_reading()
            else:
                transport.pause_reading()

    def pause_writing(self) -> None:
        self.stuck = True

    def resume_writing(self) -> None:
        self.stuck = False
        self.taken += 1
        if not self.closed or self._ends:
            if not self._flush_due:
                self._flush()
            if self.on_drained is not None and not self.stuck and not self.closed:
                self.on_drained()

    def mind_slow_reader(self, seconds: float) -> None:
        """Hang up on a client that has much to read, and reads it too slowly; to be called every ``seconds``."""
        if not self.bounded or self._unsent <= MAX_UNSENT_BYTES:
            self._behind = None
            return
        since, age_s = self._behind or (self.bytes_out, 0.0)
        if self.bytes_out - since < (age_s - 2 * UNREAD_S) * LEAST_READ_BYTES_PER_S:
            self._hang_up()
        else:
            self._behind = since, age_s + seconds

    def _reads_too_little(self) -> bool:
        pauses = self._unsent > MAX_UNSENT_BYTES and self._loop.time() - self._taken_s > UNREAD_S
        return pauses or self._unsent > MOST_UNSENT_BYTES

    def _hang_up(self) -> None:
        assert self._transport is not None
        text = "lane connection with %s closed: it left %d bytes unread, and does not read them"
        logger.warning(text, self.describe(), self._unsent)
        self.abort()

    def abort(self) -> None:
        """Close at once, whatever has not left."""
        self.closed, self._ends = True, False
        self._forget_output()
        if self._transport is not None:
            self._transport.abort()

    def _forget_output(self) -> None:
        self._out.clear()
        self._unsent = 0

    def close(self) -> None:
        """Close after what was sent has left."""
        if not self.closed and self._transport is not None:
            self.closed = self._ends = True
            if not self._flush_due:
                self._flush()
            self._abort_timer = self._loop.call_later(CLOSE_S, self._abort_if_open)

    def _end(self, transport: asyncio.Transport) -> None:
        self._ends = False
        transport.close()

    def _abort_if_open(self) -> None:
        if self._transport is not None and (self._ends or self._transport.get_write_buffer_size()):
            self.abort()

    def describe(self) -> str:
        """Address of the peer, for logs."""
        if self._transport is None:
            return "nobody"
        return str(self._transport.get_extra_info("peername"))


def _packed(fields: list[Any]) -> bytes:
    """The header of a frame. A packer is kept for each thread: to make one for each frame takes four times as long."""
    try:
        packer = _packers.packer
    except AttributeError:
        packer = _packers.packer = msgpack.Packer()
    header: bytes = packer.pack(fields)
    return header


def notice_silence(sock: Any) -> None:
    """Have the kernel probe an idle peer, and give up one that does not acknowledge what is sent to it."""
    options = {"TCP_KEEPIDLE": SILENCE_S // 3, "TCP_KEEPINTVL": SILENCE_S // 15, "TCP_KEEPCNT": 10}
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in (options | {"TCP_USER_TIMEOUT": SILENCE_S * 1000}).items():
            if hasattr(socket, name):
                sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    except OSError as error:
        logger.debug("lane connection without keepalive: %s", error)
