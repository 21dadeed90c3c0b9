"""Runs the loops of ``bench engine``: one around the whole engine, or one for each model thread and the rank thread.

Each polls the clock, does what is due, and counts. Rules of counting:

Rule 1. Requests enter at their times, however late the loop is (open loop); each has its deadline from that time on.
Rule 2. A batch starts on its emulated GPU as planned, but not before the decision is out, by a clock read after it, and
        not before the GPU's batches before it have really ended. It takes l(b) from then on.
Rule 3. A decision's lateness is the clock read after it less the time at which it was due. In one thread that is the
        earliest event (arrival, end of a batch, opening or closing of a window) that the pass found waiting, so no
        decision of the pass was due before it. With model threads it is the later of when the model became ready
        (``model_thread``) and when the GPU could be granted (``rank_thread``).
Rule 4. A request is late if it was in a batch decided more than LATE_NS after it was due, if it ended after its
        deadline, or if it was dropped or rejected, for whatever reason. So nothing that goes wrong is left out; what
        the load alone makes inevitable is in it too, and shows in virtual time.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from symphony_dask.engine import kernels
from symphony_dask.engine.native import heap
from symphony_dask.engine.native.arrays import Int32s, Int64s, Record, Records
from symphony_dask.engine.native.compiled import compiled, compiled_nogil, wide
from symphony_dask.engine.state import NEVER, Profiles, State
from workloads.parallel_engine import model_thread, rank_thread, ring
from workloads.parallel_engine.clock import clock_ns
from workloads.simulation.batch_ends import Ends, begin, report

#: Lateness beyond which a decision is late, ns: at an SLO of 25 ms, about what windows open early for such a case
#: (``dispatcher.SLACK_SHARE``, 1.25 ms) less the time that the batch then takes to reach its GPU.
LATE_NS = 1_000_000

#: Requests taken in between two looks at everything else; only a loop that has fallen behind reaches it.
_AT_ONCE = 256

#: Bins of lateness: 32 for each doubling, from 1 ns to 2**40 ns.
_PER_OCTAVE, _BINS = 32, 32 * 40

TALLY = np.dtype(
    [
        ("requests", "i8"),
        ("ok", "i8"),  #: ended by their deadlines
        ("missed", "i8"),  #: ended after them
        ("dropped", "i8"),
        ("rejected", "i8"),
        ("late", "i8"),  #: rule 4
        ("late_batches", "i8"),
        ("overlaps", "i8"),  #: batches given to a GPU before its last one ended; 0 if the coordination is right
        ("batches", "i8"),
        ("gpu_ns", "i8"),  #: sum of l(b)
        ("idle_ns", "i8"),  #: of the loop, polling and finding nothing
        ("wall_ns", "i8"),  #: of the loop
        ("taken", "i8"),  #: when the last request was taken in, ns
    ],
    align=True,
)


class Load(NamedTuple):
    """Requests for one loop: a block of arrivals, over and over. Sizes: n arrivals in the block."""

    times: Int64s  # (n,) int64, ns from the block's begin
    models: Int32s  # (n,) int32
    period: int  # ns from one begin to the next
    slo: int  # ns
    total: int  # requests in all


class Counts(NamedTuple):
    """What one loop counts."""

    tally: Records  # (1,) TALLY
    lateness: Int64s  # (_BINS,) int64: decisions by lateness
    used: Int64s  # (G,) int64: batches of each GPU


def make_counts(gpus: int) -> Counts:
    return Counts(np.zeros(1, TALLY).view(np.recarray), np.zeros(_BINS, np.int64), np.zeros(gpus, np.int64))


def quantile_us(lateness: npt.NDArray[np.int64], q: float) -> float | None:
    """The lateness that a share ``q`` of decisions does not exceed, at most 2.2 % too high; None without decisions."""
    if not lateness.any():
        return None
    i = int(np.searchsorted(lateness.cumsum(), q * lateness.sum()))
    return float(2 ** ((i + 1) / _PER_OCTAVE)) / 1000 if i else 0.0


@compiled
def _count(s: State, c: Counts, b: Record, due: int, decided: int, end: int) -> None:
    """Count the batch ``b``, due and decided at these times, which ends at ``end`` (rules 3 and 4)."""
    t = c.tally[0]
    size = int(b["size"])
    lateness = decided - due
    i = int(math.log2(lateness) * _PER_OCTAVE) if lateness > 0 else 0
    c.lateness[min(i, _BINS - 1)] += 1
    c.used[b.gpu] += 1
    t.batches += 1
    t.gpu_ns += b.end - b.start
    missed = 0
    if end > s.req[s.members[b.offset]].deadline:  # the first deadline: no other is earlier
        for i in range(size):
            if end > s.req[s.members[b.offset + i]].deadline:
                missed += 1
    t.missed += missed
    t.ok += size - missed
    if lateness > LATE_NS:
        t.late_batches += 1
        t.late += size
    else:
        t.late += missed


@compiled_nogil
def run_engine(
    s: State, p: Profiles, load: Load, ends: Ends, c: Counts, start: int, virtual: int, stop: Int64s
) -> None:
    """The engine in one thread, from ``start`` until every request has ended or ``stop[0]`` is set.

    virtual: 1 to jump from event to event instead of waiting for the clock; the engine is then ``exact``, ends batches
        itself, and no decision is late.
    """
    t = c.tally[0]
    n = len(load.times)
    j = 0
    base = start
    now = start if virtual == 1 else clock_ns()
    began = now
    while ring.load_acquire(stop, 0) == 0:
        due = kernels.next_event(s)
        if t.requests < load.total:
            due = min(due, base + load.times[j])
        if heap.size(ends.heap) > 0:
            due = min(due, heap.first_key(ends.heap))
        if due >= NEVER:
            break
        if virtual == 1:
            now = due
        elif due > now:
            since = now
            while due > now and ring.load_acquire(stop, 0) == 0:
                now = clock_ns()
            t.idle_ns += now - since
        if virtual == 0:
            report(s, p, ends, now, 0)
        for _ in range(_AT_ONCE):
            if t.requests == load.total or base + load.times[j] > now:
                break
            if kernels.submit_one(s, now, wide(load.models[j]), base + load.times[j] + load.slo, t.requests) < 0:
                t.rejected += 1
                t.late += 1
            t.requests += 1
            t.taken = now
            j += 1
            if j == n:
                j = 0
                base += load.period
        if kernels.next_event(s) > now:
            continue
        kernels.clear_output(s)
        kernels.advance(s, now)
        t.dropped += s.g[0].n_drops
        t.late += s.g[0].n_drops
        if virtual == 0:
            decided = clock_ns()
            for i in range(s.g[0].n_batches):
                b = s.batches[i]
                end = begin(ends, b.gpu, b.batch, max(int(b.start), decided), b.end - b.start, 0)
                _count(s, c, b, due, decided, end)
            now = decided
        else:
            for i in range(s.g[0].n_batches):
                _count(s, c, s.batches[i], now, now, s.batches[i].end)
    t.wall_ns = now - began


@compiled_nogil
def run_shard(
    sh: model_thread.Shard, load: Load, gpu_ends: Int64s, c: Counts, start: int, done: Int64s, mine: int, stop: Int64s
) -> None:
    """A model thread, until every request of its models has ended or ``stop[0]`` is set; then done[mine] is 1.

    gpu_ends: (G,) int64, all threads' own: when each GPU's last batch ends. A thread touches an entry only between the
        grant of that GPU and its answer, so the rings keep these accesses in order.
    """
    s = sh.s
    t = c.tally[0]
    n = len(load.times)
    j = 0
    base = start
    now = clock_ns()
    began = now
    while ring.load_acquire(stop, 0) == 0:
        taken = 0
        while taken < _AT_ONCE and t.requests < load.total and base + load.times[j] <= now:
            at = base + load.times[j]
            if model_thread.submit(sh, now, load.models[j], at, at + load.slo, t.requests) < 0:
                t.rejected += 1
                t.late += 1
            t.requests += 1
            taken += 1
            j += 1
            if j == n:
                j = 0
                base += load.period
        if taken > 0:
            t.taken = now
        kernels.clear_output(s)
        worked = taken + model_thread.step(sh, now)
        t.dropped += s.g[0].n_drops
        t.late += s.g[0].n_drops
        since = now
        now = clock_ns()
        for i in range(s.g[0].n_batches):
            b = s.batches[i]
            end = int(max(int(b.start), now)) + b.end - b.start
            model_thread.will_end(sh, b.model, end)
            if b.start < gpu_ends[b.gpu]:
                t.overlaps += 1
            gpu_ends[b.gpu] = end
            _count(s, c, b, sh.due[i], now, end)
        worked += model_thread.report(sh)
        if worked == 0:
            t.idle_ns += now - since
            if t.requests == load.total and model_thread.next_event(sh) >= NEVER:
                break
    t.wall_ns = now - began
    ring.store_release(done, mine, 1)


@compiled_nogil
def run_ranks(r: rank_thread.Ranks, c: Counts, done: Int64s, stop: Int64s) -> None:
    """The rank thread, until every model thread is done or ``stop[0]`` is set."""
    t = c.tally[0]
    now = clock_ns()
    began = now
    while ring.load_acquire(stop, 0) == 0:
        running = 0  # before the step, so that what was reported before the last was done is read
        for i in range(len(done)):
            if ring.load_acquire(done, i) == 0:
                running += 1
        worked = rank_thread.step(r, now)
        since = now
        now = clock_ns()
        if worked == 0:
            t.idle_ns += now - since
            if running == 0:
                break
    t.wall_ns = now - began
