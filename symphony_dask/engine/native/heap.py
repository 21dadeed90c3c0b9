"""Keeps indexed 4-ary min-heaps over records.

A heap is one int64 array of rows (key, item), made by ``make_heap``:

    row 0           where the places begin (in place of a key), and how many items the heap holds
    rows 3, 4, ...  the heap, the root first; the four children of a row are one cache line
    places          two a row: at which row each item stands, 0 when it is not in the heap

so that a comparison or a move touches the heap alone and not the records, which are scattered over more memory. Items
are records with a field ``key``, what they are ordered by; ties go to the lower item number. An item can be removed or
re-keyed in O(log n) without a search.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from symphony_dask.engine.native.arrays import Int64s, Records
from symphony_dask.engine.native.compiled import compiled, inlined
from symphony_dask.engine.native.memory import array

KEY, ITEM = 0, 1

#: Row of the root. The children of row i are the rows 4*i - 8 to 4*i - 5.
ROOT = 3


def rows_of(items: int) -> int:
    """Rows of a heap with room for so many items."""
    return ROOT + items + (items + 1) // 2


def make_heap(items: int) -> npt.NDArray[np.int64]:
    """An empty heap with room for so many items, shape (rows, 2)."""
    heap = array((rows_of(items), 2), np.int64)
    heap[0, KEY] = ROOT + items
    return heap


def grown_heap(old: npt.NDArray[np.int64], items: int) -> npt.NDArray[np.int64]:
    """A copy of ``old`` with room for more."""
    new = make_heap(items)
    new[1 : ROOT + size(old)] = old[1 : ROOT + size(old)]
    new[0, ITEM] = size(old)
    places = old[old[0, KEY] :]
    new[new[0, KEY] :][: len(places)] = places
    return new


@inlined
def size(heap: Int64s) -> int:
    return int(heap[0, ITEM])


@inlined
def top(heap: Int64s) -> int:
    """The item with the lowest key; the heap must not be empty."""
    return int(heap[ROOT, ITEM])


@inlined
def first_key(heap: Int64s) -> int:
    """The lowest key; the heap must not be empty."""
    return int(heap[ROOT, KEY])


@inlined
def row_of(heap: Int64s, item: int) -> int:
    """At which row ``item`` stands, 0 when it is not in the heap."""
    return int(heap[heap[0, KEY] + (item >> 1), item & 1])


@inlined
def _put(heap: Int64s, at: int, key: int, item: int) -> None:
    heap[at, KEY] = key
    heap[at, ITEM] = item
    heap[heap[0, KEY] + (item >> 1), item & 1] = at


@compiled
def _up(heap: Int64s, at: int, key: int, item: int) -> None:
    """Put ``item`` at ``at``, which is free, or above."""
    while at > ROOT:
        parent = (at >> 2) + 2
        above = int(heap[parent, KEY])
        if key > above or (key == above and item > heap[parent, ITEM]):
            break
        _put(heap, at, above, int(heap[parent, ITEM]))
        at = parent
    _put(heap, at, key, item)


@compiled
def _down(heap: Int64s, at: int, key: int, item: int) -> None:
    """Put ``item`` at ``at``, which is free, or below."""
    end = ROOT + heap[0, ITEM]
    while True:
        child = 4 * at - 8
        if child >= end:
            break
        least = int(heap[child, KEY])
        for other in range(child + 1, min(child + 4, end)):
            one = int(heap[other, KEY])
            if one < least or (one == least and heap[other, ITEM] < heap[child, ITEM]):
                child = other
                least = one
        if key < least or (key == least and item < heap[child, ITEM]):
            break
        _put(heap, at, least, int(heap[child, ITEM]))
        at = child
    _put(heap, at, key, item)


@inlined
def push(heap: Int64s, items: Records, item: int, key: int) -> None:
    """Put in ``item``, which is not in the heap, under ``key``."""
    items[item].key = key
    n = int(heap[0, ITEM])
    heap[0, ITEM] = n + 1
    _up(heap, ROOT + n, key, item)


@compiled
def remove(heap: Int64s, item: int) -> None:
    """Take out ``item``, which is in the heap."""
    base = heap[0, KEY]
    at = int(heap[base + (item >> 1), item & 1])
    heap[base + (item >> 1), item & 1] = 0
    last = ROOT + int(heap[0, ITEM]) - 1
    heap[0, ITEM] -= 1
    if at < last:
        key = int(heap[last, KEY])
        moved = int(heap[last, ITEM])
        above = (at >> 2) + 2
        if at > ROOT and (key < heap[above, KEY] or (key == heap[above, KEY] and moved < heap[above, ITEM])):
            _up(heap, at, key, moved)
        else:
            _down(heap, at, key, moved)


@inlined
def rekey(heap: Int64s, items: Records, item: int, key: int) -> None:
    """Move ``item``, which is in the heap, to where ``key`` belongs."""
    at = row_of(heap, item)
    lower = key < heap[at, KEY]
    items[item].key = key
    if lower:
        _up(heap, at, key, item)
    else:
        _down(heap, at, key, item)
