"""Observed times: a profile that drifted is followed, a GPU that is slower than its class is noticed.

Rule 1. A batch that took r times its profile's l(b) is taken for the product of two smoothed ratios: the drift of its
        (model, class), which all GPUs of the class share, and the pace of its GPU. Both move towards what explains r,
        the pace five times as fast, and it makes up for what the drift that acts leaves.
Rule 2. What most GPUs of a class have in common is no pace: when more than half of those heard of are off in the same
        direction, the least of it moves from their paces into the drifts of the class.
Rule 3. What acts stays while it is up to 5 % above the estimate, and is never below it: batches planned too short are
        late, those planned too long only start early. But 1 acts for all from 5 % less to 2 % more, so that noise does
        not have the tables of a good profile written over and over. The drift scales the table ``lat`` by which windows
        are drawn; the pace scales l(b) where a batch is formed for that GPU.
Rule 4. A GPU slower than its class by more than SLOW ranks behind all that are not, until it is below NOT_SLOW.
"""

from __future__ import annotations

from symphony_dask.scheduling import heap
from symphony_dask.scheduling.compiled import compiled
from symphony_dask.scheduling.state import ABSENT, OPEN, REMOVED, UNUSED, Profiles, State

#: How far one batch moves the pace of its GPU (the first ones of a GPU raise it by more) and the drift of its profile.
#: Noise of 10 % in execution times leaves 2.3 % and 1 % in the estimates.
PACE_STEP, DRIFT_STEP = 0.1, 0.02

#: Between what shares of the estimate what acts may lie, and the estimate itself around 1 (rule 3).
ABOVE, BELOW = 0.02, 0.05

#: A batch counts as at most so many times longer or shorter than planned.
OUTLIER = 3.0

#: Bounds of both estimates.
LEAST, MOST = 0.25, 16.0

#: Pace from which a GPU counts as slow, and below which it no longer does.
SLOW, NOT_SLOW = 1.5, 1.3

#: Added to the rank of a slow GPU.
SLOW_RANK = 1 << 40

#: Batches below this are too short to be judged, ns.
LEAST_NS = 200_000

#: A GPU is heard of after so many batches; rule 2 is looked at after so many batches of all, or one a GPU.
HEARD, REVIEW = 5, 64


@compiled
def reset_gpu(s: State, g: int, rank: int) -> None:
    """A GPU that is taken to be as its class."""
    gpu = s.gpu[g]
    gpu.home_rank = rank
    gpu.rank = rank
    gpu.pace = 1.0
    gpu.acting_pace = 1.0
    gpu.heard = 0
    if gpu.slow == 1:
        gpu.slow = 0
        s.g[0].n_slow -= 1


@compiled
def _bounded(ratio: float) -> float:
    return min(max(ratio, LEAST), MOST)


@compiled
def _acting(estimate: float, acting: float) -> float:
    """What acts once the estimate is known (rule 3)."""
    most = 1.0 + ABOVE if acting == 1.0 else acting
    if (1.0 - BELOW) * acting <= estimate <= most:
        return acting
    return 1.0 if 1.0 - BELOW <= estimate <= 1.0 + ABOVE else estimate * (1.0 + ABOVE)


@compiled
def follow_pace(s: State, g: int) -> None:
    """Let the GPU's pace act if it left the band, and rank the GPU by it (rules 3 and 4)."""
    gpu = s.gpu[g]
    gpu.acting_pace = _acting(gpu.pace, gpu.acting_pace)
    slow = 1 if gpu.pace > (NOT_SLOW if gpu.slow == 1 else SLOW) else 0
    if slow != gpu.slow:
        gpu.slow = slow
        s.g[0].n_slow += 2 * slow - 1
        gpu.rank = int(gpu.home_rank) + slow * SLOW_RANK
        if gpu.state == OPEN:
            heap.rekey(s.open, s.gpu, g, gpu.rank)


@compiled
def _follow_drift(s: State, p: Profiles, m: int, c: int) -> None:
    drift = _acting(p.drift[m, c], p.acting[m, c])
    if drift != p.acting[m, c]:
        p.acting[m, c] = drift
        for b in range(s.mod[m].max_batch + 2):
            s.lat[m, c, b] = int(p.given[m, c, b] * drift + 0.5)
        s.g[0].fleet_changed = 1  # targets and windows are to be drawn again


@compiled
def observe(s: State, p: Profiles, g: int, m: int, n: int, took: int) -> None:
    """A batch of ``n`` requests of model ``m`` took ``took`` ns on GPU ``g``."""
    gpu = s.gpu[g]
    c = gpu.gpu_class
    given = p.given[m, c, n]
    if given < LEAST_NS or took < 0:
        return
    ratio = took / (given * gpu.pace)
    error = min(max(ratio / p.drift[m, c], 1.0 / OUTLIER), OUTLIER) - 1.0
    left = min(max(ratio / p.acting[m, c], 1.0 / OUTLIER), OUTLIER) - 1.0
    p.drift[m, c] = _bounded(p.drift[m, c] * (1.0 + DRIFT_STEP * error))
    step = max(PACE_STEP, 1.0 / (gpu.heard + 3)) if left > 0.0 else PACE_STEP
    gpu.pace = _bounded(gpu.pace * (1.0 + step * left))
    gpu.heard += 1
    s.g[0].heard += 1
    _follow_drift(s, p, m, c)
    follow_pace(s, g)
    if s.g[0].heard >= max(REVIEW, s.g[0].live_gpus):
        s.g[0].heard = 0
        for k in range(len(s.present)):
            if s.present[k] > 0:
                _review(s, p, k)


@compiled
def _review(s: State, p: Profiles, c: int) -> None:
    """Move what most GPUs of a class have in common from their paces to the class's drifts (rule 2)."""
    heard = 0
    above = 0
    below = 0
    least_above = MOST
    least_below = LEAST
    for g in range(len(s.gpu)):
        gpu = s.gpu[g]
        if gpu.state == ABSENT or gpu.gpu_class != c or gpu.heard < HEARD:
            continue
        heard += 1
        if gpu.pace > 1.0 + ABOVE:
            above += 1
            least_above = min(least_above, gpu.pace)
        elif gpu.pace < 1.0 - BELOW:
            below += 1
            least_below = max(least_below, gpu.pace)
    if 2 * max(above, below) <= heard:
        return
    common = least_above if above > below else least_below
    for g in range(len(s.gpu)):
        if s.gpu[g].state != ABSENT and s.gpu[g].gpu_class == c and s.gpu[g].heard >= HEARD:
            s.gpu[g].pace = _bounded(s.gpu[g].pace / common)
            follow_pace(s, g)
    for m in range(len(s.mod)):
        if s.mod[m].state != UNUSED and s.mod[m].state != REMOVED and p.given[m, c, 1] >= 0:
            p.drift[m, c] = _bounded(p.drift[m, c] * common)
            _follow_drift(s, p, m, c)


@compiled
def scale(s: State, m: int, g: int) -> int:
    """Write l(b) of a model on a GPU whose pace is not that of its class into the scratch row; returns the row."""
    gpu = s.gpu[g]
    row = len(s.lat) - 1
    for b in range(s.mod[m].max_batch + 2):
        s.lat[row, 0, b] = int(s.lat[m, gpu.gpu_class, b] * gpu.acting_pace + 0.5)
    return row
