"""Follows observed times: a profile that drifted, and a GPU that is slower than its class.

Rule 1. What a batch took over its profile's l(b) is evidence about its model on its GPU, and about nothing else. Each
        such pair keeps a smoothed ratio. One of whom nothing was heard for FORGET_NS starts afresh, at its drift.
Rule 2. The drift of a (model, class) is what most GPUs of the class have in common on which the model was heard HEARD
        times: where more than half are off in one direction, the least of it. A model that did not run has no drift.
        Half of a drift is forgotten for each DECAY_NS in which the model did not run there.
Rule 3. The slowdown of a GPU is what several models say of it, each by its ratio there over its drift: at least two,
        and more than half of those heard HEARD times there and on another GPU of the class; the least that they say.
Rule 4. A batch is planned by the ratio of its pair; where the model has not run on the GPU, by drift and slowdown.
        But a slowdown never refuses a request: only evidence of its own model does (``trials``).
Rule 5. What acts is the estimate and 2 % more: batches planned too short are late, those planned too long only start
        early. From 5 % less to 2 % more than the profile nothing is changed, so that noise does not have the tables of
        a good profile written over and over. The drift scales the table ``lat``, by which windows are drawn; it acts
        until it is up to 5 % less.
Rule 6. A GPU slower than its class by more than SLOW ranks behind all that are not, until it is below NOT_SLOW. Here
        one model is enough, since nothing is refused.

Rule 7. Of a pair that is known (HEARD), a batch that took over OUTLIER times as long as estimated is taken for a stall
        and teaches nothing, unless the one before did too.

A pair is two words of ``State.aside``, behind the bits of ``eligibility``: odd << 30 | rest << 27 | ratio << 6 | how
often it was heard, and when it was last, in units of TENTH_NS. The ratio is in units of 1/ONE; odd: the last batch was
taken for a stall; rest: how long trials pause.
"""

from __future__ import annotations

from symphony_dask.engine.native import heap
from symphony_dask.engine.native.compiled import compiled, inlined, wide
from symphony_dask.engine.state import ABSENT, ONE, OPEN, Profiles, State, pairs_at

#: How far one batch moves the ratio of its pair; the first ones raise it by more. Noise of 10 % in execution times
#: leaves 2.3 % in the estimate.
STEP = 0.1

#: Between what shares of the profile an estimate is taken for it, and of what acts for that (rule 5).
ABOVE, BELOW = 0.02, 0.05

#: A batch counts as at most so many times longer or shorter than planned.
OUTLIER = 3.0

#: A batch that took less than this share of what was planned shows an estimate to be wrong.
FASTER = 0.9

#: Bounds of all estimates.
LEAST, MOST = 0.25, 16.0

#: Pace from which a GPU counts as slow, and below which it no longer does.
SLOW, NOT_SLOW = 1.5, 1.3

#: Added to the rank of a slow GPU.
SLOW_RANK = 1 << 40

#: Batches below this are too short to be judged, ns.
LEAST_NS = 200_000

#: A model speaks of a GPU after so many batches there.
HEARD = 5

#: A pair is forgotten, and half of a drift, when so long nothing was heard of it, ns.
FORGET_NS, DECAY_NS = 10_000_000_000, 60_000_000_000

TENTH_NS = 100_000_000

#: Of a row or a column of pairs, at most so many are read for each batch, by and large.
_READ = 16

_HEARD_BITS, _RATIO_BITS, _REST_BITS = 6, 21, 3
_MOST_HEARD = (1 << _HEARD_BITS) - 1
_MOST_RATIO = (1 << _RATIO_BITS) - 1
_REST_AT = _HEARD_BITS + _RATIO_BITS
_ODD_AT = _REST_AT + _REST_BITS

#: The longest rest of a pair (``rest``).
MOST_REST = (1 << _REST_BITS) - 1


@inlined
def new_rules(s: State) -> bool:
    """Whether the engine goes by the rules of today: not where a run is replayed that was recorded before."""
    return bool(s.g[0].rules > 0)


@compiled
def reset_gpu(s: State, g: int, rank: int) -> None:
    """A GPU that is taken to be as its class."""
    gpu = s.gpu[g]
    gpu.home_rank = rank
    gpu.rank = rank
    gpu.slowdown = 1.0
    gpu.heard = 0
    if gpu.slow == 1:
        gpu.slow = 0
        s.g[0].n_slow -= 1
    if s.g[0].observed == 1:
        for m in range(len(s.mod)):
            forget_pair(s, m, g)


@compiled
def forget_model(s: State, m: int) -> None:
    """What was observed of a model that is gone."""
    if s.g[0].observed == 1:
        for g in range(len(s.gpu)):
            forget_pair(s, m, g)


@inlined
def forget_pair(s: State, m: int, g: int) -> None:
    at = pairs_at(s, m, g)
    s.aside[at] = 0
    s.aside[at + 1] = 0


@inlined
def _tenths(now: int) -> int:
    return (now // TENTH_NS) & 0x7FFFFFFF


@inlined
def heard(s: State, m: int, g: int, now: int) -> int:
    """How often a model's times on a GPU were observed lately."""
    at = pairs_at(s, m, g)
    if _tenths(now) - s.aside[at + 1] > FORGET_NS // TENTH_NS:
        return 0
    return int(s.aside[at]) & _MOST_HEARD


@inlined
def _ratio(s: State, m: int, g: int) -> float:
    return float(int(s.aside[pairs_at(s, m, g)]) >> _HEARD_BITS & _MOST_RATIO) / ONE


@inlined
def rest(s: State, m: int, g: int) -> int:
    """How long trials of a model on a GPU pause (``trials``): 0 and 1 are none, up to MOST_REST it is ``rest_ns``."""
    return int(s.aside[pairs_at(s, m, g)]) >> _REST_AT & MOST_REST


@inlined
def set_rest(s: State, m: int, g: int, code: int) -> None:
    at = pairs_at(s, m, g)
    s.aside[at] = int(s.aside[at]) & ~(MOST_REST << _REST_AT) | code << _REST_AT


@inlined
def rest_ns(code: int) -> int:
    """How long a rest above 1 is at least, ns; it is less than TENTH_NS longer."""
    return TENTH_NS << (code - 2)


@inlined
def is_rested(s: State, m: int, g: int, now: int) -> bool:
    """Whether a model was not heard on a GPU since its rest began, and not in this tenth of a second."""
    if heard(s, m, g, now) == 0:
        return True
    code = rest(s, m, g)
    tenths = 0 if code < 2 else rest_ns(code) // TENTH_NS
    return bool(_tenths(now) - s.aside[pairs_at(s, m, g) + 1] > tenths)


@inlined
def _bounded(ratio: float) -> float:
    return min(max(ratio, LEAST), MOST)


@inlined
def _acting(estimate: float) -> float:
    """What an estimate is planned by (rule 5)."""
    return 1.0 if 1.0 - BELOW <= estimate <= 1.0 + ABOVE else estimate * (1.0 + ABOVE)


@inlined
def of(s: State, m: int, g: int, now: int) -> float:
    """How many times as long as ``lat`` says a model is taken to need on a GPU (rule 4)."""
    if heard(s, m, g, now) == 0:
        return _acting(s.gpu[g].slowdown)
    factor = _acting(_ratio(s, m, g)) * ONE / max(1, int(s.lat[m, s.gpu[g].gpu_class, 0]))
    return 1.0 if 1.0 - BELOW <= factor <= 1.0 else factor


@inlined
def is_guessed(s: State, m: int, g: int, now: int) -> bool:
    """Whether a model is planned by what others say of a GPU (rule 4)."""
    return s.g[0].observed == 1 and s.gpu[g].slowdown > 1.0 + ABOVE and heard(s, m, g, now) == 0


@compiled
def scale(s: State, m: int, g: int, factor: float) -> int:
    """Write a model's l(b) on a GPU, ``factor`` times that of its class, into the scratch row; returns the row."""
    row = len(s.lat) - 1
    s.lat[row, 0, 0] = 0
    for b in range(1, s.mod[m].max_batch + 2):
        s.lat[row, 0, b] = int(s.lat[m, s.gpu[g].gpu_class, b] * factor + 0.5)
    return row


@compiled
def observe(s: State, p: Profiles, now: int, g: int, m: int, n: int, took: int, tried: bool) -> None:
    """A batch of ``n`` requests of model ``m`` took ``took`` ns on GPU ``g``.

    tried: estimates refused it (``trials``). If they were wrong, what was observed takes their place at once.
    """
    gpu = s.gpu[g]
    c = wide(gpu.gpu_class)
    given = p.given[m, c, n]
    if given < LEAST_NS or took < 0:
        return
    s.g[0].observed = 1
    if now - p.heard_at[m, c] > DECAY_NS and p.heard_at[m, c] > 0:
        _decay(p, m, c, now)
    p.heard_at[m, c] = now
    at = pairs_at(s, m, g)
    times = heard(s, m, g, now)
    ratio = _ratio(s, m, g) if times > 0 else p.drift[m, c]
    seen = took / given
    resting = 0
    odd = False
    if new_rules(s) and times > 0:
        resting = 0 if seen < FASTER * ratio else rest(s, m, g)
        odd = seen > OUTLIER * ratio and times >= HEARD and int(s.aside[at]) >> _ODD_AT == 0
    if tried and seen < ratio:
        ratio = seen
        times = max(times, HEARD - 1)
    elif not odd:
        error = min(max(seen / ratio, 1.0 / OUTLIER), OUTLIER) - 1.0
        ratio *= 1.0 + (max(STEP, 1.0 / (times + 3)) if error > 0.0 else STEP) * error
    s.aside[at] = (
        int(_bounded(ratio) * ONE + 0.5) << _HEARD_BITS
        | min(times + 1, _MOST_HEARD)
        | resting << _REST_AT
        | (1 if odd else 0) << _ODD_AT
    )
    s.aside[at + 1] = _tenths(now)
    p.unread[m, c] += 1
    if p.unread[m, c] * _READ >= len(s.gpu) or tried:
        p.unread[m, c] = 0
        _review_model(s, p, m, c, now)
    gpu.heard += 1
    if gpu.heard * _READ >= len(s.mod):
        gpu.heard = 0
        _review_gpu(s, p, g, now)


@compiled
def _decay(p: Profiles, m: int, c: int, now: int) -> None:
    for _ in range(min(30, (now - p.heard_at[m, c]) // DECAY_NS)):
        p.drift[m, c] = 1.0 + (p.drift[m, c] - 1.0) / 2.0


@compiled
def _review_model(s: State, p: Profiles, m: int, c: int, now: int) -> None:
    """Set the drift of a model on a class by the pairs that were heard (rule 2)."""
    n = 0
    above = 0
    below = 0
    least_above = MOST
    least_below = LEAST
    for g in range(len(s.gpu)):
        gpu = s.gpu[g]
        if gpu.state == ABSENT or gpu.gpu_class != c or heard(s, m, g, now) < HEARD:
            continue
        n += 1
        ratio = _ratio(s, m, g)
        if ratio > 1.0 + ABOVE:
            above += 1
            least_above = min(least_above, ratio)
        elif ratio < 1.0 - BELOW:
            below += 1
            least_below = max(least_below, ratio)
    p.heard_on[m, c] = n
    if n == 0:
        return
    if 2 * above > n:
        p.drift[m, c] = least_above
    elif 2 * below > n:
        p.drift[m, c] = least_below
    else:
        p.drift[m, c] = 1.0
    drift = _acting(p.drift[m, c])
    if not (1.0 - BELOW) * p.acting[m, c] <= drift <= p.acting[m, c]:
        p.acting[m, c] = drift
        for b in range(1, s.mod[m].max_batch + 2):
            s.lat[m, c, b] = int(p.given[m, c, b] * drift + 0.5)
        s.lat[m, c, 0] = int(drift * ONE + 0.5)
        s.g[0].fleet_changed = 1  # targets and windows are to be drawn again


@compiled
def _review_gpu(s: State, p: Profiles, g: int, now: int) -> None:
    """Set the slowdown of a GPU by what models say of it, and rank it (rules 3 and 6)."""
    gpu = s.gpu[g]
    c = wide(gpu.gpu_class)
    n = 0
    above = 0
    below = 0
    least_above = MOST
    least_below = LEAST
    for m in range(len(s.mod)):
        if heard(s, m, g, now) < HEARD or p.heard_on[m, c] < 2:
            continue
        n += 1
        ratio = _ratio(s, m, g) / p.drift[m, c]
        if ratio > 1.0 + ABOVE:
            above += 1
            least_above = min(least_above, ratio)
        elif ratio < 1.0 - BELOW:
            below += 1
            least_below = max(least_below, ratio)
    slowdown = 1.0
    if 2 * above > n:
        slowdown = least_above
    elif 2 * below > n:
        slowdown = least_below
    slow = 1 if slowdown > (NOT_SLOW if gpu.slow == 1 else SLOW) else 0
    gpu.slowdown = slowdown if n > 1 else 1.0
    if slow != gpu.slow:
        gpu.slow = slow
        s.g[0].n_slow += 2 * slow - 1
        gpu.rank = int(gpu.home_rank) + slow * SLOW_RANK
        if gpu.state == OPEN:
            heap.rekey(s.open, s.gpu, g, gpu.rank)
