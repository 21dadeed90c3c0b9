"""Indexed binary min-heaps over records.

A heap is an int32 array: entry 0 holds its size, entries 1.. hold item numbers. Items are records with two fields of
the heap's: ``key`` (what they are ordered by; ties go to the lower item number) and ``pos`` (where they stand in the
one heap that they are in, 0 when in none). So an item can be removed or re-keyed in O(log n) without a search.
"""

from __future__ import annotations

from typing import Any

from symphony_dask.scheduling.compiled import compiled


@compiled
def size(heap: Any) -> int:
    return int(heap[0])


@compiled
def top(heap: Any) -> int:
    """The item with the lowest key; the heap must not be empty."""
    return int(heap[1])


@compiled
def _before(items: Any, a: int, b: int) -> bool:
    ka = items[a].key
    kb = items[b].key
    return bool(ka < kb or (ka == kb and a < b))


@compiled
def _up(heap: Any, items: Any, at: int) -> None:
    item = int(heap[at])
    while at > 1:
        parent = at >> 1
        above = int(heap[parent])
        if not _before(items, item, above):
            break
        heap[at] = above
        items[above].pos = at
        at = parent
    heap[at] = item
    items[item].pos = at


@compiled
def _down(heap: Any, items: Any, at: int) -> None:
    n = int(heap[0])
    item = int(heap[at])
    while True:
        child = at << 1
        if child > n:
            break
        below = int(heap[child])
        if child < n and _before(items, int(heap[child + 1]), below):
            child += 1
            below = int(heap[child])
        if not _before(items, below, item):
            break
        heap[at] = below
        items[below].pos = at
        at = child
    heap[at] = item
    items[item].pos = at


@compiled
def push(heap: Any, items: Any, item: int, key: int) -> None:
    """Put in ``item``, which is in no heap, under ``key``."""
    items[item].key = key
    n = int(heap[0]) + 1
    heap[0] = n
    heap[n] = item
    _up(heap, items, n)


@compiled
def remove(heap: Any, items: Any, item: int) -> None:
    """Take out ``item``, which is in this heap."""
    at = int(items[item].pos)
    n = int(heap[0])
    heap[0] = n - 1
    items[item].pos = 0
    if at < n:
        moved = int(heap[n])
        heap[at] = moved
        items[moved].pos = at
        _up(heap, items, at)
        _down(heap, items, int(items[moved].pos))


@compiled
def rekey(heap: Any, items: Any, item: int, key: int) -> None:
    """Move ``item``, which is in this heap, to where ``key`` belongs."""
    items[item].key = key
    _up(heap, items, int(items[item].pos))
    _down(heap, items, int(items[item].pos))
