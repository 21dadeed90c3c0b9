"""Draws windows and forms batches: the formulas of deferred batch scheduling, with the paper's symbols.

Theory of operation (Symphony, arXiv 2308.07470, section 3; target batch and rejoining as in docs/architecture.md)

    l(b)       time for a batch of b requests; d the first deadline of the candidate, which holds b requests
    frontrun   d - l(b+1): from here on one more request could not join, so waiting gains nothing; the window opens
    latest     d - l(b): from here on the candidate cannot be served whole; the window closes

Rule 1. The candidate leaves out (skips) heads until the rest, run as one batch of at most the target size, could meet
        its first deadline if a GPU were free now.
Rule 2. A batch is formed for the GPU that it gets. b = min(target, rest) after skipping for that GPU's l(b) and start.
        Skipped heads that meet their deadline at l(b) rejoin; those before them are dropped.
Rule 3. Then b grows while one more request leaves the first deadline met.
Rule 4. A head that could not even run alone is dropped as soon as the model is looked at.
Rule 5. A request that joins the end of the queue of a PENDING model only moves the opening earlier. That is written
        down; the heap keeps a time that is earlier still, until which nothing has to be done, so most requests of a
        batch cost neither a place in a heap nor a look.
All deadlines here are those of the GPU's end of work: the host has taken the reply latency off them. ``control`` is the
time from a decision to the start of execution; it moves the whole window earlier. ``slack`` opens the window earlier
and leaves its end alone: it makes up for a host that is called late.
"""

from __future__ import annotations

from symphony_dask.engine import deadline_queue
from symphony_dask.engine.native import heap
from symphony_dask.engine.native.arrays import Int64s
from symphony_dask.engine.native.compiled import compiled, inlined, wide
from symphony_dask.engine.policy import eligibility, packing
from symphony_dask.engine.state import (
    FREE,
    IDLE,
    NONE,
    PENDING,
    READY,
    State,
)

#: Policies differ in when a window opens: DEFERRED and ADAPTIVE at frontrun (adaptive may start before: ``matching``),
#: EAGER at once, LATEST when it closes, TIMEOUT when the head has waited a fraction of its SLO, TARGET with the target
#: batch, at frontrun at the latest. The numbers stand in recorded states.
DEFERRED, EAGER, ADAPTIVE, LATEST, TIMEOUT, TARGET = 0, 1, 2, 3, 4, 5

#: Policies by name. "timeout" takes the fraction of the SLO in brackets, as in "timeout(0.3)"; 0.5 without.
POLICIES = {
    "deferred": DEFERRED,
    "adaptive": ADAPTIVE,
    "eager": EAGER,
    "latest": LATEST,
    "timeout": TIMEOUT,
    "target": TARGET,
}

#: Adaptive: how far one batch moves the smoothed share of batches that waited.
WAITING_STEP = 0.01

#: Adaptive aims for less than the batch of ``target_batch``, for 1 - SHORT of it. That formula takes arrivals and free
#: GPUs to be evenly spaced; as they are not, a head skipped for it is often lost for nothing. Many GPUs come free more
#: evenly than few, unless requests come in bursts: where n GPUs are at work for a model and arrivals are v times as
#: uneven as Poisson's (``burstiness``), it aims for 1 - SHORT * EVEN * v / n if that is more. Found by simulation. In
#: overload (``fairness``, rule 1) heads are lost in any case, and large batches serve most.
SHORT, EVEN = 0.5, 2.4

#: The same where a slow class of GPUs cannot serve the target batch of a fast one, or a GPU is slower than its class.
SHORT_MIXED = 0.35

#: A PENDING model is looked at after this share of the time in which it is thought to become ready; exactly at its
#: opening once fewer requests than this are thought to come until then (rule 5).
LOOK_SHARE, LOOK_COMING = 0.75, 2.0

#: A rate sample ends after so many SLOs and at least so many ns.
RATE_SLOS, RATE_NS = 8, 100_000_000


@inlined
def frontrun(latency: Int64s, deadline: int, b: int, control: int) -> int:
    """When the window of b requests with first deadline ``deadline`` opens, ns."""
    return int(deadline - latency[b + 1] - control)


@inlined
def latest(latency: Int64s, deadline: int, b: int, control: int) -> int:
    """When that window closes, ns."""
    return int(deadline - latency[b] - control)


@compiled
def target_batch(latency: Int64s, max_batch: int, slo: int, rate: float, gpus: int) -> int:
    """The batch size to aim for, at least 1.

    n = rate*l(b)/b GPUs' worth of work run staggered, so the next one is free within l(b)/n: the largest b with
    l(b)*(1 + 1/n) <= SLO. Where n <= 1 a batch waits for its own requests instead: l(b) + b/rate <= SLO. A rate of 0
    means unknown: all ``gpus`` are taken to be at work, and n never exceeds their number.
    rate: requests per ns.
    """
    best = 1
    for b in range(1, max_batch + 1):
        t = float(latency[b])
        if t > slo:
            break
        n = rate * t / b if rate > 0.0 else float(gpus)
        if n > gpus:
            n = float(gpus)
        wait = t / n if n > 1.0 else (b / rate if rate > 0.0 else t)
        if t + wait <= slo:
            best = b
    return best


@inlined
def policy_of(s: State, m: int) -> int:
    """The policy that a model's windows open by: its own, or that of all."""
    own = int(s.mod[m].own_policy)
    return own - 1 if own > 0 else int(s.g[0].policy)


@inlined
def retarget(s: State, m: int) -> None:
    mod = s.mod[m]
    gpus = max(1, s.g[0].live_gpus if s.g[0].n_ineligible == 0 else eligibility.count(s, m, int(NONE)))
    latency = s.lat[m, mod.gpu_class]
    mod.target = target_batch(latency, mod.max_batch, mod.slo, mod.rate, gpus)
    mod.excess = max(0.0, mod.rate * latency[mod.target] / mod.target - 1.0)
    if s.g[0].rules > 0 and policy_of(s, m) == ADAPTIVE:
        short = min(SHORT, SHORT * EVEN * max(1.0, s.g[0].bursts) / (1.0 + mod.excess))
        if _mind_classes(s, m, gpus) or s.g[0].n_slow > 0:
            short = SHORT_MIXED
        if s.g[0].crowded == 0:
            mod.target = max(1, int((1.0 - short) * mod.target + 0.5))
            if s.g[0].waiting < packing.CALM:
                mod.excess = (mod.excess + 2.0) * (1.0 - short) / packing.AIM_CALM - 2.0
    packing.hold(s, m)


@compiled
def _mind_classes(s: State, m: int, gpus: int) -> bool:
    """Let ``excess`` be such that a model on GPUs of several classes is held for what the slowest can serve
    (``packing``, rule 5). Returns whether there are several, of which one cannot serve the target batch.
    """
    mod = s.mod[m]
    target = int(mod.target)
    least = target
    n = 0
    speed = 0.0  # batches per ns of all GPUs
    for c in range(len(s.present)):
        count = int(s.present[c]) if s.g[0].n_ineligible == 0 else eligibility.count(s, m, c)
        if count > 0 and s.lat[m, c, 1] > 0:
            n += count
            speed += count / float(s.lat[m, c, target])
            if c != mod.gpu_class:
                least = min(least, target_batch(s.lat[m, c], mod.max_batch, mod.slo, mod.rate, gpus))
    if least < target:
        at_work = 1.0 + max(0.0, mod.rate * (n / speed) / target - 1.0)
        mod.excess = (at_work + 1.0) * target / (least * packing.HOLD_MIXED) - 2.0
    return least < target


@inlined
def _sample_rate(s: State, m: int, now: int) -> None:
    mod = s.mod[m]
    span = now - mod.rate_since
    if span >= RATE_NS and span >= RATE_SLOS * mod.slo:
        sample = mod.rate_n / float(span)
        mod.rate = sample if mod.rate == 0.0 else mod.rate + 0.3 * (sample - mod.rate)
        mod.rate_since = now
        mod.rate_n = 0
        retarget(s, m)


@inlined
def free_slot(s: State, slot: int) -> None:
    s.req[slot].state = FREE
    s.slots[s.g[0].n_slots] = slot
    s.g[0].n_slots += 1


@compiled
def drop(s: State, m: int) -> None:
    """Drop the head of the queue into the output."""
    slot = deadline_queue.pop(s, m)
    g = s.g[0]
    g.waiting += (1.0 - g.waiting) * WAITING_STEP
    g.early_at = 0  # others may start sooner
    s.mod[m].dropped += 1.0
    s.drops[g.n_drops] = slot
    g.n_drops += 1
    free_slot(s, slot)


@inlined
def unlist(s: State, m: int) -> None:
    """Take the model out of whichever heap it is in."""
    mod = s.mod[m]
    if mod.state == PENDING:
        heap.remove(s.pending, m)
    elif mod.state == READY:
        heap.remove(s.urgent if mod.urgent == 1 else s.ready, m)
    mod.state = IDLE


@inlined
def head_at(s: State, m: int) -> int:
    """Deadline of the first request queued."""
    mod = s.mod[m]
    return int(mod.first_at if mod.skipped == 0 else s.req[s.head[m, 0]].deadline)


@inlined
def _slack(s: State, m: int) -> int:
    """How much earlier than frontrun the window opens, ns."""
    g = s.g[0]
    return int(g.slack + int(g.slack_share * s.mod[m].slo) + s.mod[m].under * g.lead)


@inlined
def waited_until(s: State, m: int, deadline: int) -> int:
    """When the request with that deadline has waited as long as it may for a window, ns."""
    mod = s.mod[m]
    return int(deadline - mod.slo + mod.delay - 1)


@inlined
def _look_at(s: State, m: int, latency: Int64s, b: int, now: int) -> int:
    """When to look at a PENDING model of which ``b`` requests can be served: not after its window opens (rule 5)."""
    mod = s.mod[m]
    ahead = mod.open - now
    sooner = mod.rate * (latency[b + 1] - latency[b])  # ns by which the opening comes nearer in each ns
    if mod.rate * ahead < LOOK_COMING * (1.0 + sooner):
        return int(mod.open)
    return int(now + max(1, int(LOOK_SHARE * ahead / (1.0 + sooner))))


@inlined
def absorb(s: State, m: int, now: int) -> bool:
    """Take in a request just put at the end of the queue where only the opening of the window moves (rule 5).

    Returns False where it takes a ``refresh``.
    """
    mod = s.mod[m]
    policy = policy_of(s, m)
    rest = mod.n - mod.skipped
    if rest >= mod.max_batch or mod.state < PENDING or policy not in (DEFERRED, ADAPTIVE):
        return False
    latency = s.lat[m, mod.gpu_class]
    opening = frontrun(latency, mod.first_at, rest, s.g[0].control + _slack(s, m))
    if mod.delay > 0:
        opening = min(opening, waited_until(s, m, mod.first_at))
    if mod.state == READY:
        if rest <= mod.target:
            return False
        mod.open = opening
        return True
    if mod.skipped > 0 or opening <= now:
        return False
    mod.open = opening
    if rest <= mod.target:
        mod.close = latest(latency, mod.first_at, rest, s.g[0].control)
    if opening < mod.key:
        heap.rekey(s.pending, s.mod, m, _look_at(s, m, latency, rest, now))
    return True


@inlined
def _grown(latency: Int64s, least: int, most: int, room: int) -> int:
    """The largest batch of ``least`` to ``most`` requests that takes at most ``room`` ns, where ``least`` does."""
    while least < most:
        middle = (least + most + 1) // 2
        if latency[middle] <= room:
            least = middle
        else:
            most = middle - 1
    return least


@inlined
def size_now(s: State, m: int, latency: Int64s, now: int) -> int:
    """How large the model's batch would be if it were dispatched now (rules 2 and 3), as of its last ``refresh``."""
    mod = s.mod[m]
    rest = mod.n - mod.skipped
    most = int(min(rest, mod.max_batch))
    room = mod.first_at - s.g[0].control - now
    return most if latency[most] <= room else _grown(latency, int(min(mod.target, rest)), most, room)


@inlined
def refresh(s: State, m: int, now: int) -> None:
    """Bring the model's candidate and window up to ``now`` (rules 1 and 4), and the heap that it stands in."""
    mod = s.mod[m]
    latency = s.lat[m, mod.gpu_class]
    control = s.g[0].control
    _sample_rate(s, m, now)
    start = now + control
    while mod.n > 0 and start + latency[1] > head_at(s, m):
        drop(s, m)
    if mod.n == 0:
        unlist(s, m)
        return
    while start + latency[min(mod.target, mod.n - mod.skipped)] > mod.first_at:
        deadline_queue.skip(s, m)
    rest = mod.n - mod.skipped
    deadline = mod.first_at
    b = min(rest, mod.max_batch)
    mod.open = frontrun(latency, deadline, b, control + _slack(s, m))
    mod.close = latest(latency, deadline, min(mod.target, rest), control)
    expiry = latest(latency, head_at(s, m), 1, control)
    policy = policy_of(s, m)
    if policy == LATEST:
        mod.open = mod.close
    elif policy == TIMEOUT:
        mod.open = mod.close
        if mod.own_policy == 0:
            mod.open = min(mod.close, deadline - mod.slo + int(s.g[0].fraction * mod.slo))
    if mod.delay > 0:
        mod.open = min(mod.open, waited_until(s, m, deadline))
    at_once = policy == EAGER or (policy == TARGET and rest >= mod.target)
    state = READY if at_once or b == mod.max_batch or now >= mod.open else PENDING
    if state == READY and mod.state != READY:
        mod.ready_since = now
    urgent = 1 if mod.under == 1 or (mod.raised > 0 and s.g[0].crowded == 1) else 0
    if urgent != mod.urgent:
        unlist(s, m)
        mod.urgent = urgent
    ready = s.urgent if urgent == 1 else s.ready
    if state == READY:
        close = int(mod.close)
        if s.g[0].rules > 0:
            close = latest(latency, deadline, size_now(s, m, latency, now), control)
        key = close if mod.skipped == 0 else min(close, expiry)
        if urgent == 1 and mod.raised > 0:
            key = latest(latency, s.req[mod.first_raised].deadline, 1, control)
    else:
        lazy = mod.skipped == 0 and policy in (DEFERRED, ADAPTIVE)
        key = _look_at(s, m, latency, b, now) if lazy else min(mod.open, expiry + 1)
    if state != mod.state:
        unlist(s, m)
        heap.push(ready if state == READY else s.pending, s.mod, m, key)
        mod.state = state
    elif key != mod.key:
        heap.rekey(ready if state == READY else s.pending, s.mod, m, key)


@compiled
def look(s: State, m: int, now: int) -> None:
    """``refresh``, not inlined: for where it is called per batch or less."""
    refresh(s, m, now)


@inlined
def form(s: State, m: int, latency: Int64s, start: int) -> int:
    """Shape the batch for a GPU with l(b) ``latency`` that would start at ``start`` (rules 2 and 3).

    Drops what the rules drop; the batch is then the first requests of the queue. Returns its size, 0 when no request
    could meet its deadline there (then nothing is dropped).
    """
    _, rest, b = shape(s, m, latency, start)
    if b > 0:
        while s.mod[m].n > rest:
            drop(s, m)
    return b


@inlined
def shape(s: State, m: int, latency: Int64s, start: int) -> tuple[int, int, int]:
    """What ``form`` decides, without doing it: the batch's first request, how many requests the queue holds from there
    on, and the batch's size. The size is 0 when no request could meet its deadline.
    """
    mod = s.mod[m]
    at = wide(s.head[m, 0])
    rest = wide(mod.n)
    while rest > 0 and start + latency[min(mod.target, rest)] > s.req[at].deadline:
        at = wide(s.nxt[at, 0])
        rest -= 1
    if rest == 0:
        return -1, 0, 0
    b = min(int(mod.target), rest)
    while rest < mod.n:
        earlier = wide(s.req[at].prev)
        if start + latency[b] > s.req[earlier].deadline:
            break
        at = earlier
        rest += 1
    deadline = s.req[at].deadline
    while b < rest and b < mod.max_batch and start + latency[b + 1] <= deadline:
        b += 1
    return at, rest, b
