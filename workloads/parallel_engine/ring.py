"""Passes messages between two threads of compiled code without a lock: rings.

A ring has one producer and one consumer. It is two arrays of int64: ``cells``, (capacity, WORDS), one message of one
cache line a row, and ``counts``, which holds how many messages were ever written and read, on cache lines of their own.

Rule 1. Only the producer writes ``counts[WRITTEN]``, only the consumer ``counts[READ]``; row i is cells[i % capacity].
Rule 2. The producer fills a row and then stores its count with *release*; the consumer loads the count with *acquire*
        and then reads the row. So a row is read only after it was filled.
Rule 3. The same pair on ``counts[READ]`` the other way: a row is filled again only after it was read.
Rule 4. Each side keeps what it last saw of the other's count beside its own, and looks again only when that says "full"
        or "empty": the two cores then share a cache line once per batch of messages, not once per message.

Acquire and release are LLVM's atomic orderings: they keep both the compiler and the processor from moving the row's
loads and stores across the count's. On x86-64 they cost nothing, since the processor never reorders a load with a load
or a store with a store; elsewhere LLVM emits the instructions needed. Nothing here needs a total order of all stores:
a thread only ever acts on messages that it has seen.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, cast

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from symphony_dask.engine.native.arrays import Int64s
from symphony_dask.engine.native.code_generation import Emit, Signature, Target, Typing, Values
from symphony_dask.engine.native.compiled import compiled

#: int64 values in a message; with int64, one cache line.
WORDS = 8

# Entries of ``counts``, 16 int64 (two cache lines, which processors fetch together) apart for the two sides.
WRITTEN, READ_SEEN, READ, WRITTEN_SEEN, _COUNTS = 0, 1, 16, 17, 32


class Ring(NamedTuple):
    cells: Int64s  # (capacity, WORDS) int64
    counts: Int64s  # (_COUNTS,) int64


class Rings(NamedTuple):
    """Several rings of one capacity, for a thread that talks to several others."""

    cells: Int64s  # (rings, capacity, WORDS) int64
    counts: Int64s  # (rings, _COUNTS) int64


def make_rings(n: int, capacity: int) -> Rings:
    """``n`` empty rings, each with room for at least ``capacity`` messages."""
    rows = 1 << max(0, capacity - 1).bit_length()
    return Rings(np.zeros((n, rows, WORDS), np.int64), np.zeros((n, _COUNTS), np.int64))


def one_ring(rings: Rings, i: int) -> Ring:
    """Ring ``i``, for a thread of its own."""
    return Ring(rings.cells[i], rings.counts[i])


#: The same for compiled code, which may not hand arrays to Python (``compiled``).
ring_of = compiled(one_ring)


def _entry(
    context: Target, builder: ir.IRBuilder, array_type: types.Type, array: ir.Value, index: ir.Value
) -> ir.Value:
    struct = context.make_array(array_type)(context, builder, array)
    return cgutils.get_item_pointer(context, builder, array_type, struct, [index], wraparound=False)


def _load(typing: Typing, array: types.Type, index: types.Type) -> tuple[Signature, Emit]:
    def emit(context: Target, builder: ir.IRBuilder, signature: Signature, args: Values) -> ir.Value:
        return builder.load_atomic(_entry(context, builder, signature.args[0], *args), "acquire", 8)

    return types.int64(array, types.intp), emit


def _store(typing: Typing, array: types.Type, index: types.Type, value: types.Type) -> tuple[Signature, Emit]:
    def emit(context: Target, builder: ir.IRBuilder, signature: Signature, args: Values) -> ir.Value:
        at = _entry(context, builder, signature.args[0], args[0], args[1])
        builder.store_atomic(args[2], at, "release", 8)
        return context.get_dummy_value()

    return types.void(array, types.intp, types.int64), emit


_atomic_load = cast(Callable[[Int64s, int], int], intrinsic(_load))
_atomic_store = cast(Callable[[Int64s, int, int], None], intrinsic(_store))


if numba.config.DISABLE_JIT:  # type: ignore[attr-defined]
    # The interpreter runs one thread at a time and in program order.
    def load_acquire(array: Int64s, index: int) -> int:
        """``array[index]``, int64; what is read after it is no older."""
        return int(array[index])

    def store_release(array: Int64s, index: int, value: int) -> None:
        """Set ``array[index]``, int64; who sees it also sees what was written before it."""
        array[index] = value

else:

    @compiled
    def load_acquire(array: Int64s, index: int) -> int:
        """``array[index]``, int64; what is read after it is no older."""
        return _atomic_load(array, index)

    @compiled
    def store_release(array: Int64s, index: int, value: int) -> None:
        """Set ``array[index]``, int64; who sees it also sees what was written before it."""
        _atomic_store(array, index, value)


@compiled
def writable(ring: Ring) -> int:
    """The row for the producer to fill next, -1 when the ring is full."""
    counts = ring.counts
    capacity = len(ring.cells)
    if counts[WRITTEN] - counts[READ_SEEN] == capacity:
        counts[READ_SEEN] = load_acquire(counts, READ)
        if counts[WRITTEN] - counts[READ_SEEN] == capacity:
            return -1
    return int(counts[WRITTEN] & (capacity - 1))


@compiled
def publish(ring: Ring) -> None:
    """Hand the row that ``writable`` gave to the consumer."""
    store_release(ring.counts, WRITTEN, ring.counts[WRITTEN] + 1)


@compiled
def readable(ring: Ring) -> int:
    """The row for the consumer to read next, -1 when the ring is empty."""
    counts = ring.counts
    if counts[READ] == counts[WRITTEN_SEEN]:
        counts[WRITTEN_SEEN] = load_acquire(counts, WRITTEN)
        if counts[READ] == counts[WRITTEN_SEEN]:
            return -1
    return int(counts[READ] & (len(ring.cells) - 1))


@compiled
def release(ring: Ring) -> None:
    """Give the row that ``readable`` gave back to the producer."""
    store_release(ring.counts, READ, ring.counts[READ] + 1)
