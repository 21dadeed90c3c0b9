"""Keeps a model's requests in deadline order, as a skip list through the request records.

Rule 1. Order is (deadline, seq): earliest deadline first, first come first among equals.
Rule 2. Requests of one SLO arrive in order and are appended in O(1); one that belongs elsewhere is placed in O(log n).
Rule 3. Batches and drops leave from the head in O(1); a cancelled request leaves from anywhere in O(log n).
Rule 4. ``first`` is the head of the candidate batch. What stands before it was skipped: no longer part of the
        candidate, not yet dropped. A request that comes in before ``first`` takes all skips back.

A request's levels come from a hash of its sequence number, so that the same submissions give the same list.
"""

from __future__ import annotations

from symphony_dask.engine.native.arrays import Int32s
from symphony_dask.engine.native.compiled import compiled, inlined, wide
from symphony_dask.engine.state import LEVELS, State


@inlined
def _levels(seq: int) -> int:
    """1 with probability 3/4, 2 with 3/16, ...: two hash bits a level (Knuth's multiplicative hash)."""
    x = ((seq & 0x7FFFFFFF) * 2654435761) & 0xFFFFFFFF
    x ^= x >> 15
    n = 1
    while n < LEVELS and (x & 3) == 0:
        x >>= 2
        n += 1
    return n


@inlined
def before(s: State, a: int, b: int) -> bool:
    """Whether request ``a`` comes before ``b``."""
    da = s.req[a].deadline
    db = s.req[b].deadline
    return bool(da < db or (da == db and s.req[a].seq < s.req[b].seq))


@compiled
def _find(s: State, m: int, slot: int) -> None:
    """Fill the scratch row of ``head`` with the last request before ``slot`` on each level, -1 for the head."""
    path = len(s.mod)
    at = -1
    for level in range(LEVELS - 1, -1, -1):
        ahead = wide(s.head[m, level]) if at < 0 else wide(s.nxt[at, level])
        while ahead >= 0 and before(s, ahead, slot):
            at = ahead
            ahead = wide(s.nxt[at, level])
        s.head[path, level] = at


@compiled
def _lower(s: State, m: int, slot: int) -> None:
    """A request of a priority above 0 left the queue; its link ahead still holds."""
    mod = s.mod[m]
    mod.raised -= 1
    if mod.first_raised == slot:
        at = -1
        if mod.raised > 0:
            at = wide(s.nxt[slot, 0])
            while s.req[at].priority == 0:
                at = wide(s.nxt[at, 0])
        mod.first_raised = at


@inlined
def _begin(s: State, m: int, slot: int) -> None:
    """Have the candidate begin at ``slot``, -1 for none."""
    s.mod[m].first = slot
    if slot >= 0:
        s.mod[m].first_at = s.req[slot].deadline


@compiled
def skip(s: State, m: int) -> None:
    """Leave the first request of the candidate out of it; it must have another."""
    s.mod[m].skipped += 1
    _begin(s, m, wide(s.nxt[s.mod[m].first, 0]))


@compiled
def _put_between(s: State, m: int, slot: int) -> None:
    """Link a request in that comes before the last one."""
    _find(s, m, slot)
    path = len(s.mod)
    for level in range(s.req[slot].levels):
        at = wide(s.head[path, level])
        if at < 0:
            ahead = wide(s.head[m, level])
            s.head[m, level] = slot
        else:
            ahead = wide(s.nxt[at, level])
            s.nxt[at, level] = slot
        s.nxt[slot, level] = ahead
        if ahead < 0:
            s.tail[m, level] = slot
    s.req[slot].prev = s.head[path, 0]
    s.req[s.nxt[slot, 0]].prev = slot


@inlined
def insert(s: State, m: int, slot: int) -> bool:
    """Put a request, whose deadline, seq and priority are set, where it belongs; whether that is the end."""
    req = s.req[slot]
    mod = s.mod[m]
    levels = _levels(int(req.seq))
    req.levels = levels
    last = wide(s.tail[m, 0])
    appended = last < 0 or mod.last_at < req.deadline or before(s, last, slot)
    if appended:
        mod.last_at = req.deadline
        for level in range(levels):
            at = wide(s.tail[m, level])
            if at < 0:
                s.head[m, level] = slot
            else:
                s.nxt[at, level] = slot
            s.nxt[slot, level] = -1
            s.tail[m, level] = slot
        req.prev = last
    else:
        _put_between(s, m, slot)
    mod.n += 1
    if req.priority > 0:
        mod.raised += 1
        if mod.raised == 1 or before(s, slot, wide(mod.first_raised)):
            mod.first_raised = slot
    if mod.first < 0 or (req.deadline <= mod.first_at and before(s, slot, wide(mod.first))):
        _begin(s, m, wide(s.head[m, 0]))
        mod.skipped = 0
    return appended


@inlined
def _unlink_head(s: State, m: int, slot: int) -> int:
    """Take ``slot``, the head, off every level; returns the request behind it, -1 if there is none."""
    ahead = wide(s.nxt[slot, 0])
    for level in range(s.req[slot].levels):
        then = wide(s.nxt[slot, level])
        s.head[m, level] = then
        if then < 0:
            s.tail[m, level] = -1
    if s.req[slot].priority > 0:
        _lower(s, m, slot)
    return ahead


@inlined
def _begin_behind(s: State, m: int, n: int, ahead: int) -> None:
    """``n`` requests left the head of the queue, which now begins with ``ahead``, -1 for none."""
    mod = s.mod[m]
    if ahead >= 0:
        s.req[ahead].prev = -1
    mod.n -= n
    if mod.skipped >= n:
        mod.skipped -= n
    else:
        mod.skipped = 0
        _begin(s, m, ahead)


@inlined
def pop_first(s: State, m: int, n: int, out: Int32s, at: int) -> None:
    """Take the first ``n`` requests out into ``out[at:]``; the queue must hold that many, ``n`` at least 1."""
    ahead = wide(s.head[m, 0])
    for i in range(n):
        out[at + i] = ahead
        ahead = _unlink_head(s, m, ahead)
    _begin_behind(s, m, n, ahead)


@inlined
def pop(s: State, m: int) -> int:
    """Take out the head and return it; the queue must not be empty."""
    slot = wide(s.head[m, 0])
    _begin_behind(s, m, 1, _unlink_head(s, m, slot))
    return slot


@compiled
def remove(s: State, m: int, slot: int) -> None:
    """Take ``slot`` out from wherever it stands."""
    if s.head[m, 0] == slot:
        pop(s, m)
        return
    mod = s.mod[m]
    if mod.skipped > 0 and before(s, slot, wide(mod.first)):
        mod.skipped -= 1
    elif mod.first == slot:
        _begin(s, m, wide(s.nxt[slot, 0]))
        if mod.first < 0:
            _begin(s, m, wide(s.head[m, 0]))
            mod.skipped = 0
    _find(s, m, slot)
    path = len(s.mod)
    for level in range(s.req[slot].levels):
        at = wide(s.head[path, level])
        then = wide(s.nxt[slot, level])
        if at < 0:
            s.head[m, level] = then
        else:
            s.nxt[at, level] = then
        if then < 0:
            s.tail[m, level] = at
    ahead = wide(s.nxt[slot, 0])
    if ahead >= 0:
        s.req[ahead].prev = s.req[slot].prev
    else:
        mod.last_at = s.req[s.tail[m, 0]].deadline
    mod.n -= 1
    if s.req[slot].priority > 0:
        _lower(s, m, slot)
