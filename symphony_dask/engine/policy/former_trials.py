"""Gives the trials of before, by which runs that were recorded then are replayed decision for decision.

Rule 1. A model that estimates leave without a batch has its first request tried, alone, on an idle GPU where the
        profile as it was declared says that it can be in time.
Rule 2. It is tried LEAST_NS after its last batch or trial; at once if that trial was in time; and if it took longer
        than the SLO, PARTS times as long as that after it. A trial counts as at most ``speed_tracking.OUTLIER`` times
        as long as thought.
Rule 3. What only the slowdown of a GPU refuses, of which others spoke, is tried at once.
"""

from __future__ import annotations

from symphony_dask.engine.native import heap
from symphony_dask.engine.native.compiled import compiled, inlined
from symphony_dask.engine.policy import eligibility, speed_tracking, window
from symphony_dask.engine.state import ONE, OPEN, State

#: Rule 2.
LEAST_NS, MOST_NS, PARTS = 100_000_000, 5_000_000_000, 8


@inlined
def is_due(s: State, m: int, g: int, now: int) -> bool:
    """Whether the first request of a model, which estimates refuse on this GPU, is to be tried there."""
    gpu = s.gpu[g]
    if gpu.n_flight > 0 or s.g[0].exact == 1 or s.mod[m].n == 0:
        return False
    if now < s.mod[m].try_at and not speed_tracking.is_guessed(s, m, g, now):
        return False
    declared = int(s.lat[m, gpu.gpu_class, 1]) * ONE // max(1, int(s.lat[m, gpu.gpu_class, 0]))
    return bool(now + declared <= window.head_at(s, m))


@inlined
def is_refused(s: State, m: int, now: int) -> bool:
    """Whether estimates would have the first request of a model dropped now, and a trial is due."""
    mod = s.mod[m]
    return bool(
        mod.n > 0
        and now >= mod.try_at
        and s.g[0].exact == 0
        and heap.size(s.open) > 0
        and now + s.g[0].control + s.lat[m, mod.gpu_class, 1] > window.head_at(s, m)
    )


@compiled
def idle_gpu(s: State, m: int, now: int) -> int:
    """Of the GPUs that are idle and on which a trial of the model is due, the one that is thought to be the fastest;
    of equals the one of the lowest rank. -1 if there is none.
    """
    best = -1
    least = 0.0
    for g in range(len(s.gpu)):
        gpu = s.gpu[g]
        if gpu.state != OPEN or not eligibility.can_run(s, m, g) or not is_due(s, m, g, now):
            continue
        alone = s.lat[m, gpu.gpu_class, 1] * speed_tracking.of(s, m, g, now)
        if best < 0 or alone < least or (alone == least and gpu.rank < s.gpu[best].rank):
            best = g
            least = alone
    return best


@inlined
def ended(s: State, m: int, now: int, took: int, planned: int, in_time: bool) -> None:
    """A trial that was thought to take ``planned`` ns took ``took``: see rule 2."""
    mod = s.mod[m]
    if in_time:
        mod.try_at = now
    elif took > mod.slo:
        counted = min(took, int(speed_tracking.OUTLIER) * planned)
        mod.try_at = now + min(max(LEAST_NS, PARTS * counted), MOST_NS)
