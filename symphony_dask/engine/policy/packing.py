"""Packs load onto few GPUs without waiting for nothing: how many GPUs start batches at once.

Deferral fills batches, and so needs the fewest GPUs; but a request that waits for its window where a GPU is idle anyway
gains nothing by that. So adaptive does this:

Rule 1. ``needed`` is how many GPUs deferral would keep busy. It is measured: each model's arrivals are also put into
        batches that are never run, which close at their frontrun as if GPUs were plenty (the paper's rule), and their
        l(b) is summed. Bursts, profiles and SLOs all enter as they are.
Rule 2. While fewer than k = needed + SPREAD * sqrt(needed) + 1 GPUs are at work, a model starts at once. SPREAD covers
        the peaks of the batches of deferral, which come at random: it would use about as many GPUs.
Rule 3. A further GPU is woken by a window alone, or by what ``matching`` has for contention.
Rule 4. The i-th batch that a model has at GPUs at once must hold HOLD * i/(n + 1) target batches, where n >= 1 is how
        many GPUs its load needs: each further GPU takes a larger batch, because a model that spans several would
        otherwise settle into small batches that keep all busy, as buses bunch. While batches hardly ever wait
        for a GPU (CALM), a target batch counts as AIM_CALM of ``target_batch`` here, even where a model aims for less:
        load is to stay on few GPUs. Where they wait, a smaller hold serves bursts better.
Rule 5. On GPUs of several classes the target batch of rule 4 is the least of any class, or slow GPUs would wait for
        more requests than they can serve in time; n counts with the mean time of a batch over all GPUs; and HOLD_MIXED
        of that is enough, as batches of different lengths do not bunch.

So a lone request on an idle cluster starts when it comes.
"""

from __future__ import annotations

import math

from symphony_dask.engine.native import heap
from symphony_dask.engine.native.compiled import compiled, inlined
from symphony_dask.engine.state import State

#: Rules 2, 4 and 5, found by simulation (docs/results.md).
SPREAD, HOLD, HOLD_MIXED = 0.7, 2.1, 0.5

#: Rule 4: the smoothed share of batches that wait, and of ``target_batch``.
CALM, AIM_CALM = 0.002, 0.65

#: Rule 4: no batch is held for more requests than this.
MOST_HELD = 2**15 - 1

#: How far one tick of ``fairness`` moves ``needed``.
STEP = 0.3


@inlined
def arrived(s: State, m: int, deadline: int, now: int) -> None:
    """Count a request of model ``m`` (rule 1)."""
    mod = s.mod[m]
    if mod.virtual_n > 0:
        latency = s.lat[m, mod.gpu_class]
        if mod.virtual_n >= mod.max_batch or now >= mod.virtual_first - latency[mod.virtual_n + 1]:
            s.g[0].virtual_work += latency[mod.virtual_n]
            mod.virtual_n = 0
    if mod.virtual_n == 0 or deadline < mod.virtual_first:
        mod.virtual_first = deadline
    mod.virtual_n += 1


@compiled
def tick(s: State, span: int) -> None:
    """Draw ``needed`` and k anew, ``span`` ns after the last time."""
    g = s.g[0]
    seen = g.virtual_work / max(1.0, float(span))
    g.virtual_work = 0
    g.needed = seen if g.needed == 0.0 else g.needed + STEP * (seen - g.needed)
    g.packed = math.ceil(g.needed + SPREAD * math.sqrt(g.needed)) + 1


@inlined
def has_room(s: State) -> bool:
    """Whether batches start at once (rule 2)."""
    g = s.g[0]
    return bool(g.live_gpus - heap.size(s.open) < g.packed)


@inlined
def hold(s: State, m: int) -> None:
    """How many requests a model needs for one more batch at a GPU: anew, as what rule 4 looks at has changed."""
    mod = s.mod[m]
    mod.large_at = min(MOST_HELD, math.ceil(HOLD * mod.target * mod.in_flight / (mod.excess + 2.0)))
