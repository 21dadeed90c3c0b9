"""Events in, decisions out: every compiled entry point of the engine.

An event changes the state and marks the models that it touches as dirty; ``advance`` then looks at what is dirty or due
and matches models with GPUs:

Rule 1. A model is ready inside its window; a GPU is open when it could start a batch without waiting.
Rule 2. While there are both, the ready model whose window closes first gets the open GPU of the lowest rank. In
        overload some go before the others (``share``).
Rule 3. A GPU holds at most DEPTH batches; its predicted free time follows from l(b) and is corrected by completions.
Rule 4. Policy adaptive only. ``waiting`` is the smoothed share of batches that had to wait for a GPU after their window
        opened, drops counting as such: 0 while GPUs are plenty, and then this is the paper's rule. While GPUs are idle
        and no window is open, a model starts early if its opening is at most (waiting / FULL_SHARE) SLOs away; of such
        models the one whose window closes first. It must hold HOLD * i/(n + 1) target batches, where i of its batches
        are at GPUs and n >= 1 is how many GPUs its load needs: each further GPU takes a larger batch, because a model
        that spans several would otherwise settle into small batches that keep all busy, as buses bunch.
Rule 5. A slow GPU (``pace``) is used last, and its batches leave to faster ones the requests that it cannot serve in
        time. So that it is noticed when it is fast again, every PROBE_NS it gets what it can serve of the batch whose
        window opens next; where it could not serve even a new request, what is thought of its pace is lowered.
Rule 6. Time comes in with each call, never goes back, and is the only clock.
"""

from __future__ import annotations

from typing import Any

from symphony_dask.scheduling import heap, pace, queue, share, window
from symphony_dask.scheduling.compiled import compiled, inlined, wide
from symphony_dask.scheduling.state import (
    ABSENT,
    BUSY,
    CANCELLED,
    DEPTH,
    DRAINING,
    FULL,
    IDLE,
    IN_FLIGHT,
    NEVER,
    NONE,
    OPEN,
    QUEUED,
    READY,
    REMOVED,
    UNUSED,
    Profiles,
    State,
)

#: Adaptive (rule 4): the share of waiting batches at which a model may start a whole SLO early, how much of a target
#: batch the last GPU that a model needs is held for, and how many entries of the pending heap are looked at: its first
#: three levels. Found by simulation over the grid of docs/results.md.
FULL_SHARE, HOLD, LOOK = 0.002, 1.4, 21

#: How often slow GPUs are tried, ns, and what is left of the pace of one that nothing could be given (rule 5).
PROBE_NS, HOPE = 500_000_000, 0.95

#: Answers of ``submit`` in place of a slot.
QUEUE_FULL, NO_MODEL = -1, -2


@inlined
def _mark(s: State, m: int) -> None:
    if s.mod[m].dirty == 0:
        s.mod[m].dirty = 1
        s.dirty[s.g[0].n_dirty] = m
        s.g[0].n_dirty += 1


@compiled
def clear_output(s: State) -> None:
    g = s.g[0]
    g.n_batches = 0
    g.n_members = 0
    g.n_drops = 0


@compiled
def _settle_all(s: State, now: int) -> None:
    """Free the requests of batches that ended since the last look at their GPU."""
    for g in range(len(s.gpu)):
        _settle(s, g, now)


@inlined
def submit_one(s: State, now: int, m: int, deadline: int, request: int, priority: int = 0) -> int:
    """Queue one request; returns its slot, QUEUE_FULL or NO_MODEL.

    One of higher priority than others may have one of these evicted to make room: see ``evicted`` of the scalars.
    """
    g = s.g[0]
    if m < 0 or m >= len(s.mod) or s.mod[m].state == UNUSED or s.mod[m].state == REMOVED:
        return NO_MODEL
    mod = s.mod[m]
    if g.n_slots == 0 and g.exact == 1:
        _settle_all(s, now)
    if (mod.n >= mod.limit or g.n_slots == 0) and (priority == 0 or not _evict(s, m, priority)):
        return QUEUE_FULL
    g.n_slots -= 1
    slot = wide(s.slots[g.n_slots])
    req = s.req[slot]
    req.deadline = deadline
    req.seq = g.seq
    req.request = request
    req.model = m
    req.priority = priority
    req.state = QUEUED
    g.seq += 1
    mod.rate_n += 1
    appended = queue.insert(s, m, slot)
    if not (appended and mod.dirty == 0 and priority == 0 and _may_wait(s) and window.absorb(s, m, now)):
        _mark(s, m)
    return slot


@inlined
def _may_wait(s: State) -> bool:
    """Whether nothing but its own window can let a model start (rule 4)."""
    g = s.g[0]
    return bool(g.policy == window.DEFERRED or heap.size(s.open) == 0 or g.waiting < FULL_SHARE / 100)


@compiled
def _evict(s: State, m: int, priority: int) -> bool:
    """Make room for a request of model ``m``: the latest of the lowest priority leaves its queue, if that is lower.

    Of model ``m`` where its queue is full; else of the model with most requests of priority 0, if there is one.
    """
    g = s.g[0]
    victim = m
    if s.mod[m].n < s.mod[m].limit:
        most = 0
        for i in range(len(s.mod)):
            if s.mod[i].n - s.mod[i].raised > most:
                victim = i
                most = s.mod[i].n - s.mod[i].raised
    slot = -1
    lowest = priority
    at = wide(s.tail[victim, 0])
    while at >= 0 and lowest > 0:
        if s.req[at].priority < lowest:
            slot = at
            lowest = int(s.req[at].priority)
        at = wide(s.req[at].prev)
    if slot < 0:
        return False
    g.evicted = slot
    g.evicted_model = victim
    g.evicted_request = s.req[slot].request
    queue.remove(s, victim, slot)
    window.free_slot(s, slot)
    _mark(s, victim)
    return True


@compiled
def submit(
    s: State, now: int, models: Any, deadlines: Any, requests: Any, priorities: Any, slots: Any, evicted: Any
) -> int:
    """Queue requests; returns how many evicted others, of earlier calls, are listed."""
    g = s.g[0]
    n = 0
    for i in range(len(models)):
        slots[i] = submit_one(s, now, wide(models[i]), int(deadlines[i]), int(requests[i]), wide(priorities[i]))
        if g.evicted >= 0:
            j = i - 1
            while j >= 0 and slots[j] != g.evicted:
                j -= 1
            if j >= 0:  # came in by this very call
                slots[j] = QUEUE_FULL
            else:
                evicted[n].slot = g.evicted
                evicted[n].model = g.evicted_model
                evicted[n].request = g.evicted_request
                n += 1
            g.evicted = -1
    return n


@compiled
def cancel(s: State, now: int, slot: int) -> bool:
    """Whether the request left its queue; one in flight is only marked, and its answer is the host's to drop."""
    req = s.req[slot]
    if req.state == QUEUED:
        m = wide(req.model)
        queue.remove(s, m, slot)
        window.free_slot(s, slot)
        _mark(s, m)
        return True
    if req.state == IN_FLIGHT:
        req.state = CANCELLED
    return False


@inlined
def _release_model(s: State, m: int) -> None:
    mod = s.mod[m]
    mod.in_flight -= 1
    if mod.state == REMOVED and mod.in_flight == 0:
        mod.state = UNUSED


@inlined
def _shift(s: State, gpu: int, i: int) -> None:
    """Forget batch ``i`` of the GPU; later ones move up."""
    base = gpu * DEPTH
    for j in range(i, s.gpu[gpu].n_flight - 1):
        s.flight[base + j] = s.flight[base + j + 1]
    s.gpu[gpu].n_flight -= 1


@inlined
def _finish(s: State, gpu: int, i: int) -> None:
    """The GPU's batch ``i`` is done: free its requests."""
    flight = s.flight[gpu * DEPTH + i]
    for j in range(flight.n):
        window.free_slot(s, wide(s.fly[flight.row, j]))
    _release_model(s, wide(flight.model))
    _shift(s, gpu, i)


@inlined
def _place_gpu(s: State, g: int, now: int) -> None:
    """Put the GPU where its batches and its predicted free time say it belongs."""
    gpu = s.gpu[g]
    if gpu.state == OPEN:
        heap.remove(s.open, g)
    elif gpu.state == BUSY:
        heap.remove(s.busy, g)
    if gpu.draining == 1:
        if s.g[0].exact == 1 and gpu.n_flight > 0:
            gpu.state = BUSY
            heap.push(s.busy, s.gpu, g, s.flight[g * DEPTH].end)
        else:
            gpu.state = DRAINING
        return
    at = gpu.free_at - gpu.control
    if gpu.n_flight == DEPTH:
        if s.g[0].exact == 0:
            gpu.state = FULL
            return
        at = max(at, s.flight[g * DEPTH].end)
    if at <= now and gpu.n_flight < DEPTH:
        gpu.state = OPEN
        s.g[0].opened = 1
        heap.push(s.open, s.gpu, g, gpu.rank)
    else:
        gpu.state = BUSY
        heap.push(s.busy, s.gpu, g, at)


@inlined
def _settle(s: State, g: int, now: int) -> None:
    """Where ends are exact, finish what has ended by ``now``."""
    while s.g[0].exact == 1 and s.gpu[g].n_flight > 0 and s.flight[g * DEPTH].end <= now:
        _finish(s, g, 0)


@compiled
def completed(s: State, p: Profiles, now: int, g: int, batch: int, start: int, end: int) -> bool:
    """A batch ran on GPU ``g`` from ``start`` to ``end``: free its requests, correct the GPU's free time, and learn."""
    gpu = s.gpu[g]
    base = g * DEPTH
    for i in range(gpu.n_flight):
        if s.flight[base + i].batch == batch:
            pace.observe(s, p, g, wide(s.flight[base + i].model), int(s.flight[base + i].n), end - start)
            _finish(s, g, i)
            free_at = end
            for j in range(gpu.n_flight):
                flight = s.flight[base + j]
                took = flight.end - flight.start
                flight.start = max(flight.start, free_at) if j >= i else flight.start
                flight.end = flight.start + took
                free_at = flight.end
            gpu.free_at = free_at
            _place_gpu(s, g, now)
            return True
    return False


@compiled
def _follow_fleet(s: State) -> None:
    """The set of GPUs changed: windows follow the fastest class present, targets the number of GPUs."""
    s.g[0].fleet_changed = 0
    for m in range(len(s.mod)):
        mod = s.mod[m]
        if mod.state == UNUSED or mod.state == REMOVED:
            continue
        best = int(NEVER)
        for c in range(len(s.present)):
            one = int(s.lat[m, c, 1])
            if one < 0:
                continue
            if s.present[c] == 0:
                one += int(NEVER) // 2  # a class without GPUs serves only while there is no other
            if one < best:
                best = one
                mod.gpu_class = c
        window.retarget(s, m)
        _mark(s, m)


@compiled
def add_gpu(s: State, now: int, g: int, gpu_class: int, rank: int, control: int) -> None:
    gpu = s.gpu[g]
    gpu.gpu_class = gpu_class
    pace.reset_gpu(s, g, rank)
    gpu.control = control
    gpu.free_at = now
    gpu.n_flight = 0
    gpu.draining = 0
    gpu.state = OPEN
    heap.push(s.open, s.gpu, g, rank)
    s.g[0].live_gpus += 1
    s.present[gpu_class] += 1
    s.g[0].fleet_changed = 1


@compiled
def drain_gpu(s: State, now: int, g: int) -> None:
    """Give the GPU no more batches; what it has ends as usual."""
    if s.gpu[g].draining == 0:
        s.gpu[g].draining = 1
        s.g[0].live_gpus -= 1
        s.present[s.gpu[g].gpu_class] -= 1
        s.g[0].fleet_changed = 1
        _settle(s, g, now)
        _place_gpu(s, g, now)


@compiled
def remove_gpu(s: State, now: int, g: int) -> None:
    """The GPU is gone: requests in flight go back to their queues (listed in ``members``).

    Those of a removed model have no queue to go back to: they end as drops.
    """
    _settle(s, g, now)
    drain_gpu(s, now, g)
    gpu = s.gpu[g]
    out = s.g[0]
    while gpu.n_flight > 0:
        flight = s.flight[g * DEPTH]
        m = wide(flight.model)
        for j in range(flight.n):
            slot = wide(s.fly[flight.row, j])
            if s.req[slot].state == CANCELLED:
                window.free_slot(s, slot)
            elif s.mod[m].state == REMOVED:
                s.drops[out.n_drops] = slot
                out.n_drops += 1
                window.free_slot(s, slot)
            else:
                s.members[out.n_members] = slot
                out.n_members += 1
                s.req[slot].state = QUEUED
                queue.insert(s, m, slot)
                _mark(s, m)
        _release_model(s, m)
        _shift(s, g, 0)
    _place_gpu(s, g, now)
    gpu.state = ABSENT
    pace.reset_gpu(s, g, wide(gpu.home_rank))


@compiled
def set_control(s: State, now: int, g: int, control: int) -> None:
    """The control latency of a GPU, ns, has a new estimate."""
    s.gpu[g].control = control
    if s.gpu[g].state == BUSY or s.gpu[g].state == OPEN:
        _place_gpu(s, g, now)


@compiled
def add_model(s: State, now: int, m: int, slo: int, max_batch: int, limit: int) -> None:
    mod = s.mod[m]
    mod.slo = slo
    mod.max_batch = max_batch
    mod.limit = limit
    mod.rate = 0.0
    mod.rate_since = now
    mod.rate_n = 0
    mod.n = 0
    mod.skipped = 0
    mod.first = -1
    mod.in_flight = 0
    mod.gpu_class = 0
    mod.excess = 0.0
    mod.raised = 0
    mod.first_raised = -1
    mod.used = 0.0
    mod.served = 0.0
    mod.dropped = 0.0
    mod.under = 0
    mod.urgent = 0
    mod.state = IDLE
    s.g[0].fleet_changed = 1


@compiled
def remove_model(s: State, now: int, m: int) -> None:
    """Forget the model; its queued requests are listed as drops, its batches in flight still end."""
    mod = s.mod[m]
    window.unlist(s, m)
    while mod.n > 0:
        window.drop(s, m)
    mod.state = REMOVED if mod.in_flight > 0 else UNUSED
    s.lat[m, :, :] = -1


@inlined
def _dispatch(s: State, now: int, m: int, g: int) -> bool:
    """Give the model's batch to the GPU, which is in no heap; False when no request could meet its deadline there."""
    gpu = s.gpu[g]
    mod = s.mod[m]
    latency = s.lat[m, gpu.gpu_class]
    if gpu.acting_pace != 1.0:
        latency = s.lat[pace.scale(s, m, g), 0]
    start = max(now + gpu.control, gpu.free_at)
    waited = 1.0 if mod.state == READY and now > mod.ready_since else 0.0
    # A GPU on which a window that is drawn for another would be missed must not drop what that one can serve.
    keep = gpu.acting_pace > 1.0 or latency[1] > s.lat[m, mod.gpu_class, 1]
    chosen = keep or mod.raised > 0
    size = window.form_chosen(s, m, latency, start, keep) if chosen else window.form(s, m, latency, start)
    if size == 0:
        return False
    out = s.g[0]
    out.waiting += (waited - out.waiting) * window.WAITING_STEP
    mod.ready_since = now
    row = s.batches[out.n_batches]
    row.batch = out.next_batch
    row.window_open = mod.open
    row.window_close = mod.close
    row.start = start
    row.end = start + latency[size]
    row.model = m
    row.gpu = g
    row.size = size
    row.offset = out.n_members
    out.n_batches += 1
    out.next_batch += 1
    flight = s.flight[g * DEPTH + gpu.n_flight]
    flight.batch = row.batch
    flight.start = row.start
    flight.end = row.end
    flight.model = m
    flight.n = size
    # Of a GPU's two rows the one that its other batch has not.
    flight.row = g * DEPTH if gpu.n_flight == 0 else 2 * g * DEPTH + 1 - s.flight[g * DEPTH].row
    if not chosen:
        queue.pop_first(s, m, size, s.members, row.offset)
    for i in range(size):
        slot = wide(s.members[row.offset + i])
        s.req[slot].state = IN_FLIGHT
        s.fly[flight.row, i] = slot
    out.n_members += size
    gpu.n_flight += 1
    gpu.free_at = row.end
    mod.in_flight += 1
    mod.used += row.end - start
    mod.served += size
    gpu.state = ABSENT
    _place_gpu(s, g, now)
    return True


@inlined
def _match(s: State, now: int) -> None:
    n_models = len(s.mod)
    aside_models = 0
    while heap.size(s.ready) + heap.size(s.urgent) > 0 and heap.size(s.open) > 0:
        m = heap.top(s.urgent) if heap.size(s.urgent) > 0 else heap.top(s.ready)
        aside_gpus = 0
        placed = False
        while heap.size(s.open) > 0 and not placed:
            g = heap.top(s.open)
            heap.remove(s.open, g)
            placed = _dispatch(s, now, m, g)
            if not placed:
                s.aside[n_models + aside_gpus] = g
                aside_gpus += 1
        for i in range(aside_gpus):
            g = wide(s.aside[n_models + i])
            heap.push(s.open, s.gpu, g, s.gpu[g].rank)
        if placed:
            window.refresh(s, m, now)
        else:
            heap.remove(s.urgent if s.mod[m].urgent == 1 else s.ready, m)
            s.aside[aside_models] = m
            aside_models += 1
    for i in range(aside_models):
        m = wide(s.aside[i])
        heap.push(s.urgent if s.mod[m].urgent == 1 else s.ready, s.mod, m, s.mod[m].key)


@compiled
def _give(s: State, now: int, m: int, g: int) -> bool:
    """``_dispatch``, not inlined."""
    return bool(_dispatch(s, now, m, g))


@compiled
def _match_all(s: State, now: int) -> None:
    """``_match``, not inlined."""
    _match(s, now)


@compiled
def _start_early(s: State, now: int) -> None:
    """Rule 4, after ``_match``; leaves in ``early_at`` when time alone will let the next model start."""
    out = s.g[0]
    out.early_at = NEVER
    if out.waiting < FULL_SHARE / 100:
        return
    while heap.size(s.open) > 0 and heap.size(s.pending) > 0:
        best = int(NONE)
        soonest = int(NEVER)
        for i in range(min(LOOK, heap.size(s.pending))):
            m = int(s.pending[heap.ROOT + i, heap.ITEM])
            mod = s.mod[m]
            if mod.n < HOLD * mod.target * mod.in_flight / (mod.excess + 2.0):
                continue
            at = int(mod.open - int(out.waiting / FULL_SHARE * mod.slo))
            if at > now:
                soonest = min(soonest, at)
            elif best < 0 or mod.close < s.mod[best].close:
                best = m
        if best < 0:
            out.early_at = soonest
            return
        g = heap.top(s.open)
        if s.gpu[g].slow == 1:
            return
        heap.remove(s.open, g)
        if not _give(s, now, best, g):
            heap.push(s.open, s.gpu, g, s.gpu[g].rank)
            return
        window.look(s, best, now)
        if s.mod[best].state == READY:  # what a slower GPU left may be due
            _match_all(s, now)


@compiled
def _probe(s: State, now: int) -> None:
    """Rule 5: give each idle slow GPU a batch ahead of its window, or hope that it became faster."""
    s.g[0].probe_at = now + PROBE_NS
    for g in range(len(s.gpu)):
        gpu = s.gpu[g]
        if gpu.slow == 0 or gpu.state != OPEN or heap.size(s.pending) == 0:
            continue
        m = heap.top(s.pending)
        heap.remove(s.open, g)
        if _give(s, now, m, g):
            window.look(s, m, now)
        else:
            heap.push(s.open, s.gpu, g, gpu.rank)
            if gpu.control + s.lat[m, gpu.gpu_class, 1] * gpu.acting_pace > s.mod[m].slo:
                gpu.pace *= HOPE
                pace.follow_pace(s, g)


@inlined
def due(s: State, now: int) -> int:
    """A model to be looked at, -1 when there is none: requests came, its window opens or closes, or its time is up."""
    out = s.g[0]
    if out.n_dirty > 0:
        out.n_dirty -= 1
        m = wide(s.dirty[out.n_dirty])
        s.mod[m].dirty = 0
        return m
    if heap.size(s.pending) > 0 and heap.first_key(s.pending) <= now:
        return heap.top(s.pending)
    if heap.size(s.ready) > 0 and heap.first_key(s.ready) < now:
        return heap.top(s.ready)
    if heap.size(s.urgent) > 0 and heap.first_key(s.urgent) < now:
        return heap.top(s.urgent)
    return -1


@compiled
def advance(s: State, now: int) -> None:
    """Look at all that is dirty or due at ``now`` and write dispatches and drops to the output."""
    out = s.g[0]
    if out.fleet_changed == 1:
        _follow_fleet(s)
    if now - out.ticked_at >= share.TICK_NS:
        share.tick(s, now)
    m = due(s, now)
    while m >= 0:
        if s.mod[m].state != UNUSED and s.mod[m].state != REMOVED:
            window.refresh(s, m, now)
        m = due(s, now)
    while heap.size(s.busy) > 0 and heap.first_key(s.busy) <= now:
        g = heap.top(s.busy)
        _settle(s, g, now)
        _place_gpu(s, g, now)
    if out.n_slow > 0 and out.probe_at <= now:
        _probe(s, now)
    _match(s, now)
    if out.policy == window.ADAPTIVE:
        _start_early(s, now)
    out.opened = 0


@inlined
def next_event(s: State) -> int:
    """When ``advance`` has something to do if nothing else happens; NEVER when it has not."""
    out = s.g[0]
    adaptive = out.policy == window.ADAPTIVE
    if out.n_dirty > 0 or out.fleet_changed == 1:
        return 0
    if out.opened == 1 and (
        heap.size(s.ready) > 0 or heap.size(s.urgent) > 0 or (adaptive and heap.size(s.pending) > 0)
    ):
        return 0
    at = int(NEVER)
    if heap.size(s.pending) > 0:
        at = min(at, heap.first_key(s.pending))
    if heap.size(s.ready) > 0:
        at = min(at, heap.first_key(s.ready) + 1)
    if heap.size(s.urgent) > 0:
        at = min(at, heap.first_key(s.urgent) + 1)
    if heap.size(s.busy) > 0:
        at = min(at, heap.first_key(s.busy))
    if adaptive:
        at = min(at, int(out.early_at))
    if out.n_slow > 0 and heap.size(s.pending) > 0 and heap.size(s.open) > 0:
        at = min(at, int(out.probe_at))
    return at
