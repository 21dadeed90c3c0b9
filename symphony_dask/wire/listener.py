"""Serves lane connections: decides who may come in, and cuts off who is too slow.

A peer has ``hello_s`` to be through with TLS, and as long again for HELLO, whatever it sends meanwhile. Later on each
of its frames may take ``frame_s``, and beyond that as long as it comes at ``LEAST_BYTES_PER_S`` on the average: a
connection that drips holds memory and a descriptor no longer than that. Idle ones stay; the kernel notices dead ones.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from typing import Generic, TypeVar

from symphony_dask.timeouts import ConnectionTimeouts
from symphony_dask.wire.connection import MAX_FRAME_BYTES, MAX_HELLO_BYTES, Connection, OnFrame, OnLost

P = TypeVar("P")

logger = logging.getLogger(__name__)

#: A frame that takes longer than ``frame_s`` must come at this rate.
LEAST_BYTES_PER_S = 1 << 16

#: Between looks at who dawdles, s.
LOOK_S = 1.0


class Listener(Generic[P]):
    """Listens for lane connections, and keeps those that are open in ``connections``.

    on_frame, on_lost: as of ``Connection``. bounded: whether peers that do not read are cut off too.
    """

    def __init__(
        self,
        on_frame: OnFrame[P | None],
        on_lost: OnLost[P | None],
        *,
        timeouts: ConnectionTimeouts | None = None,
        bounded: bool = False,
    ) -> None:
        self.connections: set[Connection[P | None]] = set()
        #: For how long each that has not said HELLO has been there, s.
        self._before_hello: dict[Connection[P | None], float] = {}
        self._on_frame, self._on_lost = on_frame, on_lost
        self._timeouts = timeouts or ConnectionTimeouts()
        self._bounded = bounded
        self._server: asyncio.Server | None = None
        self._look_due: asyncio.TimerHandle | None = None

    async def listen(self, host: str | None, port: int, ssl_context: ssl.SSLContext | None) -> None:
        """Listen on ``host`` (None: all interfaces) and ``port`` (0: any); raises ``OSError``."""
        self._loop = asyncio.get_running_loop()
        limit_s = self._timeouts.hello_s if ssl_context is not None else None
        self._server = await self._loop.create_server(
            self._accept, host, port, ssl=ssl_context, ssl_handshake_timeout=limit_s, backlog=512
        )
        self._look_due = self._loop.call_later(LOOK_S, self._look)

    @property
    def port(self) -> int:
        assert self._server is not None
        return int(self._server.sockets[0].getsockname()[1])

    def close(self) -> None:
        """Take nobody in any more; ``hang_up`` closes what is open."""
        if self._server is not None:
            self._server.close()
        if self._look_due is not None:
            self._look_due.cancel()

    def hang_up(self) -> None:
        """Close all connections."""
        for connection in list(self.connections):
            connection.close()

    def welcome(self, connection: Connection[P | None]) -> None:
        """The peer has proved that it is of the cluster: take frames of any size."""
        connection.limit_bytes = MAX_FRAME_BYTES
        self._before_hello.pop(connection, None)

    def _accept(self) -> Connection[P | None]:
        connection: Connection[P | None] = Connection(self._on_frame, self._lost, None)
        connection.limit_bytes = MAX_HELLO_BYTES
        connection.bounded = self._bounded
        # Not before TLS is through: of a connection that fails at that, the protocol hears nothing any more.
        connection.on_made = self._made
        return connection

    def _made(self, connection: Connection[P | None]) -> None:
        self.connections.add(connection)
        self._before_hello[connection] = 0.0

    def _look(self) -> None:
        self._look_due = self._loop.call_later(LOOK_S, self._look)
        # Counted in looks, so that a stall of this process is nobody's fault.
        for connection, age_s in list(self._before_hello.items()):
            self._before_hello[connection] = age_s + LOOK_S
            if age_s >= self._timeouts.hello_s:
                logger.info("lane connection with %s cut off: no HELLO in time", connection.describe())
                connection.abort()
        for connection in list(self.connections):
            connection.mind_slow_reader(LOOK_S)
            filled, age_s = connection.frame_under_way(LOOK_S)
            if filled < (age_s - self._timeouts.frame_s) * LEAST_BYTES_PER_S:
                text = "lane connection with %s cut off: a frame of which %d bytes came took more than %.0f s"
                logger.warning(text, connection.describe(), filled, age_s)
                connection.abort()

    def _lost(self, connection: Connection[P | None], error: Exception | None) -> None:
        self.connections.discard(connection)
        self._before_hello.pop(connection, None)
        self._on_lost(connection, error)
