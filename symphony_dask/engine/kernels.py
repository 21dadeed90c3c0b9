"""Turns events into decisions: every compiled entry point of the engine.

An event changes the state and marks the models that it touches as dirty; ``advance`` then looks at what is dirty or due
(``window``) and matches models with GPUs (``matching``). Time comes in with each call, never goes back, and is the only
clock.
"""

from __future__ import annotations

from symphony_dask.engine import deadline_queue, matching
from symphony_dask.engine.native import heap
from symphony_dask.engine.native.arrays import Int32s, Int64s, Records
from symphony_dask.engine.native.compiled import compiled, inlined, wide
from symphony_dask.engine.policy import burstiness, eligibility, fairness, packing, speed_tracking, trials, window
from symphony_dask.engine.state import (
    ABSENT,
    BUSY,
    CANCELLED,
    DEPTH,
    IDLE,
    IN_FLIGHT,
    NEVER,
    OPEN,
    PENDING,
    QUEUED,
    REMOVED,
    UNUSED,
    Profiles,
    State,
)

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
        matching.settle(s, g, now)


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
    if g.adaptive == 1:
        packing.arrived(s, m, deadline, now)
    appended = deadline_queue.insert(s, m, slot)
    if not (appended and mod.dirty == 0 and priority == 0 and _take_in(s, m, now)):
        _mark(s, m)
    return slot


@inlined
def _take_in(s: State, m: int, now: int) -> bool:
    """Take in a request just put at the end of a queue, if that takes no look at the model (``window``, rule 5)."""
    g = s.g[0]
    waits = heap.size(s.open) == 0 or g.policy == window.DEFERRED or g.waiting < matching.FULL_SHARE / 100
    if g.rules == 0 and not waits:
        return False
    if not window.absorb(s, m, now):
        return False
    if g.adaptive == 1 and heap.size(s.open) > 0 and s.mod[m].state == PENDING:
        g.early_at = min(g.early_at, matching.early_start(s, m, now, packing.has_room(s)))
    return True


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
    deadline_queue.remove(s, victim, slot)
    window.free_slot(s, slot)
    _mark(s, victim)
    return True


@inlined
def list_evicted(s: State, slots: Int32s, i: int, evicted: Records, n: int) -> int:
    """Put down whom request ``i`` of a call evicted, if any: of the call itself in ``slots``, else as ``evicted[n]``.

    Returns how many are listed in ``evicted``.
    """
    g = s.g[0]
    if g.evicted < 0:
        return n
    j = i - 1
    while j >= 0 and slots[j] != g.evicted:
        j -= 1
    if j >= 0:
        slots[j] = QUEUE_FULL
    else:
        evicted[n].slot = g.evicted
        evicted[n].model = g.evicted_model
        evicted[n].request = g.evicted_request
        n += 1
    g.evicted = -1
    return n


@compiled
def submit(
    s: State,
    now: int,
    models: Int32s,
    deadlines: Int64s,
    requests: Int64s,
    priorities: Int32s,
    slots: Int32s,
    evicted: Records,
) -> int:
    """Queue requests; returns how many evicted others, of earlier calls, are listed."""
    n = wide(0)
    for i in range(len(models)):
        slots[i] = submit_one(s, now, wide(models[i]), int(deadlines[i]), int(requests[i]), wide(priorities[i]))
        n = list_evicted(s, slots, i, evicted, n)
    return n


@compiled
def cancel(s: State, now: int, slot: int) -> bool:
    """Whether the request left its queue; one in flight is only marked, and its answer is the host's to drop."""
    req = s.req[slot]
    if req.state == QUEUED:
        m = wide(req.model)
        deadline_queue.remove(s, m, slot)
        window.free_slot(s, slot)
        _mark(s, m)
        return True
    if req.state == IN_FLIGHT:
        req.state = CANCELLED
    return False


@compiled
def completed(s: State, p: Profiles, now: int, g: int, batch: int, start: int, end: int) -> bool:
    """A batch ran on GPU ``g`` from ``start`` to ``end``: free its requests, correct the GPU's free time, and learn."""
    gpu = s.gpu[g]
    base = g * DEPTH
    for i in range(gpu.n_flight):
        if s.flight[base + i].batch == batch:
            ran = s.flight[base + i]
            m = wide(ran.model)
            speed_tracking.observe(s, p, now, g, m, int(ran.n), end - start, ran.tried == 1)
            in_time = end <= s.req[s.fly[ran.row, 0]].deadline
            trials.ended(s, m, g, now, end - start, int(ran.end - ran.start), in_time, ran.tried == 1)
            matching.finish(s, g, i)
            s.g[0].opened = 1  # adaptive: a model with fewer batches at GPUs may start with a smaller one
            free_at = end
            for j in range(gpu.n_flight):
                flight = s.flight[base + j]
                took = flight.end - flight.start
                flight.start = max(flight.start, free_at) if j >= i else flight.start
                flight.end = flight.start + took
                free_at = flight.end
            gpu.free_at = free_at
            matching.place_gpu(s, g, now)
            return True
    return False


@compiled
def _follow_fleet(s: State) -> None:
    """The set of GPUs changed: windows follow the fastest class present, targets the number of GPUs."""
    s.g[0].fleet_changed = 0
    s.g[0].adaptive = 0
    for m in range(len(s.mod)):
        mod = s.mod[m]
        if mod.state == UNUSED or mod.state == REMOVED:
            continue
        if s.g[0].rules > 0 and window.policy_of(s, m) == window.ADAPTIVE:
            s.g[0].adaptive = 1
        best = int(NEVER)
        for c in range(len(s.present)):
            one = int(s.lat[m, c, 1])
            if one < 0:
                continue
            if s.present[c] == 0 or (s.g[0].n_ineligible > 0 and eligibility.count(s, m, c) == 0):
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
    speed_tracking.reset_gpu(s, g, rank)
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
        matching.settle(s, g, now)
        matching.place_gpu(s, g, now)


@compiled
def remove_gpu(s: State, now: int, g: int) -> None:
    """The GPU is gone: requests in flight go back to their queues (listed in ``members``).

    Those of a removed model have no queue to go back to: they end as drops.
    """
    matching.settle(s, g, now)
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
                deadline_queue.insert(s, m, slot)
                _mark(s, m)
        matching.release_model(s, m)
        matching.shift(s, g, 0)
    matching.place_gpu(s, g, now)
    gpu.state = ABSENT
    eligibility.forget_gpu(s, g)
    speed_tracking.reset_gpu(s, g, wide(gpu.home_rank))


@compiled
def set_control(s: State, now: int, g: int, control: int) -> None:
    """The control latency of a GPU, ns, has a new estimate."""
    s.gpu[g].control = control
    if s.gpu[g].state == BUSY or s.gpu[g].state == OPEN:
        matching.place_gpu(s, g, now)


@compiled
def set_eligible(s: State, m: int, g: int, value: bool) -> None:
    """Whether a GPU can run a model."""
    eligibility.put(s, m, g, value)
    s.g[0].fleet_changed = 1


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
    mod.try_at = NEVER if speed_tracking.new_rules(s) else now
    mod.virtual_n = 0
    mod.own_policy = 0
    mod.prefers_gpus = 0
    mod.delay = 0
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
    eligibility.forget_model(s, m)
    speed_tracking.forget_model(s, m)


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
        out.early_at = now
    if now - out.ticked_at >= fairness.TICK_NS:
        packing.tick(s, now - out.ticked_at)
        burstiness.tick(s, now - out.ticked_at)
        out.early_at = now
        fairness.tick(s, now)
    m = due(s, now)
    while m >= 0:
        if s.mod[m].state != UNUSED and s.mod[m].state != REMOVED:
            if trials.is_wanted(s, m, now):
                matching.try_refused(s, now, m)
            window.refresh(s, m, now)
            if out.adaptive == 1 and s.mod[m].state == PENDING and heap.size(s.open) > 0:
                out.early_at = min(out.early_at, matching.early_start(s, m, now, packing.has_room(s)))
        m = due(s, now)
    while heap.size(s.busy) > 0 and heap.first_key(s.busy) <= now:
        g = heap.top(s.busy)
        matching.settle(s, g, now)
        matching.place_gpu(s, g, now)
    if out.n_slow > 0 and out.probe_at <= now:
        matching.probe(s, now)
    if out.adaptive == 1:
        matching.match_adaptively(s, now)
    else:
        matching.match(s, now)
        if out.policy == window.ADAPTIVE and out.rules == 0:
            matching.start_early(s, now)
    out.opened = 0


@compiled
def step(s: State, now: int) -> int:
    """``clear_output``, ``advance`` and ``next_event`` in one call."""
    clear_output(s)
    advance(s, now)
    return next_event(s)


@inlined
def next_event(s: State) -> int:
    """When ``advance`` has something to do if nothing else happens; NEVER when it has not."""
    out = s.g[0]
    adaptive = out.adaptive == 1 or (out.policy == window.ADAPTIVE and out.rules == 0)
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
