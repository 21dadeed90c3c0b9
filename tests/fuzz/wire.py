"""A connection without a network: what its protocol reads is given by hand, what it writes is kept."""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import Any

import msgpack

from symphony_dask.wire.connection import Connection

_SOCKET = socket.socket()


class Wire(asyncio.Transport):
    def __init__(self, protocol: Any) -> None:
        super().__init__({"socket": _SOCKET, "peername": ("fuzz", 0), "sockname": ("fuzz", 0)})
        self.out = bytearray()
        self._protocol = protocol
        self._closing = False
        protocol.connection_made(self)

    def write(self, data: Any) -> None:
        self.out += data

    def is_closing(self) -> bool:
        return self._closing

    def close(self) -> None:
        if not self._closing:
            self._closing = True
            asyncio.get_running_loop().call_soon(self._protocol.connection_lost, None)

    abort = close

    def get_write_buffer_size(self) -> int:
        return 0

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def pause_reading(self) -> None:
        pass

    resume_reading = pause_reading


def feed(connection: Connection[Any], wire: Wire, data: bytes) -> None:
    """Have a lane connection read ``data``, as a transport does."""
    at = 0
    while at < len(data) and not wire.is_closing():
        buffer = connection.get_buffer(-1)
        n = min(len(data) - at, len(buffer))
        assert n, "a connection gave no room to read into"
        buffer[:n] = data[at : at + n]
        connection.buffer_updated(n)
        at += n


def frames(data: bytearray) -> list[tuple[list[Any], bytes]]:
    """The frames that were written; they are taken out of ``data``."""
    found = []
    while len(data) >= 8:
        header, blob = struct.unpack_from("<II", data)
        end = 8 + header + blob
        if len(data) < end:
            break
        found.append(
            (msgpack.unpackb(bytes(data[8 : 8 + header]), strict_map_key=False), bytes(data[8 + header : end]))
        )
        del data[:end]
    return found
