"""Puts TCP proxies between two processes, for a network that delays, stalls, resets or loses.

A process that is to be cut off gets an address of its own on the loopback network, 127.0.0.N, where a proxy listens on
the same ports as the one that it wants to reach on 127.0.0.1. What a packet loss is to TCP is emulated: a stall of a
retransmission time-out. All proxies of a process run in one thread.
"""

from __future__ import annotations

import asyncio
import random
import socket
import struct
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

_READ_BYTES = 1 << 16

#: Linux waits so long at least before it sends a lost segment again, s.
RETRANSMIT_S = 0.2


@dataclass
class Link:
    """What stands between one process and the rest; changed from any thread.

    stalled: nothing passes and nobody is told, as when a cable is pulled; what was sent comes later.
    delay_s: one way. loss: share of reads that come RETRANSMIT_S late.
    """

    host: str
    delay_s: float = 0.0
    loss: float = 0.0
    stalled: bool = False
    _open: set[asyncio.WriteTransport] = field(default_factory=set, repr=False)
    _moved: asyncio.Event = field(default_factory=asyncio.Event, repr=False)


class Proxies:
    """Any number of links, to ports on 127.0.0.1; a context manager."""

    def __init__(self, seed: int = 0) -> None:
        self._random = random.Random(seed)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxies", daemon=True)
        self._servers: list[tuple[Link, asyncio.Server]] = []

    def __enter__(self) -> Proxies:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def link(self, host: str, ports: Sequence[int]) -> Link:
        """Listen on ``host`` for what is to get to the same ports of 127.0.0.1."""

        async def listen() -> Link:
            link = Link(host)
            for port in ports:
                server = await asyncio.start_server(self._serve(link, port), host, port)
                self._servers.append((link, server))
            return link

        return asyncio.run_coroutine_threadsafe(listen(), self._loop).result(10)

    def close(self, link: Link) -> None:
        """The process behind a link has ended."""

        def close() -> None:
            for server in [server for of, server in self._servers if of is link]:
                server.close()
            self._servers = [(of, server) for of, server in self._servers if of is not link]

        self.reset(link)
        self._run(close)

    def reset(self, link: Link, port: int | None = None) -> None:
        """Have the connections through a link, of one port or all, end as if the other side had crashed (RST)."""

        def abort() -> None:
            for transport in list(link._open):
                own = transport.get_extra_info("socket")
                ends = {own.getsockname()[1], own.getpeername()[1]} if own is not None else set()
                if port is None or port in ends:
                    own.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    transport.abort()

        self._run(abort)

    def stall(self, link: Link, stalled: bool) -> None:
        """Let nothing pass any more, or let it pass again."""

        def change() -> None:
            link.stalled = stalled
            if not stalled:
                link._moved.set()
                link._moved = asyncio.Event()

        self._run(change)

    def _run(self, call: Callable[[], None]) -> None:
        async def called() -> None:
            call()

        asyncio.run_coroutine_threadsafe(called(), self._loop).result(10)

    def _serve(self, link: Link, port: int) -> Callable[[Any, Any], Any]:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                await self._passes(link)
                there = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                writer.transport.abort()
                return
            transports = {writer.transport, there[1].transport}
            link._open |= transports
            ways = [(reader, there[1]), (there[0], writer)]
            tasks = [asyncio.create_task(self._pass_on(link, *way)) for way in ways]
            await asyncio.wait(tasks)
            for transport in transports:
                transport.close()
            link._open -= transports

        return serve

    async def _pass_on(self, link: Link, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(_READ_BYTES):
                late_s = link.delay_s + (RETRANSMIT_S if link.loss and self._random.random() < link.loss else 0.0)
                if late_s:
                    await asyncio.sleep(late_s)
                await self._passes(link)
                writer.write(data)
                await writer.drain()
            await self._passes(link)
            writer.write_eof()
        except (OSError, RuntimeError):  # the latter where the transport is closed already
            writer.transport.abort()

    async def _passes(self, link: Link) -> None:
        while link.stalled:
            await link._moved.wait()
