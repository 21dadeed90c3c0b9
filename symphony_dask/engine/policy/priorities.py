"""Forms batches where priorities differ, or where the GPU must leave what it cannot serve.

Rule 1. Where priorities differ, the batch takes the highest of all that meet its end, among equals the earliest
        deadlines; the others stay queued. It is of the size it would be without priorities, or so much smaller that
        most requests of a priority above 0 are part of it.
Rule 2. Sizes and drops are otherwise those of ``window``.
"""

from __future__ import annotations

from symphony_dask.engine import deadline_queue
from symphony_dask.engine.native.arrays import Int64s
from symphony_dask.engine.native.compiled import compiled, wide
from symphony_dask.engine.policy import window
from symphony_dask.engine.queue_limits import MOST_PRIORITY
from symphony_dask.engine.state import State


@compiled
def form_chosen(s: State, m: int, latency: Int64s, start: int, keep: bool) -> int:
    """As ``form``, where the batch need not be the head of the queue: it is then in ``members``, from ``n_members`` on.

    Of the requests that could be in a batch of that size (rule 1) it takes those of the highest priorities. With
    ``keep`` nothing is dropped: what this GPU cannot serve in time stays queued for those that are faster.
    """
    at, rest, b = window.shape(s, m, latency, start)
    mod = s.mod[m]
    if mod.raised > 0:
        at, rest, b = _shrink(s, m, latency, start, at, rest, b)
    if b == 0:
        return 0
    if not keep:
        while mod.n > rest:
            window.drop(s, m)
    lowest, equals = (0, b) if mod.raised == 0 else _cut(s, at, b)
    members = s.g[0].n_members
    taken = 0
    while taken < b:
        priority = s.req[at].priority
        if priority > lowest or (priority == lowest and equals > 0):
            if priority == lowest:
                equals -= 1
            s.members[members + taken] = at
            taken += 1
        at = wide(s.nxt[at, 0])
    for i in range(b):
        deadline_queue.remove(s, m, wide(s.members[members + i]))
    return b


@compiled
def _shrink(s: State, m: int, latency: Int64s, start: int, at: int, rest: int, b: int) -> tuple[int, int, int]:
    """What ``shape`` found, made smaller where so more requests of priority above 0 can be part of it (rule 1)."""
    mod = s.mod[m]
    slot = wide(mod.first_raised)
    if b == 0 or not deadline_queue.before(s, slot, at):
        return at, rest, b
    left = int(mod.raised)
    size = 0
    most = 0
    first = -1
    first_size = 0
    while slot != at:
        if s.req[slot].priority > 0:
            while size < b and start + latency[size + 1] <= s.req[slot].deadline:
                size += 1
            if size > 0 and min(size, left) * latency[first_size] >= most * latency[size]:
                most = min(size, left)
                first = slot
                first_size = size
            left -= 1
        slot = wide(s.nxt[slot, 0])
    if first < 0 or min(b, left) * latency[first_size] >= most * latency[b]:
        return at, rest, b
    slot = first
    while slot != at:
        rest += 1
        slot = wide(s.nxt[slot, 0])
    earlier = wide(s.req[first].prev)
    while earlier >= 0 and start + latency[first_size] <= s.req[earlier].deadline:
        first = earlier
        rest += 1
        earlier = wide(s.req[first].prev)
    return first, rest, first_size


@compiled
def _cut(s: State, at: int, b: int) -> tuple[int, int]:
    """The lowest priority among the ``b`` highest from ``at`` on, and how many of that priority are among them."""
    level = MOST_PRIORITY
    while True:
        n = 0
        below = 0
        slot = at
        while slot >= 0:
            priority = int(s.req[slot].priority)
            if priority == level:
                n += 1
            elif priority < level:
                below = max(below, priority)
            slot = wide(s.nxt[slot, 0])
        if n >= b or level == 0:
            return level, b
        b -= n
        level = below
