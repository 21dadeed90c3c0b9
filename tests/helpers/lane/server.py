"""A lane server that keeps what it gets, and a connection that reads what a test gives it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from symphony_dask.wire.connection import Connection

Frame = tuple[int, list[Any], bytes]


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


def feed(connection: Connection[None], piece: bytes) -> None:
    """Have a connection read ``piece``, as a transport does."""
    while piece:
        buffer = connection.get_buffer(-1)
        n = min(len(piece), len(buffer))
        buffer[:n] = piece[:n]
        connection.buffer_updated(n)
        piece = piece[n:]


def received(pieces: list[bytes]) -> list[Frame]:
    """The frames that a server makes of ``pieces``, each given to it by one read."""

    async def main() -> list[Frame]:
        server = Server()
        connection = server.accept()
        for piece in pieces:
            feed(connection, piece)
        return server.frames

    return asyncio.run(main())
