"""Changing valid input a little, by a seeded generator: bytes, numbers in records, and values of msgpack and JSON."""

from __future__ import annotations

import random
import struct
from collections.abc import Sequence
from typing import Any

import msgpack
import numpy as np
import numpy.typing as npt

#: Numbers at which code goes wrong.
INTS = (0, 1, -1, 2, 7, 127, 128, 255, 256, 2**15, 2**16, 2**31 - 1, 2**31, -(2**31), 2**32, 2**61, 2**62, 2**63 - 1)
INTS += (-(2**63), -(2**62), 10**9, 10**18)

#: Values of other types than were meant.
ODD: tuple[Any, ...] = (
    None, True, False, 1.5, float("nan"), float("inf"), "", "x", "\0", "é" * 40, b"", b"\0" * 8, b"x" * 7, [], [[]],
    {}, {0: "x"}, {"a": []}, [1] * 9, 2**64 - 1, -(2**63), msgpack.ExtType(5, b"x"), msgpack.Timestamp(1, 1),
)  # fmt: skip

_SOME = (b"\0", b"\xff", b"\x7f", b"\x80", b"\xc1", b"\xdc\xff\xff", b"\xdd\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff")


def mutated(data: bytes, by: random.Random, others: Sequence[bytes] = ()) -> bytes:
    """``data`` after one to four changes: bits, bytes, lengths, what is left out, doubled, put in, or of another."""
    out = bytearray(data)
    for _ in range(by.choice((1, 1, 1, 2, 2, 4))):
        at = by.randrange(len(out) + 1)
        kind = by.randrange(9)
        if kind == 0 and at < len(out):
            out[at] ^= 1 << by.randrange(8)
        elif kind == 1 and at < len(out):
            out[at] = by.randrange(256)
        elif kind == 2:
            out[at : at + by.randrange(5)] = by.choice(_SOME)
        elif kind == 3:
            del out[at : at + by.randrange(1, 9)]
        elif kind == 4:
            out[at:at] = out[at : at + by.randrange(1, 64)]
        elif kind == 5:
            del out[at:]
        elif kind == 6:
            out[at : at + 4] = struct.pack("<I", by.choice(INTS) & 0xFFFFFFFF)
        elif kind == 7:
            out[at : at + 8] = struct.pack("<Q", by.choice(INTS) & 0xFFFFFFFFFFFFFFFF)
        elif others:
            other = by.choice(others)
            out[at : at + by.randrange(32)] = other[by.randrange(len(other) + 1) :][: by.randrange(1, 64)]
    return bytes(out)


def records(rows: npt.NDArray[Any], by: random.Random) -> npt.NDArray[Any]:
    """Records with one to three numbers changed, each to one that its type can hold."""
    out = rows.copy()
    for _ in range(by.randrange(1, 4)):
        if not len(out):
            break
        name = by.choice(out.dtype.names or ())
        limits = np.iinfo(out.dtype[name])
        value = by.choice(INTS) if by.random() < 0.8 else by.randrange(-3, 70)
        out[name][by.randrange(len(out))] = min(max(value, limits.min), limits.max)
    return out


def value(by: random.Random) -> Any:
    """A number, or something else."""
    return by.choice(INTS) if by.random() < 0.5 else by.choice(ODD)


def fields(given: Sequence[Any], by: random.Random) -> list[Any]:
    """A list with an entry replaced, left out, doubled, or with some of it changed."""
    out = list(given)
    if not out:
        return [value(by)]
    at, kind = by.randrange(len(out)), by.randrange(6)
    if kind == 0:
        del out[at]
    elif kind == 1:
        out.insert(at, out[at])
    elif kind == 2 and isinstance(out[at], dict):
        changed = dict(out[at])
        key = by.choice([*changed, 0, "x"])
        changed[key] = value(by)
        out[at] = changed
    elif kind == 3 and isinstance(out[at], bytes):
        out[at] = mutated(out[at], by)
    else:
        out[at] = value(by)
    return out
