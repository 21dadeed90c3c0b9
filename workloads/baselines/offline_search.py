"""Searches for the schedule of one who knows every arrival: a beam over batches in order of urgency.

A state has decided the first ``taken[m]`` requests of each model m, which are in batches or given up, and its GPUs are
free from ``free`` on. Its level is the place of its head, the undecided request with the earliest latest start
d - l(1), in the order of all requests by that. States of a level have decided the same requests before the head, and
some of those after it, each as far ahead as its batches reach. So what tells two of them apart is

    score = GPU time used  +  price * requests missed  -  credit * requests decided ahead

and less is better. No single price is right: at a low one a search gives up what it could serve, and at a high one it
falls so far behind that it has to give up far more, later. So states are kept for each of several prices.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from symphony_dask.engine.native.arrays import Int64s
from symphony_dask.engine.native.compiled import compiled
from symphony_dask.errors import BadInput
from workloads.baselines.run import NEVER, Queues, Run

#: Columns of ``Beam.states``: what ranks a state, what it missed, what it is known by, and how it came about.
SCORE, MISSED, KEY, PARENT, MODEL, SIZE, START = range(7)

#: ``SIZE`` of a step that gives a request up, and of the state at the beginning.
GIVEN_UP, ROOT = 0, -1

#: Basis and prime of the Fowler-Noll-Vo hash.
_BASIS, _PRIME = 1469598103934665603, 1099511628211

#: The most memory that the states of all levels that are open at a time may take.
_MOST_BYTES = 1 << 31


class Beam(NamedTuple):
    """The states of r levels: those of level i are in row i % r, and no step leads r levels further.

    There are p prices, and at most w states at each level for each; g GPUs and m models.
    """

    prices: npt.NDArray[np.int64]  # (p,): ns
    credit: int  # ns
    grain: int  # states whose GPUs are free at the same multiples of it, ns, count as one
    rank: npt.NDArray[np.int64]  # (n,): place of each request in the order of latest starts
    kept: npt.NDArray[np.int64]  # (r, p): states there
    worst: npt.NDArray[np.int64]  # (r, p): the state with the highest score, where there are w
    states: npt.NDArray[np.int64]  # (r, p, w, 7)
    free: npt.NDArray[np.int64]  # (r, p, w, g): ns, rising
    taken: npt.NDArray[np.int64]  # (r, p, w, m)
    next_free: npt.NDArray[np.int64]  # (g,): of the state that is offered
    next_taken: npt.NDArray[np.int64]  # (m,)
    steps: npt.NDArray[np.int64]  # (p * w * n + 1, 4): PARENT, MODEL, SIZE and START of each state that was expanded


def new_beam(
    run: Run, choices: npt.NDArray[np.int32], gpus: int, *, prices: Sequence[int], credit: int, grain: int, width: int
) -> Beam:
    """An empty beam. choices: (n,), the model of each request; width: w.

    Raises ``BadInput`` when so many requests come within one SLO that the open levels take too much memory.
    """
    n, models, p = len(run.arrival), len(run.largest), len(prices)
    latest = np.maximum(run.arrival, run.deadline - run.latency[choices, 1])
    order = np.argsort(latest, kind="stable")
    rank = np.empty(n, np.int64)
    rank[order] = np.arange(n)
    # A batch starts by the latest start of its first request, so what it decides ahead has come by then.
    ahead = int((np.searchsorted(run.arrival, latest[order], "right") - np.arange(n)).max())
    rows = ahead + 2
    if rows * p * width * (7 + gpus + models) * 8 > _MOST_BYTES:
        raise BadInput(f"policy 'offline' finds {ahead:,} requests within one SLO: give a lower rate or a smaller cell")
    return Beam(
        prices=np.array(prices, np.int64),
        credit=credit,
        grain=grain,
        rank=rank,
        kept=np.zeros((rows, p), np.int64),
        worst=np.zeros((rows, p), np.int64),
        states=np.empty((rows, p, width, 7), np.int64),
        free=np.empty((rows, p, width, gpus), np.int64),
        taken=np.empty((rows, p, width, models), np.int64),
        next_free=np.empty(gpus, np.int64),
        next_taken=np.empty(models, np.int64),
        steps=np.empty((p * width * n + 1, 4), np.int64),
    )


@compiled
def search(beam: Beam, run: Run, queue: Queues) -> int:
    """Fill ``beam.steps``; gives the row of the last step of the schedule with the fewest requests missed."""
    n = len(run.arrival)
    width = beam.states.shape[2]
    beam.next_free[:] = run.arrival[0]
    beam.next_taken[:] = 0
    _offer(beam, run, queue, 0, -1, 0, ROOT, 0)
    n_steps = 0
    for level in range(n):
        r = level % len(beam.kept)
        for p in range(len(beam.prices)):
            for w in range(beam.kept[r, p]):
                if p > 0 and _is_double(beam, r, p, beam.states[r, p, w, KEY], beam.states[r, p, w, MISSED]):
                    continue
                _write_step(beam, n_steps, r, p, w)
                _expand(beam, run, queue, level, p, w, n_steps)
                n_steps += 1
        beam.kept[r, :] = 0
    r = n % len(beam.kept)
    best = 0
    for i in range(len(beam.prices) * width):
        p, w = i // width, i % width
        if w < beam.kept[r, p] and beam.states[r, p, w, MISSED] < beam.states[r, best // width, best % width, MISSED]:
            best = i
    _write_step(beam, n_steps, r, best // width, best % width)
    return n_steps


@compiled
def _write_step(beam: Beam, step: int, r: int, p: int, w: int) -> None:
    for column in range(4):
        beam.steps[step, column] = beam.states[r, p, w, PARENT + column]


@compiled
def _is_double(beam: Beam, r: int, p: int, key: int, missed: int) -> bool:
    """Whether a lower price has the same state."""
    for q in range(p):
        for i in range(beam.kept[r, q]):
            if beam.states[r, q, i, KEY] == key and beam.states[r, q, i, MISSED] <= missed:
                return True
    return False


@compiled
def _expand(beam: Beam, run: Run, queue: Queues, level: int, p: int, w: int, step: int) -> None:
    """Offer what can become of the head: to be the first of a batch of any size that is in time, or to be given up."""
    r = level % len(beam.kept)
    free, taken, missed = beam.free[r, p, w], beam.taken[r, p, w], beam.states[r, p, w, MISSED]
    m = -1
    for k in range(len(taken)):
        at = queue.first[k] + taken[k]
        if at < queue.first[k + 1] and beam.rank[queue.order[at]] == level:
            m = k
    at = queue.first[m] + taken[m]
    due = run.deadline[queue.order[at]]
    for size in range(1, min(run.largest[m], queue.first[m + 1] - at) + 1):
        start = max(free[0], run.arrival[queue.order[at + size - 1]])
        end = start + run.latency[m, size]
        if end > due:
            break
        _occupy(beam, free, start, end)
        _copy(taken, beam.next_taken)
        beam.next_taken[m] += size
        _offer(beam, run, queue, missed, step, m, size, start)
    _copy(free, beam.next_free)
    _copy(taken, beam.next_taken)
    beam.next_taken[m] += 1
    _offer(beam, run, queue, missed + 1, step, m, GIVEN_UP, 0)


@compiled
def _copy(values: Int64s, to: Int64s) -> None:
    for i in range(len(values)):
        to[i] = values[i]


@compiled
def _occupy(beam: Beam, free: Int64s, start: int, end: int) -> None:
    """Into ``next_free``, with the GPU busy until ``end`` that is free by ``start`` and became so last."""
    g = 0
    while g + 1 < len(free) and free[g + 1] <= start:
        g += 1
    k = 0
    for i in range(len(free)):
        if i != g:
            beam.next_free[k] = free[i]
            k += 1
    while k > 0 and beam.next_free[k - 1] > end:
        beam.next_free[k] = beam.next_free[k - 1]
        k -= 1
    beam.next_free[k] = end


@compiled
def _offer(beam: Beam, run: Run, queue: Queues, missed: int, parent: int, m: int, size: int, start: int) -> None:
    """Keep the state ``next_free``, ``next_taken`` at its level, for each price at which it is among the best."""
    level = len(run.arrival)
    ahead = 0
    oldest = NEVER
    for k in range(len(beam.next_taken)):
        at = queue.first[k] + beam.next_taken[k]
        if at < queue.first[k + 1]:
            oldest = min(oldest, run.arrival[queue.order[at]])
            level = min(level, beam.rank[queue.order[at]])
        ahead += beam.next_taken[k]
    used = 0
    key = _BASIS
    for g in range(len(beam.next_free)):
        # No batch that is still to come starts before the oldest request that is left: GPUs are free by then, or later.
        if oldest < NEVER and beam.next_free[g] < oldest:
            beam.next_free[g] = oldest
        used += beam.next_free[g]
        key = (key ^ (beam.next_free[g] // beam.grain)) * _PRIME
    for k in range(len(beam.next_taken)):
        key = (key ^ beam.next_taken[k]) * _PRIME
    ahead -= level
    r = level % len(beam.kept)
    width = beam.states.shape[2]
    for p in range(len(beam.prices)):
        states = beam.states[r, p]
        score = used + missed * beam.prices[p] - ahead * beam.credit
        n_kept = beam.kept[r, p]
        if n_kept == width and score >= states[beam.worst[r, p], SCORE]:
            continue
        place = 0
        while place < n_kept and states[place, KEY] != key:
            place += 1
        if place < n_kept and states[place, SCORE] <= score:
            continue
        if place == width:
            place = beam.worst[r, p]
        elif place == n_kept:
            beam.kept[r, p] += 1
        states[place, SCORE] = score
        states[place, MISSED] = missed
        states[place, KEY] = key
        states[place, PARENT] = parent
        states[place, MODEL] = m
        states[place, SIZE] = size
        states[place, START] = start
        _copy(beam.next_free, beam.free[r, p, place])
        _copy(beam.next_taken, beam.taken[r, p, place])
        if beam.kept[r, p] == width:
            worst = 0
            for i in range(1, width):
                if states[i, SCORE] > states[worst, SCORE]:
                    worst = i
            beam.worst[r, p] = worst
