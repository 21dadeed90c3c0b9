"""Defines the engine's state: a handful of record arrays, allocated once.

One record per request, model and GPU keeps what an event touches on one cache line, and the whole state passes into a
compiled function as some fifteen arrays (2 us from Python), where one array per field would take forty.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import numba
import numpy as np
import numpy.typing as npt

from symphony_dask.engine.native import memory
from symphony_dask.engine.native.arrays import Floats, Int32s, Int64s, Records
from symphony_dask.engine.native.compiled import inlined
from symphony_dask.engine.native.heap import grown_heap, make_heap
from symphony_dask.engine.native.memory import LINE

#: "No time": later than any event.
NEVER = np.int64(2**62)

#: "None of them", as an int64: numba takes the literal -1 for a type of its own, and compiles what is called with it
#: once more.
NONE = np.int64(-1)

#: Ratios are kept as integers in units of 1/ONE where a float has no place.
ONE = 1 << 16

#: Levels of the deadline queues' skip lists; 4**LEVELS requests of one model are found in O(log n).
LEVELS = 6

#: The rules that an engine decides by: 1 since the order of ready models follows the batch as it would be dispatched.
#: A state that was recorded before has 0, and is led by the rules of then.
RULES = 1

#: Words of scratch in the scalars.
SCRATCH = 160

#: At most this many batches are at a GPU: one that runs and one that waits for it there.
DEPTH = 2

# Request states.
FREE, QUEUED, IN_FLIGHT, CANCELLED = 0, 1, 2, 3

# Where a model stands: no requests (IDLE), before its window (PENDING), inside it (READY).
UNUSED, IDLE, PENDING, READY, REMOVED = 0, 1, 2, 3, 4

# Where a GPU stands. BUSY: will take another batch, or end its last one, at a known time. FULL: holds DEPTH batches.
ABSENT, OPEN, BUSY, FULL, DRAINING = 0, 1, 2, 3, 4

REQUEST = np.dtype(
    [
        ("deadline", "i8"),  #: ns; what the engine holds to, reply latency already taken off
        ("seq", "i8"),  #: order of submission; breaks ties of deadlines
        ("request", "i8"),  #: the caller's name for it
        ("model", "i4"),
        ("prev", "i4"),  #: towards the earlier deadline in its queue, -1 at the head
        ("state", "i4"),
        ("levels", "i2"),  #: how many of the skip list's levels it is on
        ("priority", "i2"),  #: 0, or more for what is to survive longer in overload
    ],
    align=True,
)

MODEL = np.dtype(
    [
        ("key", "i8"),  #: when the model needs a look: window opening (PENDING) or closing (READY)
        ("slo", "i8"),  #: ns
        ("open", "i8"),  #: window of the candidate batch, ns
        ("close", "i8"),
        ("ready_since", "i8"),  #: when the window opened, or the last batch left it open, ns
        ("excess", "f8"),  #: GPUs' worth of work beyond one, as ``packing`` holds batches by it
        ("rate_since", "i8"),  #: start of the current rate sample, ns
        ("rate", "f8"),  #: requests per ns, smoothed; 0 before the first sample
        ("first_at", "i8"),  #: deadline of ``first``, and
        ("last_at", "i8"),  #: of the last request queued: to read them here spares a cache line
        ("state", "i4"),
        ("n", "i4"),  #: requests queued
        ("skipped", "i4"),  #: how many of them stand before ``first``
        ("first", "i4"),  #: first request of the candidate batch, -1 when there is none
        ("target", "i4"),  #: batch size aimed for
        ("max_batch", "i4"),
        ("limit", "i4"),  #: most requests that may be queued
        ("gpu_class", "i4"),  #: class whose l(b) sets the window
        ("rate_n", "i4"),  #: arrivals in the current rate sample
        ("in_flight", "i4"),  #: batches at GPUs
        ("dirty", "i4"),  #: 1 while on the list of models to be looked at
        ("raised", "i4"),  #: requests queued of a priority above 0
        ("first_raised", "i4"),  #: the first of them, -1 when there is none
        ("used", "f8"),  #: GPU time planned, ns, fading (``fairness``), as the next two do
        ("served", "f4"),  #: requests dispatched
        ("dropped", "f4"),
        ("under", "i4"),  #: 1: in overload, and uses less GPU time than others (``fairness``)
        ("urgent", "i4"),  #: 1: stands in the heap ``urgent`` instead of ``ready`` while it is READY
        ("try_at", "i8"),  #: from when on a request that estimates refuse is tried, ns (``trials``)
        ("virtual_first", "i8"),  #: earliest deadline of the batch that deferral would be forming (``packing``), and
        ("virtual_n", "i4"),  #: how many requests it has
        (
            "own_policy",
            "i1",
        ),  #: the number of its own policy and 1, or 0 where it has that of all (``window.policy_of``)
        ("prefers_gpus", "i1"),  #: 1: it waits for its window where that saves GPU time (``packing``)
        ("large_at", "i2"),  #: how many requests it needs to start ahead of its window (``packing``, rule 4)
        ("delay", "i8"),  #: ns and 1 after which its head waits no longer for a window, or 0
    ],
    align=True,
)

GPU = np.dtype(
    [
        ("key", "i8"),  #: when it can take a batch (BUSY) or its rank (OPEN)
        ("free_at", "i8"),  #: when it has run all it has, as predicted, ns
        ("control", "i8"),  #: from dispatch to start of execution, ns
        ("rank", "i8"),  #: that of the open heap: ``home_rank``, or behind all others while it is slow
        ("slowdown", "f8"),  #: execution time over that of its class, as several models say (``speed_tracking``)
        ("home_rank", "i4"),
        ("heard", "i4"),  #: batches whose times were observed since its slowdown was reviewed
        ("gpu_class", "i2"),
        ("state", "i1"),
        ("n_flight", "i1"),
        ("draining", "i1"),
        ("slow", "i1"),  #: 1: much slower than its class
    ],
    align=True,
)

# ``n`` requests, in row ``row`` of ``State.fly``; ``tried``: 1 where estimates refuse it (``trials``); ``rule``: which
# one let it start (``start_rules``), 0 in states that were recorded before, which had nothing there but padding. Every
# numpy record has an attribute ``size``, which would hide a field of that name where the kernels run as Python.
FLIGHT = np.dtype(
    [
        ("batch", "i8"), ("start", "i8"), ("end", "i8"), ("model", "i4"), ("n", "i4"), ("row", "i4"), ("tried", "i4"),
        ("rule", "i4"),
    ],
    align=True,
)  # fmt: skip

#: A batch to be sent to a GPU. ``members`` of the decisions holds its requests from ``offset`` on.
BATCH = np.dtype(
    [
        ("batch", "i8"),
        ("window_open", "i8"),
        ("window_close", "i8"),
        ("start", "i8"),  #: planned, ns
        ("end", "i8"),  #: planned, ns
        ("model", "i4"),
        ("gpu", "i4"),
        ("size", "i4"),
        ("offset", "i4"),
    ],
    align=True,
)

SCALARS = np.dtype(
    [
        ("seq", "i8"),
        ("next_batch", "i8"),
        ("control", "i8"),  #: control latency that windows allow for, ns
        ("slack", "i8"),  #: how much earlier than frontrun a window opens, ns,
        ("slack_share", "f8"),  #: and how much of its SLO besides
        ("waiting", "f8"),  #: adaptive: share of batches that waited for a GPU, smoothed
        ("early_at", "i8"),  #: adaptive: when the next model may start early, NEVER while none may
        ("fraction", "f8"),  #: timeout: share of the SLO after which a window opens
        ("policy", "i4"),
        ("exact", "i4"),  #: 1: batches end as predicted, nobody reports their completion
        ("n_slots", "i4"),  #: free request slots
        ("n_dirty", "i4"),
        ("n_batches", "i4"),  #: filled entries of the output arrays
        ("n_members", "i4"),
        ("n_drops", "i4"),
        ("live_gpus", "i4"),
        ("fleet_changed", "i4"),  #: 1: GPUs, models or profiles came or went since the last ``advance``
        ("opened", "i4"),  #: 1: a GPU became OPEN since the last ``advance``
        ("observed", "i4"),  #: 1: times of batches were observed (``speed_tracking``)
        ("n_slow", "i4"),  #: GPUs that are slow
        ("probe_at", "i8"),  #: when slow GPUs are next tried, ns
        ("ticked_at", "i8"),  #: when shares were last looked at, ns (``fairness``)
        ("tick_batch", "i8"),  #: the next batch then
        ("lead", "i8"),  #: how much earlier windows of models with ``under`` open, ns
        ("evicted_request", "i8"),  #: the caller's name for the request that was evicted last, its slot and its model
        ("evicted", "i4"),  #: -1 when the host has been told
        ("evicted_model", "i4"),
        ("crowded", "i4"),  #: 1: requests are dropped
        ("n_ineligible", "i4"),  #: pairs of a model and a GPU that cannot run it (``eligibility``)
        # Behind these, what states that were recorded before (``OLDER_SCALARS``) do not have.
        ("rules", "i4"),  #: ``RULES``, or 0 in a state that was recorded before they changed
        ("adaptive", "i4"),  #: 1: some model's policy is adaptive, by the rules of today
        ("packed", "i4"),  #: on how many GPUs batches start without waiting for their window (``packing``)
        ("virtual_work", "i8"),  #: GPU time of the batches of deferral since the last tick, ns, and
        ("needed", "f8"),  #: how many GPUs they keep busy, smoothed (``packing``)
        ("lost", "f8"),  #: share of requests that were dropped of late (``fairness``)
        ("tick_seq", "i8"),  #: ``seq`` at the last tick,
        ("arrival_rate", "f8"),  #: requests per ns in that tick, and
        ("bursts", "f8"),  #: how unevenly requests arrive, smoothed (``burstiness``)
        ("scratch", "i4", (SCRATCH,)),  #: of ``ranking``
    ],
    align=True,
)

#: Bytes of ``SCALARS`` up to its field ``rules``.
OLDER_SCALARS = 168


#: A request that had to make room for one of higher priority.
EVICTED = np.dtype([("request", "i8"), ("slot", "i4"), ("model", "i4")], align=True)


class Profiles(NamedTuple):
    """l(b) as given, and how far observed times strayed from it (``speed_tracking``).

    Apart from ``State``, because each array of that costs every call inside the compiled code some 3 %.
    """

    given: Int64s  # (M, C, B + 2) int64, ns; ``State.lat`` is this times ``acting``
    drift: Floats  # (M, C) float64: observed execution time over the given one, smoothed
    acting: Floats  # (M, C) float64
    heard_at: Int64s  # (M, C) int64, ns: when a batch of the model last ran on the class, 0 for never
    heard_on: Int32s  # (M, C) int32: on how many GPUs of the class it was heard at the last review
    unread: Int32s  # (M, C) int32: batches since then


class State(NamedTuple):
    """All other arrays of one engine. Sizes: R requests, M models, G GPUs, C GPU classes, B largest batch."""

    g: Records  # (1,) SCALARS
    req: Records  # (R,) REQUEST
    nxt: Int32s  # (R, LEVELS) int32: towards the later deadline, -1 at the tail
    slots: Int32s  # (R,) int32: stack of free request slots
    mod: Records  # (M,) MODEL
    head: Int32s  # (M + 1, LEVELS) int32; row M is scratch of the queue search
    tail: Int32s  # (M, LEVELS) int32
    # (M + 1, C, B + 2) int64: l(b) in ns, -1 where no profile is known; row M is scratch. Entry 0 is no time, but how
    # many times as long as declared the others are, in units of 1/ONE.
    lat: Int64s
    present: Int32s  # (C,) int32: GPUs of each class that take batches
    gpu: Records  # (G,) GPU
    flight: Records  # (G * DEPTH,) FLIGHT, oldest first for each GPU
    fly: Int32s  # (G * DEPTH, at least B) int32: the requests of batches at GPUs; two rows a GPU, in no order
    pending: Int64s  # heap of PENDING models by window opening
    ready: Int64s  # heap of READY models by window closing
    urgent: Int64s  # the same, of those that go first in overload
    busy: Int64s  # heap of BUSY GPUs by the time they can take a batch
    open: Int64s  # heap of OPEN GPUs by rank
    dirty: Int32s  # (M,) int32
    # (M + G + G * (ceil(M / 16) + 2 * M),): scratch of the matching loop; behind it ``ineligible_rows``, ``pairs``
    aside: Int32s
    batches: Records  # (G * DEPTH,) BATCH: output
    members: Int32s  # (R,) int32: output
    drops: Int32s  # (R,) int32: output


def is_plain() -> bool:
    """Whether the kernels run as Python, where only record arrays have fields as attributes."""
    config: Any = numba.config
    return bool(config.DISABLE_JIT)


def records(n: int, dtype: np.dtype[Any]) -> Records:
    """Records of zeros, in guarded memory (``memory``)."""
    return fielded(memory.array(n, dtype))


def fielded(array: npt.NDArray[Any]) -> Records:
    """Records from elsewhere, with fields as attributes where the kernels run as Python."""
    return array.view(np.recarray) if is_plain() else cast(Records, array)


def _padded(dtype: np.dtype[Any], size: int) -> np.dtype[Any]:
    """``dtype`` with its records ``size`` bytes apart."""
    fields: Any = dtype.fields
    return np.dtype(
        {
            "names": list(fields),
            "formats": [kind for kind, *_ in fields.values()],
            "offsets": [offset for _, offset, *_ in fields.values()],
            "itemsize": size,
        }
    )


def _lined(n: int, dtype: np.dtype[Any]) -> Records:
    """As ``records``, where each record begins with a cache line."""
    padded = _padded(dtype, -(-dtype.itemsize // LINE) * LINE)
    return records(n, padded)


def _batch_rows(rows: int, max_batch: int) -> npt.NDArray[np.int32]:
    """Room for the requests of so many batches, (rows, at least max_batch); each row begins with a cache line."""
    return memory.array((rows, -(-max_batch * 4 // LINE) * LINE // 4), np.int32)


def _requests(n: int) -> tuple[Records, Int32s]:
    """Records of n requests and their links, which lie behind each record on the same cache line."""
    lines = memory.aligned(n * LINE)
    req = lines.view(_padded(REQUEST, LINE))
    nxt = lines.view(np.int32).reshape(n, -1)[:, REQUEST.itemsize // 4 :][:, :LEVELS]
    nxt[:] = -1
    return fielded(req), nxt


def make_state(requests: int, models: int, gpus: int, classes: int, max_batch: int) -> State:
    """A state with room for so many of each; every array is zeroed or marked empty."""
    req, nxt = _requests(requests)
    state = State(
        g=records(1, SCALARS),
        req=req,
        nxt=nxt,
        slots=memory.array(requests, np.int32),
        mod=_lined(models, MODEL),
        head=memory.array((models + 1, LEVELS), np.int32, -1),
        tail=memory.array((models, LEVELS), np.int32, -1),
        lat=memory.array((models + 1, classes, max_batch + 2), np.int64, -1),
        present=memory.array(classes, np.int32),
        gpu=_lined(gpus, GPU),
        flight=_lined(gpus * DEPTH, FLIGHT),
        fly=_batch_rows(gpus * DEPTH, max_batch),
        pending=make_heap(models),
        ready=make_heap(models),
        urgent=make_heap(models),
        busy=make_heap(gpus),
        open=make_heap(gpus),
        dirty=memory.array(models, np.int32),
        aside=memory.array(aside_words(models, gpus), np.int32),
        batches=records(gpus * DEPTH, BATCH),
        members=memory.array(requests, np.int32),
        drops=memory.array(requests, np.int32),
    )
    state.slots[:] = np.arange(requests - 1, -1, -1)
    state.g["n_slots"] = requests
    state.g["evicted"] = -1
    state.g["rules"] = RULES
    state.g["packed"] = 1
    state.gpu["slowdown"] = 1.0
    state.mod["first"] = state.mod["first_raised"] = -1
    return state


def aside_words(models: int, gpus: int) -> int:
    return models + gpus + gpus * (-(-models // 16) + 2 * models)


def ineligible_rows(state: State) -> npt.NDArray[np.int32]:
    """A bit for each model that a GPU cannot run, (G, ceil(M / 16)): bit m % 16 of word m // 16 (``eligibility``)."""
    begin, gpus = len(state.mod) + len(state.gpu), len(state.gpu)
    rows: npt.NDArray[np.int32] = state.aside[begin : begin + gpus * -(-len(state.mod) // 16)].reshape(gpus, -1)
    return rows


def pairs(state: State) -> npt.NDArray[np.int32]:
    """What was observed of each GPU and model, (G, M, 2); see ``speed_tracking``."""
    gpus, models = len(state.gpu), len(state.mod)
    found: npt.NDArray[np.int32] = state.aside[len(state.aside) - 2 * gpus * models :].reshape(gpus, models, 2)
    return found


@inlined
def pairs_at(s: State, m: int, g: int) -> int:
    """Where in ``aside`` the two words of a model and a GPU are; ``pairs`` is the same to Python."""
    models = len(s.mod)
    return models + len(s.gpu) * (1 + ((models + 15) >> 4)) + 2 * (g * models + m)


def make_profiles(models: int, classes: int, max_batch: int) -> Profiles:
    return Profiles(
        given=memory.array((models, classes, max_batch + 2), np.int64, -1),
        drift=memory.array((models, classes), np.float64, 1),
        acting=memory.array((models, classes), np.float64, 1),
        heard_at=memory.array((models, classes), np.int64),
        heard_on=memory.array((models, classes), np.int32),
        unread=memory.array((models, classes), np.int32),
    )


def grown_profiles(old: Profiles, models: int, classes: int, max_batch: int) -> Profiles:
    """A copy of ``old`` with more room."""
    new = make_profiles(models, classes, max_batch)
    m, c, b = old.given.shape
    new.given[:m, :c, :b] = old.given
    for name in Profiles._fields[1:]:
        getattr(new, name)[:m, :c] = getattr(old, name)
    return new


def grown(old: State, requests: int, models: int, gpus: int, classes: int, max_batch: int) -> State:
    """A copy of ``old`` with more room; no size may shrink. Output arrays start empty."""
    new = make_state(requests, models, gpus, classes, max_batch)
    new = new._replace(
        pending=grown_heap(old.pending, models),
        ready=grown_heap(old.ready, models),
        urgent=grown_heap(old.urgent, models),
        busy=grown_heap(old.busy, gpus),
        open=grown_heap(old.open, gpus),
    )
    kept = "req nxt mod tail gpu flight dirty present"
    for name in kept.split():
        source = getattr(old, name)
        getattr(new, name)[: len(source)] = source
    new.head[: len(old.mod)] = old.head[:-1]
    m, c, b = old.lat.shape
    new.lat[: m - 1, :c, :b] = old.lat[:-1]
    rows, b = old.fly.shape
    new.fly[:rows, :b] = old.fly
    new.g[:] = old.g
    ineligible = ineligible_rows(old)
    ineligible_rows(new)[: len(ineligible), : ineligible.shape[1]] = ineligible
    pairs(new)[: len(old.gpu), : len(old.mod)] = pairs(old)
    free = int(old.g["n_slots"][0])
    extra = requests - len(old.req)
    new.slots[:extra] = np.arange(requests - 1, len(old.req) - 1, -1, dtype=np.int32)
    new.slots[extra : extra + free] = old.slots[:free]
    new.g["n_slots"] = free + extra
    new.g["n_batches"] = new.g["n_members"] = new.g["n_drops"] = 0
    return new
