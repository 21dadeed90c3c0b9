"""Indexed binary min-heaps over records.

A heap is an int64 array of rows (key, item), made by ``make_heap``: row 0 holds its size in place of an item, rows 1..
hold the heap, so that a comparison touches the heap alone and not the records. Items are records with two fields of the
heap's: ``key`` (what they are ordered by; ties go to the lower item number) and ``pos`` (where they stand in the one
heap that they are in, 0 when in none). So an item can be removed or re-keyed in O(log n) without a search.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from symphony_dask.scheduling.compiled import compiled

KEY, ITEM = 0, 1


def make_heap(items: int) -> npt.NDArray[np.int64]:
    """An empty heap with room for so many items, shape (items + 1, 2)."""
    return np.zeros((items + 1, 2), np.int64)


@compiled
def size(heap: Any) -> int:
    return int(heap[0, ITEM])


@compiled
def top(heap: Any) -> int:
    """The item with the lowest key; the heap must not be empty."""
    return int(heap[1, ITEM])


@compiled
def _put(heap: Any, items: Any, at: int, key: int, item: int) -> None:
    heap[at, KEY] = key
    heap[at, ITEM] = item
    items[item].pos = at


@compiled
def _up(heap: Any, items: Any, at: int, key: int, item: int) -> None:
    """Put ``item`` at ``at``, which is free, or above."""
    while at > 1:
        parent = at >> 1
        above = int(heap[parent, KEY])
        if key > above or (key == above and item > heap[parent, ITEM]):
            break
        _put(heap, items, at, above, int(heap[parent, ITEM]))
        at = parent
    _put(heap, items, at, key, item)


@compiled
def _down(heap: Any, items: Any, at: int, key: int, item: int) -> None:
    """Put ``item`` at ``at``, which is free, or below."""
    n = int(heap[0, ITEM])
    while True:
        child = at << 1
        if child > n:
            break
        below = int(heap[child, KEY])
        if child < n:
            other = int(heap[child + 1, KEY])
            if other < below or (other == below and heap[child + 1, ITEM] < heap[child, ITEM]):
                child += 1
                below = other
        if key < below or (key == below and item < heap[child, ITEM]):
            break
        _put(heap, items, at, below, int(heap[child, ITEM]))
        at = child
    _put(heap, items, at, key, item)


@compiled
def push(heap: Any, items: Any, item: int, key: int) -> None:
    """Put in ``item``, which is in no heap, under ``key``."""
    items[item].key = key
    n = int(heap[0, ITEM]) + 1
    heap[0, ITEM] = n
    _up(heap, items, n, key, item)


@compiled
def remove(heap: Any, items: Any, item: int) -> None:
    """Take out ``item``, which is in this heap."""
    at = int(items[item].pos)
    n = int(heap[0, ITEM])
    heap[0, ITEM] = n - 1
    items[item].pos = 0
    if at < n:
        key = int(heap[n, KEY])
        moved = int(heap[n, ITEM])
        above = at >> 1
        if at > 1 and (key < heap[above, KEY] or (key == heap[above, KEY] and moved < heap[above, ITEM])):
            _up(heap, items, at, key, moved)
        else:
            _down(heap, items, at, key, moved)


@compiled
def rekey(heap: Any, items: Any, item: int, key: int) -> None:
    """Move ``item``, which is in this heap, to where ``key`` belongs."""
    at = int(items[item].pos)
    lower = key < heap[at, KEY]
    items[item].key = key
    if lower:
        _up(heap, items, at, key, item)
    else:
        _down(heap, items, at, key, item)
