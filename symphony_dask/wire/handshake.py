"""Begins lane connections, from both ends: connects to a server and is welcomed, or reads HELLO and answers it."""

from __future__ import annotations

import asyncio
import ssl
from typing import Any, TypeVar

from symphony_dask.errors import BadInput
from symphony_dask.wire.connection import Connection, OnFrame, OnLost
from symphony_dask.wire.hello import Hello, Refused, VersionMismatch, Welcome, read_hello
from symphony_dask.wire.messages import Op, Ping, Pong

P = TypeVar("P")


async def connect(
    host: str,
    port: int,
    hello: Hello,
    on_frame: OnFrame[P],
    on_lost: OnLost[P],
    *,
    peer: P,
    ssl_context: ssl.SSLContext | None = None,
    timeout_s: float = 10.0,
) -> tuple[Connection[P], Welcome]:
    """Connect to a lane server and be welcomed; answers pings by itself. peer: what the connection keeps of it.

    PONG leaves after the coroutines and threads have run that the frames before PING woke, so that it tells when what
    these brought was in hand.

    Raises ``OSError`` if the server cannot be reached or turns the connection away.
    """
    loop = asyncio.get_running_loop()
    welcomed: asyncio.Future[Welcome] = loop.create_future()

    def frame(connection: Connection[P], op: int, fields: list[Any], blob: memoryview) -> None:
        if op == Op.PING:
            loop.call_soon(connection.send, Pong(Ping.decode(fields, blob).t_ns))
        elif welcomed.done():
            on_frame(connection, op, fields, blob)
        elif op == Op.WELCOME:
            welcomed.set_result(Welcome.decode(fields, blob))
        elif op == Op.REFUSED:
            welcomed.set_exception(ConnectionError(Refused.decode(fields, blob).why))
        else:
            raise BadInput(f"lane op {op!r:.40} came before WELCOME")

    def lost(connection: Connection[P], error: Exception | None) -> None:
        if welcomed.done():
            on_lost(connection, error)
        else:
            welcomed.set_exception(ConnectionError(f"lane server {host}:{port} turned the connection away ({error})"))

    async def greet() -> tuple[Connection[P], Welcome]:
        _, connection = await loop.create_connection(lambda: Connection(frame, lost, peer), host, port, ssl=ssl_context)
        connection.send(hello)
        try:
            return connection, await welcomed
        except BaseException:
            connection.close()
            raise

    return await asyncio.wait_for(greet(), timeout_s)


def accept(connection: Connection[P], op: int, fields: list[Any], token: str | None) -> tuple[Hello, int]:
    """The first frame of a peer as a HELLO, and the version to welcome it with.

    Raises ``BadInput`` where it has to go; where only the version is wrong, it has been told.
    """
    if op != Op.HELLO:
        raise BadInput(f"lane op {op!r:.40} came before HELLO")
    try:
        return read_hello(fields, token)
    except VersionMismatch as error:
        connection.send(Refused(str(error)))
        raise
