"""Matches the models that are ready with GPUs, for any number of model threads (``model_thread``): the rank thread.

The coordination of Symphony (arXiv 2308.07470, section 4): what needs all models and all GPUs in one place is small, a
window's closing for each model and a free time for each GPU, and it changes once a batch, not once a request. So the
queues and windows are shared out among model threads, and one thread ranks.

Rule 1. A model thread reports a model when its window opens, when the closing moves, and when it is ready no more.
Rule 2. While a model is ready and a GPU is open, the model whose window closes first is granted the open GPU of the
        lowest rank (rule 2 of ``matching``). Both are then out of every heap until the answer.
Rule 3. Its model thread forms the batch and answers with the time at which the GPU will be free again, or that it did
        not use it; the answer says also where the model now stands. What the model reported between grant and answer
        is passed over: it was said before the batch was taken out.
Rule 4. A model has one grant under way at most. So a ring of grants with a row for each of its models is never full,
        and the rank thread never waits.

All GPUs are of one class and a GPU's index is its rank. No clock, no I/O: ``step`` is told the time.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from symphony_dask.engine.native import heap
from symphony_dask.engine.native.arrays import Int64s, Records
from symphony_dask.engine.native.compiled import compiled
from symphony_dask.engine.state import NEVER, fielded
from workloads.parallel_engine.ring import Rings, make_rings, publish, readable, release, ring_of, writable

#: Words of a report. GPU: the one that was granted, if this answers a grant, else -1. FREE_AT: when that will be free,
#: ns, -1 if it was not used. READY: 1 inside the window. CLOSE: when it closes, ns.
MODEL, GPU, FREE_AT, READY, CLOSE = 0, 1, 2, 3, 4

#: Words of a grant, beside MODEL, GPU and FREE_AT. DUE: since when the GPU could have been granted, ns.
DUE = 3

CANDIDATE = np.dtype(
    [
        ("key", "i8"),  #: when its window closes, ns
        ("granted", "i4"),  #: 1 while a grant is under way
        ("thread", "i4"),  #: the model thread that owns it
    ],
    align=True,
)

RANKED_GPU = np.dtype(
    [
        ("key", "i8"),  #: when it can be granted (busy), or its rank (open)
        ("free_at", "i8"),  #: ns
        ("due", "i8"),  #: since when it can be granted, ns
        ("batches", "i8"),
    ],
    align=True,
)


class Ranks(NamedTuple):
    """What the rank thread knows. Sizes: M models of all threads, G GPUs."""

    models: Records  # (M,) CANDIDATE
    gpus: Records  # (G,) RANKED_GPU
    ready: Int64s  # heap of ready models by window closing
    busy: Int64s  # heap of busy GPUs by the time they can be granted
    open: Int64s  # heap of open GPUs by rank
    reports: Rings  # one from each model thread
    grants: Rings  # one to each
    control: int  # from a decision to the start of execution, ns: so much before its free time a GPU is granted


def make_ranks(models: list[int], gpus: int, control_ns: int, now: int) -> Ranks:
    """models: how many each model thread owns; they are numbered through, in that order. All GPUs are free."""
    owners = np.repeat(np.arange(len(models)), models)
    ranks = Ranks(
        models=fielded(np.zeros(len(owners), CANDIDATE)),
        gpus=fielded(np.zeros(gpus, RANKED_GPU)),
        ready=heap.make_heap(len(owners)),
        busy=heap.make_heap(gpus),
        open=heap.make_heap(gpus),
        reports=make_rings(len(models), max(64, 2 * max(models))),
        grants=make_rings(len(models), max(models)),
        control=control_ns,
    )
    ranks.models["thread"] = owners
    ranks.gpus["free_at"] = ranks.gpus["due"] = now
    for g in range(gpus):
        heap.push(ranks.open, ranks.gpus, g, g)
    return ranks


@compiled
def _take(r: Ranks, report: Int64s, now: int) -> None:
    """Rules 1 and 3."""
    m = int(report[MODEL])
    g = int(report[GPU])
    model = r.models[m]
    if g >= 0:
        gpu = r.gpus[g]
        model.granted = 0
        if report[FREE_AT] >= 0:
            gpu.free_at = report[FREE_AT]
            gpu.due = gpu.free_at - r.control
            gpu.batches += 1
        else:
            gpu.due = now
        heap.push(r.busy, r.gpus, g, gpu.free_at - r.control)
    elif model.granted == 1:
        return
    if report[READY] == 0:
        if heap.row_of(r.ready, m) > 0:
            heap.remove(r.ready, m)
    elif heap.row_of(r.ready, m) > 0:
        heap.rekey(r.ready, r.models, m, report[CLOSE])
    else:
        heap.push(r.ready, r.models, m, report[CLOSE])


@compiled
def _grant(r: Ranks, m: int, g: int) -> bool:
    """Grant a GPU to a model; False, with nothing done, if the ring has no room, which rule 4 rules out."""
    ring = ring_of(r.grants, int(r.models[m].thread))
    row = writable(ring)
    if row < 0:
        return False
    heap.remove(r.ready, m)
    heap.remove(r.open, g)
    r.models[m].granted = 1
    cell = ring.cells[row]
    cell[MODEL] = m
    cell[GPU] = g
    cell[FREE_AT] = r.gpus[g].free_at
    cell[DUE] = r.gpus[g].due
    publish(ring)
    return True


@compiled
def step(r: Ranks, now: int) -> int:
    """Read what was reported and grant what can be; returns how many reports and grants there were."""
    done = 0
    for thread in range(len(r.reports.cells)):
        ring = ring_of(r.reports, thread)
        for _ in range(len(ring.cells)):
            row = readable(ring)
            if row < 0:
                break
            _take(r, ring.cells[row], now)
            release(ring)
            done += 1
    while heap.size(r.busy) > 0 and heap.first_key(r.busy) <= now:
        g = heap.top(r.busy)
        heap.remove(r.busy, g)
        heap.push(r.open, r.gpus, g, g)
    while heap.size(r.ready) > 0 and heap.size(r.open) > 0:
        if not _grant(r, heap.top(r.ready), heap.top(r.open)):
            break
        done += 1
    return done


@compiled
def next_event(r: Ranks) -> int:
    """When ``step`` has something to do if nothing is reported; NEVER when it has not."""
    if heap.size(r.ready) > 0 and heap.size(r.busy) > 0:
        return heap.first_key(r.busy)
    return int(NEVER)
