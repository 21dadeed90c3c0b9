"""Compresses and decompresses bodies."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Callable
from typing import TypeVar

from symphony_dask.gateway.refusal import Refusal, bad

T = TypeVar("T")

#: Answers of less are not worth compressing, bytes.
COMPRESS_BYTES = 2048

#: Bodies of more bytes are read, written, joined and (de)compressed in threads.
THREAD_BYTES = 1 << 18


async def aside(size: int, function: Callable[..., T], *args: object) -> T:
    """``function(*args)``, which has to do with ``size`` bytes: in a thread if these are many, as others wait here."""
    return await asyncio.to_thread(function, *args) if size > THREAD_BYTES else function(*args)


def too_large(most: int) -> Refusal:
    """413."""
    return Refusal(413, f"the body is too large: the most is {most} bytes")


def decompress(body: bytes, most: int) -> bytes:
    """gzip or zlib, whichever it is; raises ``Refusal``, 413 beyond ``most`` bytes."""
    stream = zlib.decompressobj(wbits=47)
    try:
        found = stream.decompress(body, most + 1)
    except zlib.error as error:
        raise bad(f"body cannot be decompressed: {error}") from None
    if len(found) > most:
        raise too_large(most)
    if not stream.eof or stream.unused_data:
        raise bad("body cannot be decompressed: it is cut short, or has something behind it")
    return found


def coding_of(accept: bytes) -> bytes:
    """What an answer is compressed by; empty: not at all."""
    for entry in accept.lower().split(b","):
        name, _, quality = entry.partition(b";")
        if name.strip() in (b"gzip", b"deflate") and quality.replace(b" ", b"").rstrip(b"0") not in (b"q=", b"q=0."):
            return name.strip()
    return b""


def compress(body: bytes, coding: bytes) -> bytes:
    """``body`` as gzip, or zlib for deflate."""
    stream = zlib.compressobj(1, zlib.DEFLATED, 31 if coding == b"gzip" else 15)
    return stream.compress(body) + stream.flush()
