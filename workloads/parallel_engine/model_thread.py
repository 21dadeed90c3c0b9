"""Owns some of the models, their queues and windows, and asks the rank thread (``rank_thread``) for GPUs: a model
thread.

It is an engine's state without the matching: requests enter by ``kernels.submit_one``, windows and batches are those of
``window``, and in place of GPUs there are two rings.

Rule 1. A model is looked at when requests came, its window opens or closes, or it is granted a GPU (as ``advance``
        does), and is reported when it has become ready, is so no more, or its window closes at another time.
Rule 2. A model that is granted a GPU and is still ready forms its batch for it at once; else the GPU goes back unused.
Rule 3. Reports that find the ring full are made by a later ``report``, from what is true then. Nobody waits.
Rule 4. A request's slot is free once its batch is formed or it was dropped: nothing comes back from the GPUs here.

``due`` says since when a model has been waiting for a GPU: the opening of its window, or the arrival that moved the
opening into the past, by the time at which that was due and not by when the thread came to see it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from symphony_dask.engine import deadline_queue, kernels
from symphony_dask.engine.engine import Engine
from symphony_dask.engine.native import heap
from symphony_dask.engine.native.arrays import Int32s, Int64s, Records
from symphony_dask.engine.native.compiled import compiled, wide
from symphony_dask.engine.policy import window
from symphony_dask.engine.state import NEVER, PENDING, READY, State, fielded
from workloads.parallel_engine import rank_thread
from workloads.parallel_engine.rank_thread import CLOSE, DUE, FREE_AT, GPU, MODEL, Ranks
from workloads.parallel_engine.ring import Ring, one_ring, publish, readable, release, writable

REPORTED = np.dtype(
    [
        ("since", "i8"),  #: earliest arrival since the last look, ns; NEVER when none
        ("due", "i8"),  #: since when the model has been ready, ns
        ("close", "i8"),  #: as last reported
        ("free_at", "i8"),  #: answer to be given: when the GPU will be free, -1 if it was not used
        ("gpu", "i4"),  #: the GPU to answer about, -1 when there is none
        ("ready", "i4"),  #: as last reported
        ("listed", "i4"),  #: 1 while there is something to report
        ("pad", "i4"),
    ],
    align=True,
)


class Shard(NamedTuple):
    """One model thread. Sizes: M models of its own."""

    s: State
    models: Records  # (M,) REPORTED
    listed: Int32s  # (M,) int32: models to be reported
    n_listed: Int64s  # (1,) int64
    due: Int64s  # as many as ``s.batches``, int64: output, when each batch was due, ns
    reports: Ring
    grants: Ring
    first: int  # number of its first model at the rank thread


def make_shard(engine: Engine, r: Ranks, thread: int, first: int, now: int) -> Shard:
    """The model thread number ``thread``, which takes over ``engine``, to be left alone from then on.

    engine: with all its models and as many GPUs as the rank thread has (targets follow their number), all of class 0,
        and not ``exact``. Policy adaptive looks at all models at once and is not to be had here.

    Raises ``ValueError`` when the policy is adaptive.
    """
    if engine.policy == "adaptive":
        raise ValueError("policy 'adaptive' needs all models in one thread: choose another, such as 'deferred'")
    engine.advance(now)
    n = int((engine.state.mod["state"] != 0).sum())
    models = fielded(np.zeros(n, REPORTED))
    models["since"] = NEVER
    models["gpu"] = -1
    return Shard(
        s=engine.state,
        models=models,
        listed=np.zeros(n, np.int32),
        n_listed=np.zeros(1, np.int64),
        due=np.zeros(len(engine.state.batches), np.int64),
        reports=one_ring(r.reports, thread),
        grants=one_ring(r.grants, thread),
        first=first,
    )


@compiled
def submit(sh: Shard, now: int, m: int, arrival: int, deadline: int, request: int) -> int:
    """``kernels.submit_one``, of a request that arrived at ``arrival``, at most ``now``."""
    model = sh.models[m]
    model.since = min(model.since, arrival)
    slot = kernels.submit_one(sh.s, now, m, deadline, request)
    if sh.s.mod[m].dirty == 0:
        model.since = NEVER
    return slot


@compiled
def _enlist(sh: Shard, m: int) -> None:
    if sh.models[m].listed == 0:
        sh.models[m].listed = 1
        sh.listed[sh.n_listed[0]] = m
        sh.n_listed[0] += 1


@compiled
def _look(sh: Shard, m: int, now: int) -> None:
    """Rule 1."""
    mod = sh.s.mod[m]
    model = sh.models[m]
    was = int(mod.state)
    opening = int(mod.open) if was == PENDING else int(NEVER)
    window.refresh(sh.s, m, now)
    if mod.state == READY and was != READY:
        since = int(model.since)
        if since < NEVER and mod.open <= now:
            since = max(since, int(mod.open))
        model.due = min(since, opening, now)
    model.since = NEVER
    ready = 1 if mod.state == READY else 0
    if ready != model.ready or (ready == 1 and mod.key != model.close):
        _enlist(sh, m)


@compiled
def _granted(sh: Shard, grant: Int64s, now: int) -> None:
    """Rule 2."""
    s = sh.s
    m = int(grant[MODEL]) - sh.first
    mod = s.mod[m]
    model = sh.models[m]
    _look(sh, m, now)
    model.gpu = grant[GPU]
    model.free_at = -1
    _enlist(sh, m)
    if mod.state != READY:
        return
    start = max(now + s.g[0].control, int(grant[FREE_AT]))
    size = window.form(s, m, s.lat[m, 0], start)
    if size == 0:
        return
    out = s.g[0]
    row = s.batches[out.n_batches]
    row.batch = out.next_batch
    row.window_open = mod.open
    row.window_close = mod.close
    row.start = start
    row.end = start + s.lat[m, 0, size]
    row.model = m
    row.gpu = grant[GPU]
    row.size = size
    row.offset = out.n_members
    sh.due[out.n_batches] = max(model.due, grant[DUE])
    out.n_batches += 1
    out.next_batch += 1
    deadline_queue.pop_first(s, m, size, s.members, row.offset)
    for i in range(size):
        window.free_slot(s, wide(s.members[row.offset + i]))
    out.n_members += size
    model.free_at = row.end
    model.due = now
    _look(sh, m, now)


@compiled
def will_end(sh: Shard, m: int, end: int) -> None:
    """The batch that ``step`` has just formed of model ``m`` will end at ``end``, not as planned. Before ``report``."""
    sh.models[m].free_at = end


@compiled
def report(sh: Shard) -> int:
    """Tell the rank thread what ``step`` has found, and answer its grants; returns how many reports that took."""
    n = int(sh.n_listed[0])
    done = 0
    while done < n:
        row = writable(sh.reports)
        if row < 0:
            break
        m = int(sh.listed[done])
        mod = sh.s.mod[m]
        model = sh.models[m]
        model.listed = 0
        model.ready = 1 if mod.state == READY else 0
        model.close = mod.key
        cell = sh.reports.cells[row]
        cell[MODEL] = sh.first + m
        cell[GPU] = model.gpu
        cell[FREE_AT] = model.free_at
        cell[rank_thread.READY] = model.ready
        cell[CLOSE] = model.close
        model.gpu = -1
        publish(sh.reports)
        done += 1
    for i in range(done, n):
        sh.listed[i - done] = sh.listed[i]
    sh.n_listed[0] = n - done
    return done


@compiled
def step(sh: Shard, now: int) -> int:
    """Do all that is due at ``now``; returns how many grants and looks that took. ``report`` is to follow.

    Batches and drops are written to the state's output as ``kernels.advance`` does, their slots free already, and when
    each batch was due to ``due``.
    """
    s = sh.s
    done = 0
    for _ in range(len(sh.grants.cells)):
        row = readable(sh.grants)
        if row < 0:
            break
        _granted(sh, sh.grants.cells[row], now)
        release(sh.grants)
        done += 1
    m = kernels.due(s, now)
    while m >= 0:
        _look(sh, m, now)
        done += 1
        m = kernels.due(s, now)
    return done


@compiled
def next_event(sh: Shard) -> int:
    """When ``step`` or ``report`` has something to do if no request and no grant comes; NEVER when neither has."""
    s = sh.s
    if s.g[0].n_dirty > 0 or sh.n_listed[0] > 0:
        return 0
    at = int(NEVER)
    if heap.size(s.pending) > 0:
        at = min(at, heap.first_key(s.pending))
    if heap.size(s.ready) > 0:
        at = min(at, heap.first_key(s.ready) + 1)
    return at
