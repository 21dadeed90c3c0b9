"""Writes lane frames that no message writes, and lets a test read what another end wrote."""

from __future__ import annotations

import struct
from typing import Any

import msgpack

from symphony_dask.wire.connection import Message


class Raw:
    """A frame's fields as they are, in place of a message."""

    def __init__(self, *fields: Any) -> None:
        self.fields = list(fields)

    def encode(self) -> list[Any]:
        return self.fields


def frame(message: Message, blob: bytes = b"") -> bytes:
    """The bytes of a message's frame."""
    header = msgpack.packb(message.encode())
    return struct.pack("<II", len(header), len(blob)) + header + blob


def raw_frame(*fields: Any, blob: bytes = b"") -> bytes:
    """The bytes of a frame with any fields."""
    return frame(Raw(*fields), blob)


def fields_of(data: bytes) -> tuple[list[Any], memoryview]:
    """Header and blob of one frame."""
    header_bytes, blob_bytes = struct.unpack_from("<II", data)
    assert len(data) == 8 + header_bytes + blob_bytes
    return msgpack.unpackb(data[8 : 8 + header_bytes], strict_map_key=False), memoryview(data)[8 + header_bytes :]
