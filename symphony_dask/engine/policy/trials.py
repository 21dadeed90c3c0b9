"""Tries requests now and then that only estimates refuse: nothing else could show that the estimates are wrong.

A GPU is *idle* if it takes batches and holds none. Estimates are the drift, the ratio of a pair of model and GPU, and
the slowdown (``speed_tracking``). *Declared* is l(1) of the profile as it was given. Time is cut into tenths of a
second.

Rule 1. What no GPU's estimate accepts is a trial: the first request of the model alone, on an idle GPU where it can
        be in time as declared. Trials of a model on a GPU are due in the tenth after the one in which a batch of the
        pair last ended, at the earliest, and at once where none did of late.
Rule 2. Of what a trial took, or any other batch: if less than FASTER of the plan, the pair rests no longer; and a
        trial that took less than its estimate takes that one's place (``speed_tracking.observe``).
Rule 3. A trial that was late and took no less bears the estimate out. After the first of these in a row the pair goes
        on as in rule 1: a stall of the GPU, however long, spoils one trial and no more. After more of them it rests
        PARTS * n times as long as that took, where n models rest on the GPU; twice as long as before, if that is more
        and other GPUs serve the model. A trial counts as at most ``speed_tracking.OUTLIER`` times as long as planned,
        and a rest is 3.2 s at most.
Rule 4. A model *starves* from the tenth after its first miss on, a batch that ended late or a request that estimates
        would have dropped, until a batch is in time and took no longer than planned. While it does, a request that
        arrives to an empty queue starts at once on an idle GPU, if there are more open GPUs than ready models.

So, whatever was observed: if in a tenth of a second a request is offered that an idle GPU can answer in time as
declared, a batch of its model starts or ends in it on some GPU, unless the last two trials on that GPU bore out that
it cannot.

1. A request is offered to all open GPUs when it would be dropped, when its window opens, and, while it waits in its
   window, whenever a GPU opens (``matching.match``). Each request has such a moment before it is dropped.
2. If a GPU accepts it, its batch starts. If none does, ``idle_gpu`` takes an idle one on which a trial is due, if
   there is one. It is looked for at the first miss, and then until the model is served again in each tenth once more
   (``try_at``): this passes over an idle GPU until the next tenth begins, and not beyond it.
3. On an idle GPU of a pair that does not rest a trial is due, unless a batch of the pair ended in this tenth (rule
   1). A pair rests only after two trials in a row, with at least the begin of a tenth between them, that bore out its
   estimate.
4. A trial whose request was offered late may be late for that. But then the model misses, and from the next tenth on
   it starves (rule 4): its requests are offered as they arrive, with all of their SLO ahead. If the GPU can answer in
   that time the trial is in time, and by rule 2 so are the next ones, which the corrected estimate accepts.

Steps 2 to 4 wait for the begin of a tenth each, step 4 for one trial besides. So a model that an idle GPU can serve
has an answer within two tenths of a second, its SLO and the time to its next request; a stall adds its own length, as
what it raised is tried, and put right, in the tenth after it.

The share of a GPU's time that goes to trials which bear estimates out is 1 / PARTS at most: of n models that rest
there each pauses PARTS * n times as long as its trial took. Beside that, each pair has one trial before it rests.
Where trials take more than 0.4 s / n, the longest rest bounds them less: to took / (took + 3.2 s) for each model.

Where batches end as predicted (``exact``) there are no estimates, and no trials. ``former_trials`` has the rules of
before.
"""

from __future__ import annotations

from symphony_dask.engine.native import heap
from symphony_dask.engine.native.compiled import compiled, inlined
from symphony_dask.engine.policy import eligibility, former_trials, speed_tracking, window
from symphony_dask.engine.state import ABSENT, NEVER, ONE, OPEN, State

#: A tenth of a second, and rule 3.
TENTH_NS, PARTS = speed_tracking.TENTH_NS, 8

#: Up to so many times as long as planned is no longer than planned (rule 4).
AS_PLANNED = 1.02


@inlined
def _next_tenth(now: int) -> int:
    return (now // TENTH_NS + 1) * TENTH_NS


@inlined
def declared(s: State, m: int, c: int) -> int:
    """l(1) of a model on a class as its profile has it, ns."""
    return int(s.lat[m, c, 1]) * ONE // max(1, int(s.lat[m, c, 0]))


@inlined
def is_due(s: State, m: int, g: int, now: int) -> bool:
    """Whether the first request of a model, which estimates refuse on this GPU, is to be tried there."""
    if not speed_tracking.new_rules(s):
        return bool(former_trials.is_due(s, m, g, now))
    gpu = s.gpu[g]
    if gpu.n_flight > 0 or s.g[0].exact == 1 or s.mod[m].n == 0 or not speed_tracking.is_rested(s, m, g, now):
        return False
    return bool(now + declared(s, m, int(gpu.gpu_class)) <= window.head_at(s, m))


@inlined
def may_try(s: State, m: int, now: int) -> bool:
    """Whether GPUs are to be looked through for one on which a trial of the model is due: ``try_at`` is NEVER until the
    first miss, and then the begin of the next tenth in which to look.
    """
    mod = s.mod[m]
    return bool(s.g[0].exact == 0 and (now >= mod.try_at or mod.try_at == NEVER))


@inlined
def is_wanted(s: State, m: int, now: int) -> bool:
    """Whether the first request of a model is to start now if a GPU is idle, ahead of its window or of its drop: where
    estimates would have it dropped, or the model starves.
    """
    if not speed_tracking.new_rules(s):
        return bool(former_trials.is_refused(s, m, now))
    mod = s.mod[m]
    if mod.n == 0 or heap.size(s.open) == 0 or not may_try(s, m, now):
        return False
    if now + s.g[0].control + s.lat[m, mod.gpu_class, 1] > window.head_at(s, m):
        return True
    return bool(mod.try_at != NEVER and heap.size(s.open) > heap.size(s.ready) + heap.size(s.urgent))


@compiled
def idle_gpu(s: State, m: int, now: int) -> int:
    """The idle GPU of the lowest rank that is thought to answer the first request of the model in time; else, of those
    on which a trial is due, the one that is thought to be the fastest, of equals the one of the lowest rank. -1 if
    there is none, and then the next look is in the next tenth.
    """
    if not speed_tracking.new_rules(s):
        return int(former_trials.idle_gpu(s, m, now))
    best = -1
    fitting = False
    least = 0.0
    until = window.head_at(s, m) - now
    for g in range(len(s.gpu)):
        gpu = s.gpu[g]
        if gpu.state != OPEN or gpu.n_flight > 0 or not eligibility.can_run(s, m, g):
            continue
        alone = s.lat[m, gpu.gpu_class, 1] * speed_tracking.of(s, m, g, now)
        fits = gpu.control + alone + 1.0 <= until
        if not fits and (fitting or not is_due(s, m, g, now)):
            continue
        lower = best < 0 or gpu.rank < s.gpu[best].rank
        if fits != fitting or (lower if fits else best < 0 or alone < least or (alone == least and lower)):
            best = g
            fitting = fits
            least = alone
    if best < 0 or s.mod[m].try_at == NEVER:
        s.mod[m].try_at = _next_tenth(now)
    return best


@compiled
def alone(s: State, m: int, now: int) -> tuple[int, int]:
    """l(1) of a model in ns as declared, and as it is thought to be, each on the best GPU that can run it; NEVER where
    there is none.
    """
    least_declared = int(NEVER)
    least_thought = int(NEVER)
    for g in range(len(s.gpu)):
        gpu = s.gpu[g]
        if gpu.state == ABSENT or gpu.draining == 1 or not eligibility.can_run(s, m, g):
            continue
        least_declared = min(least_declared, declared(s, m, int(gpu.gpu_class)))
        least_thought = min(least_thought, int(s.lat[m, gpu.gpu_class, 1] * speed_tracking.of(s, m, g, now)))
    return least_declared, least_thought


@inlined
def dispatched(s: State, m: int, now: int) -> None:
    """A batch of the model left."""
    if not speed_tracking.new_rules(s):
        s.mod[m].try_at = now + former_trials.LEAST_NS


@inlined
def ended(s: State, m: int, g: int, now: int, took: int, planned: int, in_time: bool, tried: bool) -> None:
    """A batch that was thought to take ``planned`` ns took ``took``; in_time: its first request was."""
    if not speed_tracking.new_rules(s):
        if tried:
            former_trials.ended(s, m, now, took, planned, in_time)
        return
    mod = s.mod[m]
    if took < 0:
        return
    if in_time and took <= planned * AS_PLANNED:
        mod.try_at = NEVER
    elif not in_time:
        if mod.try_at == NEVER:
            mod.try_at = _next_tenth(now)
        if tried and took >= planned * speed_tracking.FASTER:
            _rest(s, m, g, now, took, planned)


@compiled
def _rest(s: State, m: int, g: int, now: int, took: int, planned: int) -> None:
    """A trial bore out the estimate: set how long the pair rests (rule 3)."""
    before = speed_tracking.rest(s, m, g)
    if before == 0:
        speed_tracking.set_rest(s, m, g, 1)
        return
    resting = 1
    for other in range(len(s.mod)):
        if other != m and speed_tracking.heard(s, other, g, now) > 0 and speed_tracking.rest(s, other, g) > 1:
            resting += 1
    span = PARTS * resting * min(float(took), speed_tracking.OUTLIER * planned)
    starves = now >= s.mod[m].try_at
    code = 2 if starves else min(before + 1, speed_tracking.MOST_REST)
    while code < speed_tracking.MOST_REST and speed_tracking.rest_ns(code) < span:
        code += 1
    speed_tracking.set_rest(s, m, g, code)
