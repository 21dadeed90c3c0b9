"""Speaks HTTP/1.1 on a connection: uvicorn's, by httptools, with limits on heads and on slow senders.

A head has ``MAX_HEAD_BYTES`` at most, else the connection is closed with 431. Who takes more than the read timeout for
a head and its body is cut off, and so is who takes longer for an answer, unless it is read at ``LEAST_BYTES_PER_S`` or
more: a sweep once a second, so that a request costs no timer of its own.
"""

from __future__ import annotations

import asyncio
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from symphony_dask.gateway.upstream import Reply
from symphony_dask.wire.connection import notice_silence

#: URL and headers of one request together, bytes.
MAX_HEAD_BYTES = 16_384

#: What each header counts for beside its own bytes, so that many empty ones count too.
_HEADER_BYTES = 32

#: The rate at which an answer must be read that takes longer than the read timeout.
LEAST_BYTES_PER_S = 1 << 14

_TOO_LARGE = b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"


class _Joined:
    """A transport that writes once a tick: uvicorn writes head and body of an answer apart, two system calls.

    Everything else is the transport's own.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._out: list[bytes] = []
        #: Bytes that the transport was given.
        self.written = 0

    def write(self, data: bytes) -> None:
        if not self._out:
            self._loop.call_soon(self._flush)
        self._out.append(data)

    def _flush(self) -> None:
        out, self._out = self._out, []
        if out and not self._transport.is_closing():  # a peer may have reset the connection since
            data = b"".join(out) if len(out) > 1 else out[0]
            self.written += len(data)
            self._transport.write(data)

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class _Parser:
    """httptools' parser, which takes a request that offers another protocol (``Upgrade: h2c``, as curl and Java do) to
    have no body. Here an offer is left out of the head, and the request read again from there.

    Everything else is the parser's own.
    """

    def __init__(self, protocol: GatewayProtocol) -> None:
        self._protocol = protocol
        self._parser = httptools.HttpRequestParser(protocol)

    def feed_data(self, data: bytes) -> None:
        while data:
            try:
                self._parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as offer:
                method = self._parser.get_method()
                if method == b"CONNECT":
                    raise httptools.HttpParserError("CONNECT is for proxies") from None
                self._parser = httptools.HttpRequestParser(self._protocol)
                data = self._protocol.head_without_upgrade(method) + data[offer.args[0] :]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._parser, name)


class GatewayProtocol(HttpToolsProtocol):
    """The application finds it in its scope, as "symphony.connection".

    replies: what the request under way waits for; cancelled when the client hangs up.
    reading_since: when the head or body that is being read began, loop time; None while nothing is.
    """

    def connection_made(self, transport: Any) -> None:
        self.replies: list[Reply] = []
        self._cycles: list[Any] = []  # uvicorn's of requests that are not answered yet, and the last
        self._head_bytes = 0
        self._unended_bytes = 0  # since a head began that has not ended, -1 while there is none
        self.reading_since: float | None = self.loop.time()
        # Since when the client has had something left to read, and how much it had read then.
        self._unread_since: float | None = None
        self._read_then = 0
        self._joined = _Joined(transport, self.loop)
        self.parser = _Parser(self)  # type: ignore[assignment]
        notice_silence(transport.get_extra_info("socket"))
        super().connection_made(self._joined)  # type: ignore[arg-type]

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        for cycle in self._cycles:  # uvicorn tells only the last one that was sent
            cycle.disconnected = cycle.disconnected or not cycle.response_complete
            cycle.message_event.set()
        for reply in self.replies:
            reply.cancel()

    @property
    def disconnected(self) -> bool:
        return self.cycle is None or self.cycle.disconnected

    def on_message_begin(self) -> None:
        self._head_bytes = 0
        self._unended_bytes = 0
        self.reading_since = self.loop.time()
        super().on_message_begin()
        self.scope["symphony.connection"] = self  # type: ignore[typeddict-unknown-key]

    def on_url(self, url: bytes) -> None:
        self._count_head(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count_head(len(name) + len(value) + _HEADER_BYTES)
        super().on_header(name, value)

    def on_message_complete(self) -> None:
        if self.parser.should_upgrade():  # it is read again
            return
        self.reading_since = None
        super().on_message_complete()

    def head_without_upgrade(self, method: bytes) -> bytes:
        """The head that has been read, without its offer of another protocol."""
        kept = [(name, value) for name, value in self.headers if name not in (b"upgrade", b"connection")]
        if any(name == b"connection" and b"close" in value.lower() for name, value in self.headers):
            kept.append((b"connection", b"close"))
        lines = [b"%s %s HTTP/1.1" % (method, self.url), *(b"%s: %s" % field for field in kept)]
        return b"\r\n".join(lines) + b"\r\n\r\n"

    def on_headers_complete(self) -> None:
        self._unended_bytes = -1
        if self.parser.should_upgrade():
            return
        super().on_headers_complete()
        self._cycles = [cycle for cycle in self._cycles if not cycle.response_complete]
        if self.cycle is not None:
            self._cycles.append(self.cycle)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        # The parser keeps a header to itself until that has ended.
        if self._unended_bytes >= 0:
            self._unended_bytes += len(data)
            if self._unended_bytes > MAX_HEAD_BYTES:
                self._refuse_head()
        if self.reading_since is None and (self.cycle is None or self.cycle.response_complete):
            # Empty lines, which end uvicorn's patience with idle connections and begin nothing.
            self.reading_since = self.loop.time()

    def _count_head(self, more: int) -> None:
        self._head_bytes += more
        if self._head_bytes > MAX_HEAD_BYTES:
            self._refuse_head()
            raise ValueError("request head is too large")

    def _refuse_head(self) -> None:
        if not self.transport.is_closing():
            self.transport.write(_TOO_LARGE)
            self.transport.close()

    def cut_off_if_slow(self, now: float, limit_s: float) -> None:
        """Close the connection if what it sends has not come in time, or what it is sent is not read."""
        if self.reading_since is not None and now - self.reading_since > limit_s and not self.transport.is_closing():
            self.transport.close()
        left = self.transport.get_write_buffer_size()
        if not left:
            self._unread_since = None
            return
        read = self._joined.written - left
        if self._unread_since is None:
            self._unread_since, self._read_then = now, read
        elif read - self._read_then < (now - self._unread_since - limit_s) * LEAST_BYTES_PER_S:
            self.transport.abort()


async def sweep(connections: set[Any], limit_s: float) -> None:
    """Cut off slow senders, once a second."""
    loop = asyncio.get_running_loop()
    while True:
        await asyncio.sleep(1.0)
        now = loop.time()
        for connection in list(connections):
            connection.cut_off_if_slow(now, limit_s)
