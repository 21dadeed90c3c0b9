"""Matches models with GPUs: which model gets which GPU when, and where the GPUs stand.

Rule 1. A model is ready inside its window; a GPU is open when it could start a batch without waiting.
Rule 2. While there are both, the ready model whose batch, as it would be dispatched now, must start first gets the open
        GPU of the lowest rank that can run it (``eligibility``). In overload some go before the others (``fairness``).
Rule 3. A GPU holds at most DEPTH batches; its predicted free time follows from l(b) and is corrected by completions.
Rule 4. Policy adaptive only. Beside ready models others may start before their window: all of them while fewer GPUs are
        at work than deferral would use (``packing``); and where GPUs are short, those whose opening is at most
        (waiting / FULL_SHARE) SLOs away. ``waiting`` is the smoothed share of batches that had to wait for a GPU after
        their window opened, drops counting as such: 0 while GPUs are plenty. A model that has batches at GPUs must hold
        enough requests for one more (``packing``, rule 4). Who of all these gets a GPU says ``ranking``.
        For models that prefer GPUs the share of requests that are dropped takes the place of ``waiting``, and FULL_LOSS
        that of FULL_SHARE: nothing starts early that no deadline asks for.
Rule 5. A slow GPU (``speed_tracking``) is used last, and its batches leave to faster ones the requests that it cannot
        serve in time. So that it is noticed when it is fast again, every PROBE_NS it gets what it can serve of the
        batch whose window opens next.
Rule 6. A request that only estimates refuse is tried now and then on an idle GPU, and one of a model of which nothing
        is in time starts at once there (``trials``).

States that were recorded before ``state.RULES`` are led by the rules of then: ready models in the order in which their
windows close, and ``start_early`` in place of rule 4.
"""

from __future__ import annotations

from symphony_dask.engine import deadline_queue
from symphony_dask.engine.native import heap
from symphony_dask.engine.native.compiled import compiled, inlined, wide
from symphony_dask.engine.policy import (
    eligibility,
    packing,
    priorities,
    ranking,
    speed_tracking,
    starts,
    trials,
    window,
)
from symphony_dask.engine.start_rules import BY_PROBE, BY_TRIAL
from symphony_dask.engine.state import (
    ABSENT,
    BUSY,
    DEPTH,
    DRAINING,
    FULL,
    IN_FLIGHT,
    NEVER,
    NONE,
    OPEN,
    READY,
    REMOVED,
    UNUSED,
    State,
)

#: Adaptive (rule 4): the share of waiting batches at which a model may start a whole SLO early, and how many entries of
#: the pending heap are looked at. Found by simulation over the grid of docs/results.md; to look at 21 gives up to 0.3 %
#: more goodput with 100 models, and takes a third longer.
FULL_SHARE, LOOK = 0.002, 12

#: The share of dropped requests at which models that prefer GPUs may start a whole SLO early (rule 4).
FULL_LOSS = 0.005

#: Of the rules of before: how much of a target batch the last GPU that a model needs was held for.
FORMER_HOLD, FORMER_LOOK = 1.4, 21

#: How often slow GPUs are tried, ns (rule 5).
PROBE_NS = 500_000_000


@inlined
def release_model(s: State, m: int) -> None:
    mod = s.mod[m]
    mod.in_flight -= 1
    packing.hold(s, m)
    if mod.state == REMOVED and mod.in_flight == 0:
        mod.state = UNUSED


@inlined
def shift(s: State, gpu: int, i: int) -> None:
    """Forget batch ``i`` of the GPU; later ones move up."""
    base = gpu * DEPTH
    for j in range(i, s.gpu[gpu].n_flight - 1):
        s.flight[base + j] = s.flight[base + j + 1]
    s.gpu[gpu].n_flight -= 1


@inlined
def finish(s: State, gpu: int, i: int) -> None:
    """The GPU's batch ``i`` is done: free its requests."""
    flight = s.flight[gpu * DEPTH + i]
    for j in range(flight.n):
        window.free_slot(s, wide(s.fly[flight.row, j]))
    release_model(s, wide(flight.model))
    shift(s, gpu, i)


@inlined
def place_gpu(s: State, g: int, now: int) -> None:
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
def settle(s: State, g: int, now: int) -> None:
    """Where ends are exact, finish what has ended by ``now``."""
    while s.g[0].exact == 1 and s.gpu[g].n_flight > 0 and s.flight[g * DEPTH].end <= now:
        finish(s, g, 0)


@inlined
def _early_ns(s: State, m: int) -> float:
    """How long before its window a model may start where GPUs are short (rule 4)."""
    mod = s.mod[m]
    if mod.prefers_gpus == 1:
        return min(1.0, s.g[0].lost / FULL_LOSS) * mod.slo
    return s.g[0].waiting / FULL_SHARE * mod.slo


@inlined
def _dispatch(s: State, now: int, m: int, g: int, trying: bool) -> bool:
    """Give the model's batch to the GPU, which is in no heap; False when no request could meet its deadline there, and
    none is to be tried.

    trying: whether one may be.
    """
    gpu = s.gpu[g]
    mod = s.mod[m]
    latency = s.lat[m, gpu.gpu_class]
    factor = speed_tracking.of(s, m, g, now) if s.g[0].observed == 1 else 1.0
    if factor != 1.0:
        latency = s.lat[speed_tracking.scale(s, m, g, factor), 0]
    start = max(now + gpu.control, gpu.free_at)
    waited = 1.0 if mod.state == READY and now > mod.ready_since else 0.0
    rule = starts.of(s, m, now, _early_ns(s, m))
    # A GPU on which a window that is drawn for another would be missed must not drop what that one can serve.
    keep = latency[1] > s.lat[m, mod.gpu_class, 1]
    chosen = keep or mod.raised > 0
    size = priorities.form_chosen(s, m, latency, start, keep) if chosen else window.form(s, m, latency, start)
    tried = 0
    if size == 0:
        if not trying or not trials.is_due(s, m, g, now):
            return False
        size, tried, chosen = 1, 1, False
    out = s.g[0]
    out.waiting += (waited - out.waiting) * window.WAITING_STEP
    out.early_at = now  # others may start sooner
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
    flight.tried = tried
    flight.rule = BY_TRIAL if tried == 1 else rule
    # Of a GPU's two rows the one that its other batch has not.
    flight.row = g * DEPTH if gpu.n_flight == 0 else 2 * g * DEPTH + 1 - s.flight[g * DEPTH].row
    if not chosen:
        deadline_queue.pop_first(s, m, size, s.members, row.offset)
    for i in range(size):
        slot = wide(s.members[row.offset + i])
        s.req[slot].state = IN_FLIGHT
        s.fly[flight.row, i] = slot
    out.n_members += size
    gpu.n_flight += 1
    gpu.free_at = row.end
    mod.in_flight += 1
    packing.hold(s, m)
    mod.used += row.end - start
    mod.served += size
    trials.dispatched(s, m, now)
    gpu.state = ABSENT
    place_gpu(s, g, now)
    return True


@inlined
def _place(s: State, now: int, m: int) -> bool:
    """Give the model's batch to the open GPU of the lowest rank that can run it; False if there is none."""
    aside = len(s.mod)
    n = 0
    placed = False
    while heap.size(s.open) > 0 and not placed:
        g = heap.top(s.open)
        heap.remove(s.open, g)
        placed = (s.g[0].n_ineligible == 0 or eligibility.can_run(s, m, g)) and _dispatch(
            s, now, m, g, not speed_tracking.new_rules(s)
        )
        if not placed:
            s.aside[aside + n] = g
            n += 1
    for i in range(n):
        g = wide(s.aside[aside + i])
        heap.push(s.open, s.gpu, g, s.gpu[g].rank)
    if not placed and speed_tracking.new_rules(s) and trials.may_try(s, m, now):
        placed = try_refused(s, now, m)
    return placed


@inlined
def match(s: State, now: int) -> None:
    n = 0
    while heap.size(s.ready) + heap.size(s.urgent) > 0 and heap.size(s.open) > 0:
        m = heap.top(s.urgent) if heap.size(s.urgent) > 0 else heap.top(s.ready)
        if _place(s, now, m):
            window.refresh(s, m, now)
        else:
            n = _put_aside(s, m, n)
    _put_back(s, n)


@inlined
def _put_aside(s: State, m: int, n: int) -> int:
    """Take a READY model that no open GPU can serve out of its heap; returns how many are aside."""
    heap.remove(s.urgent if s.mod[m].urgent == 1 else s.ready, m)
    s.aside[n] = m
    return n + 1


@inlined
def _put_back(s: State, n: int) -> None:
    for i in range(n):
        m = wide(s.aside[i])
        heap.push(s.urgent if s.mod[m].urgent == 1 else s.ready, s.mod, m, s.mod[m].key)


@compiled
def _give(s: State, now: int, m: int, g: int, trying: bool) -> bool:
    """``_dispatch``, not inlined."""
    return bool(_dispatch(s, now, m, g, trying))


@compiled
def _match_all(s: State, now: int) -> None:
    """``match``, not inlined."""
    match(s, now)


@compiled
def start_early(s: State, now: int) -> None:
    """After ``match``, by the rules of before; leaves in ``early_at`` when time alone will let the next model start."""
    out = s.g[0]
    out.early_at = NEVER
    if out.waiting < FULL_SHARE / 100:
        return
    while heap.size(s.open) > 0 and heap.size(s.pending) > 0:
        best = int(NONE)
        soonest = int(NEVER)
        for i in range(min(FORMER_LOOK, heap.size(s.pending))):
            m = int(s.pending[heap.ROOT + i, heap.ITEM])
            mod = s.mod[m]
            if mod.n < FORMER_HOLD * mod.target * mod.in_flight / (mod.excess + 2.0):
                continue
            if out.n_ineligible > 0 and eligibility.first_open(s, m) < 0:
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
        if out.n_ineligible > 0:
            g = eligibility.first_open(s, best)
        if s.gpu[g].slow == 1:
            return
        heap.remove(s.open, g)
        if not _give(s, now, best, g, not speed_tracking.new_rules(s)):
            heap.push(s.open, s.gpu, g, s.gpu[g].rank)
            return
        window.look(s, best, now)
        if s.mod[best].state == READY:  # what a slower GPU left may be due
            _match_all(s, now)


@inlined
def early_start(s: State, m: int, now: int, room: bool) -> int:
    """From when on a PENDING model may start (rule 4), NEVER if that takes more than time."""
    out = s.g[0]
    mod = s.mod[m]
    if mod.n < mod.large_at or window.policy_of(s, m) != window.ADAPTIVE:
        return int(NEVER)
    if out.n_ineligible > 0 and eligibility.first_open(s, m) < 0:
        return int(NEVER)
    if room and mod.prefers_gpus == 0:
        return now
    if out.waiting < FULL_SHARE / 100:
        return int(NEVER)
    return int(mod.open - int(_early_ns(s, m)))


@inlined
def _candidates(s: State, now: int) -> int:
    """Put the models that may start now in order (``ranking``); returns how many there are.

    Leaves in ``early_at`` when time alone will let the next one start.
    """
    out = s.g[0]
    n = 0
    for i in range(min(ranking.LOOK, heap.size(s.ready))):
        n = ranking.put(s, n, int(s.ready[heap.ROOT + i, heap.ITEM]), now)
    room = packing.has_room(s)
    out.early_at = NEVER
    if s.gpu[heap.top(s.open)].slow == 1 or not (room or out.waiting >= FULL_SHARE / 100):
        return n
    for i in range(min(LOOK, heap.size(s.pending))):
        m = int(s.pending[heap.ROOT + i, heap.ITEM])
        at = early_start(s, m, now, room)
        if at > now:
            out.early_at = min(out.early_at, at)
        elif n < ranking.MOST:
            n = ranking.put(s, n, m, now)
    return n


@inlined
def match_adaptively(s: State, now: int) -> None:
    """``match`` for policy adaptive (rule 4).

    Nothing is looked at where nothing came that could let a model start: ``early_at`` has what arrivals and time do.
    """
    out = s.g[0]
    n_aside = 0
    found = out.opened == 1 or out.early_at <= now or heap.size(s.ready) + heap.size(s.urgent) > 0
    while found and heap.size(s.open) > 0:
        if heap.size(s.urgent) > 0:
            m = heap.top(s.urgent)
        else:
            n = _candidates(s, now)
            if n == 0:
                break
            m = ranking.first(s, n, now)
        if _place(s, now, m):
            window.refresh(s, m, now)
        elif s.mod[m].state == READY:
            n_aside = _put_aside(s, m, n_aside)
        else:
            break
    _put_back(s, n_aside)
    if heap.size(s.open) == 0:
        out.early_at = NEVER


@compiled
def probe(s: State, now: int) -> None:
    """Rule 5: give each idle slow GPU a batch ahead of its window."""
    s.g[0].probe_at = now + PROBE_NS
    for g in range(len(s.gpu)):
        gpu = s.gpu[g]
        if gpu.slow == 0 or gpu.state != OPEN or heap.size(s.pending) == 0:
            continue
        m = heap.top(s.pending)
        if s.g[0].n_ineligible > 0 and not eligibility.can_run(s, m, g):
            continue
        heap.remove(s.open, g)
        if _give(s, now, m, g, not speed_tracking.new_rules(s)):
            starts.put(s, g, BY_PROBE)
            window.look(s, m, now)
        else:
            heap.push(s.open, s.gpu, g, gpu.rank)


@compiled
def try_refused(s: State, now: int, m: int) -> bool:
    """Rule 6: whether the first request of a model that would else wait, or be dropped, went to an idle GPU."""
    g = trials.idle_gpu(s, m, now)
    if g < 0:
        return False
    heap.remove(s.open, g)
    if _give(s, now, m, g, True):
        starts.put(s, g, BY_TRIAL)
        return True
    heap.push(s.open, s.gpu, g, s.gpu[g].rank)
    return False
