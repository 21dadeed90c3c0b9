"""The engine under a virtual clock: the code that serves, fed with a trace and told how long each batch took.

One compiled loop jumps from event to event (the next arrival, the engine's next event, the next report of an end), so a
simulated second costs what its requests cost. Nothing of scheduling is written here.

Rule 1. At one instant, reports of ended batches come first, then arrivals, then the engine decides.
Rule 2. A batch starts when it has reached its GPU (``control_ns`` after the decision) and the GPU has ended its others.
Rule 3. Without noise a batch takes l(b), and the engine may rely on it. With noise it takes l(b) times a random factor;
        the engine plans with l(b) and learns the end ``reply_ns`` after it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from symphony_dask.errors import BadInput
from symphony_dask.scheduling import heap, kernels
from symphony_dask.scheduling.compiled import compiled
from symphony_dask.scheduling.engine import DEFAULT_QUEUE_LIMIT, MOST_PRIORITY, NEVER, POLICIES, Engine
from symphony_dask.scheduling.state import DEPTH
from symphony_dask.trace import Outcome
from workloads.simulated import SimModel, Simulated

Ints = npt.NDArray[np.int64]
Slots = npt.NDArray[np.int32]

#: Simulates models on GPUs: ``f(models, gpus, arrivals_ns, choices)``.
Scheduler = Callable[[Sequence[SimModel], int, Ints, Slots], Simulated]

# Numba keeps a global only as a plain number.
_OK, _LATE, _DROPPED, _REJECTED = (int(kind) for kind in (Outcome.OK, Outcome.LATE, Outcome.DROPPED, Outcome.REJECTED))


@dataclass(frozen=True)
class SimulatedRun(Simulated):
    """What was simulated, and beside the outcomes all that the tables of a run hold.

    models, arrivals_ns, choices: as they were given; deadlines_ns: (n,) arrival + SLO.
    settings: the other arguments by name.
    request_batch: (n,) int32, index of the request's batch, -1 if it was in none.
    decided_ns: (n,) int64, when the request was dispatched, dropped or rejected.
    batch_dispatch_ns, batch_open_ns, batch_close_ns, batch_planned_start_ns, batch_planned_end_ns: (k,) int64, the
        decision, the window and the plan of each batch.
    """

    models: Sequence[SimModel] = field(repr=False)
    arrivals_ns: Ints = field(repr=False)
    choices: Slots = field(repr=False)
    deadlines_ns: Ints = field(repr=False)
    settings: dict[str, Any]
    request_batch: Slots = field(repr=False)
    decided_ns: Ints = field(repr=False)
    batch_dispatch_ns: Ints = field(repr=False)
    batch_open_ns: Ints = field(repr=False)
    batch_close_ns: Ints = field(repr=False)
    batch_planned_start_ns: Ints = field(repr=False)
    batch_planned_end_ns: Ints = field(repr=False)


class _Log(NamedTuple):
    """Where the loop writes; n requests, and as many batches at most. Memory that is not written to costs nothing."""

    outcome: Any  # (n,) int8
    finish: Any  # (n,) int64, and so all that have no type here
    decided: Any
    batch: Any  # (n,) int32
    gpu: Any  # (batches,) int32, and so model and size
    model: Any
    size: Any
    start: Any
    end: Any
    dispatch: Any
    opened: Any
    closed: Any
    planned_start: Any
    planned_end: Any


class _Ends(NamedTuple):
    """Batches that run, where the engine does not know when they end. Sizes: G GPUs."""

    heap: Any  # (G + 1,) heap of GPUs by the next report of an end
    gpu: Any  # (G,) _GPU
    end: Any  # (G * DEPTH,) int64, oldest first for each GPU
    start: Any  # (G * DEPTH,) int64
    batch: Any  # (G * DEPTH,) int64


_GPU = np.dtype([("key", "i8"), ("free_at", "i8"), ("pos", "i4"), ("n", "i4")], align=True)


@compiled
def _begin(ends: _Ends, g: int, batch: int, earliest: int, took: int, reply: int) -> int:
    """Run a batch on GPU ``g``, not before ``earliest``; returns when it will have ended."""
    gpu = ends.gpu[g]
    end = int(max(earliest, gpu.free_at)) + took
    gpu.free_at = end
    ends.end[g * DEPTH + gpu.n] = end
    ends.start[g * DEPTH + gpu.n] = end - took
    ends.batch[g * DEPTH + gpu.n] = batch
    gpu.n += 1
    if gpu.n == 1:
        heap.push(ends.heap, ends.gpu, g, end + reply)
    return end


@compiled
def _report(s: Any, p: Any, ends: _Ends, now: int, reply: int) -> None:
    """Tell the engine of all ends that it hears of by ``now``."""
    while heap.size(ends.heap) > 0 and ends.gpu[heap.top(ends.heap)].key <= now:
        g = heap.top(ends.heap)
        gpu = ends.gpu[g]
        base = g * DEPTH
        kernels.completed(s, p, now, g, ends.batch[base], ends.start[base], ends.end[base])
        heap.remove(ends.heap, ends.gpu, g)
        gpu.n -= 1
        for i in range(gpu.n):
            ends.end[base + i] = ends.end[base + i + 1]
            ends.start[base + i] = ends.start[base + i + 1]
            ends.batch[base + i] = ends.batch[base + i + 1]
        if gpu.n > 0:
            heap.push(ends.heap, ends.gpu, g, ends.end[base] + reply)


@compiled
def _run(
    s: Any,
    p: Any,
    arrivals: Ints,
    models: Slots,
    deadlines: Ints,
    priorities: Slots,
    factors: Any,
    slowness: Any,
    control: int,
    reply: int,
    ends: _Ends,
    log: _Log,
) -> int:
    """Run until nothing is left to happen; returns the number of batches.

    deadlines: of the end of work on the GPU. factors: (n,) of execution time, by batch; (0,) where ends are exact.
    slowness: (gpus,) of execution time, by GPU.
    """
    n = len(arrivals)
    i = 0
    k = 0
    noisy = len(factors) > 0
    now = arrivals[0]
    while True:
        at = kernels.next_event(s)
        if i < n:
            at = min(at, arrivals[i])
        if noisy and heap.size(ends.heap) > 0:
            at = min(at, ends.gpu[heap.top(ends.heap)].key)
        if at >= NEVER:
            return k
        now = max(now, at)
        if noisy:
            _report(s, p, ends, now, reply)
        while i < n and arrivals[i] <= now:
            if kernels.submit_one(s, now, models[i], deadlines[i], i, priorities[i]) < 0:
                log.outcome[i] = _REJECTED
                log.finish[i] = -1
                log.decided[i] = now
                log.batch[i] = -1
            if s.g[0].evicted >= 0:
                r = s.g[0].evicted_request
                s.g[0].evicted = -1
                log.outcome[r] = _REJECTED
                log.finish[r] = -1
                log.decided[r] = now
                log.batch[r] = -1
            i += 1
        kernels.clear_output(s)
        kernels.advance(s, now)
        out = s.g[0]
        for j in range(out.n_drops):
            r = s.req[s.drops[j]].request
            log.outcome[r] = _DROPPED
            log.finish[r] = -1
            log.decided[r] = now
            log.batch[r] = -1
        for j in range(out.n_batches):
            b = s.batches[j]
            size = b["size"]  # the attribute of that name is numpy's where the compiler is off
            start = b.start
            end = b.end
            if noisy:
                nominal = p.given[b.model, s.gpu[b.gpu].gpu_class, size]
                took = int(nominal * slowness[b.gpu] * factors[k] + 0.5)
                end = _begin(ends, b.gpu, b.batch, now + control, took, reply)
                start = end - took
            log.gpu[k] = b.gpu
            log.model[k] = b.model
            log.size[k] = size
            log.start[k] = start
            log.end[k] = end
            log.dispatch[k] = now
            log.opened[k] = b.window_open
            log.closed[k] = b.window_close
            log.planned_start[k] = b.start
            log.planned_end[k] = b.end
            for member in range(size):
                r = s.req[s.members[b.offset + member]].request
                log.outcome[r] = _OK if end <= deadlines[r] else _LATE
                log.finish[r] = end
                log.decided[r] = now
                log.batch[r] = k
            k += 1


def simulate(
    models: Sequence[SimModel],
    gpus: int,
    arrivals_ns: Ints,
    choices: Slots,
    *,
    policy: str = "adaptive",
    slos_ns: Ints | None = None,
    priorities: Slots | None = None,
    control_ns: int = 0,
    reply_ns: int = 0,
    noise: float = 0.0,
    slowness: Sequence[float] | None = None,
    seed: int = 0,
    queue_limit: int = DEFAULT_QUEUE_LIMIT,
) -> SimulatedRun:
    """Serve request i of ``models[choices[i]]``, arriving at ``arrivals_ns[i]``, on ``gpus`` GPUs alike.

    arrivals_ns: (n,) int64, never falling, from any origin; choices: (n,) int32.
    policy: a name in ``scheduling.engine.POLICIES``.
    slos_ns: (n,) int64, of each request; by default those of the models.
    priorities: (n,) of each request, 0 to MOST_PRIORITY; by default 0. Higher ones survive longer in overload.
    control_ns, reply_ns: network latency from a decision to the GPU, and from the end of a batch to its answer. The
        engine knows both and plans for them.
    noise: standard deviation of execution times relative to l(b). The factors are gamma distributed with mean 1, drawn
        by ``seed``; the k-th batch of a simulation has the k-th.
    slowness: of each GPU, what its execution times are multiplied by beside the noise; the engine is not told of it.
    queue_limit: queued requests of one model beyond which requests are rejected.

    The same arguments give the same result, bit for bit. Raises ``BadInput`` when they cannot be used.
    """
    # Read-only arrays, such as those of polars, are another type to the compiler.
    arrivals = np.require(arrivals_ns, np.int64, ("C", "W"))
    which = np.require(choices, np.int32, ("C", "W"))
    n = len(arrivals)
    _check(models, gpus, arrivals, which)
    if policy not in POLICIES:
        raise BadInput(f"policy {policy!r} is unknown: choose one of {', '.join(POLICIES)}")
    if not 0 <= noise < np.inf or control_ns < 0 or reply_ns < 0 or seed < 0:
        raise BadInput(
            f"noise={noise}, control_ns={control_ns}, reply_ns={reply_ns}, seed={seed}: each must be at least 0"
        )
    slow = np.ones(gpus) if slowness is None else np.array(slowness, float)
    if slow.shape != (gpus,) or not (slow > 0).all() or not np.isfinite(slow).all():
        raise BadInput(f"slowness={slowness}: give a positive factor for each of the {gpus} GPUs")
    noisy = noise > 0 or slowness is not None
    slos = np.array([model.slo_ns for model in models], np.int64)[which] if slos_ns is None else slos_ns
    if len(slos) != n or slos.min() < 1:
        raise BadInput(f"slos_ns has {len(slos)} entries, the least {slos.min()}: give {n}, each at least 1 ns")
    deadlines = arrivals + slos
    ranks = np.zeros(n, np.int32) if priorities is None else np.require(priorities, np.int32, ("C", "W"))
    if len(ranks) != n or ranks.min() < 0 or ranks.max() > MOST_PRIORITY:
        raise BadInput(
            f"priorities has {len(ranks)} entries from {ranks.min()} to {ranks.max()}: give {n}, "
            f"each between 0 and {MOST_PRIORITY}"
        )

    tables = [model.profile.latency_ns() for model in models]
    engine = Engine(policy, exact=not noisy, max_requests=_room(arrivals, int(slos.max()), gpus, tables))
    start = int(arrivals[0])
    engine.set_control(start, control_ns)
    for _ in range(gpus):  # before the models, each of which would be looked at for each GPU
        engine.add_gpu(start, control_ns=control_ns)
    for model, table in zip(models, tables, strict=True):
        engine.add_model(start, slo_ns=model.slo_ns, latency_ns={0: table}, queue_limit=queue_limit)

    factors = np.ones(n if noisy else 0)
    if noise > 0:
        factors = np.random.Generator(np.random.PCG64(seed)).gamma(noise**-2, noise**2, n)
    ends = _Ends(
        heap=np.zeros(gpus + 1, np.int32),
        gpu=np.zeros(gpus, _GPU).view(np.recarray),
        end=np.zeros(gpus * DEPTH, np.int64),
        start=np.zeros(gpus * DEPTH, np.int64),
        batch=np.zeros(gpus * DEPTH, np.int64),
    )
    int32s, int64s = partial(np.empty, n, np.int32), partial(np.empty, n, np.int64)
    log = _Log(
        np.empty(n, np.int8),
        *(int64s(), int64s(), int32s()),
        *(int32s() for _ in range(3)),
        *(int64s() for _ in range(7)),
    )
    k = int(
        _run(
            engine.state,
            engine.profiles,
            arrivals,
            which,
            deadlines - reply_ns,
            ranks,
            factors,
            slow,
            control_ns,
            reply_ns,
            ends,
            log,
        )
    )
    batches = {name: values[:k].copy() for name, values in log._asdict().items()}
    last = max(int(arrivals[-1]), int(batches["end"].max(initial=start)))
    return SimulatedRun(
        outcome=log.outcome,
        finish_ns=log.finish,
        batch_gpu=batches["gpu"],
        batch_model=batches["model"],
        batch_size=batches["size"],
        batch_start_ns=batches["start"],
        batch_end_ns=batches["end"],
        gpus=gpus,
        span_ns=max(last - start, 1),
        models=models,
        arrivals_ns=arrivals,
        choices=which,
        deadlines_ns=deadlines,
        settings={
            "policy": policy,
            "control_ns": control_ns,
            "reply_ns": reply_ns,
            "noise": noise,
            "slowness": None if slowness is None else slow.tolist(),
            "seed": seed,
            "queue_limit": queue_limit,
        },
        request_batch=log.batch,
        decided_ns=log.decided,
        batch_dispatch_ns=batches["dispatch"],
        batch_open_ns=batches["opened"],
        batch_close_ns=batches["closed"],
        batch_planned_start_ns=batches["planned_start"],
        batch_planned_end_ns=batches["planned_end"],
    )


def scheduler(policy: str, **options: Any) -> Scheduler:
    """What simulates ``policy``: the engine, or a baseline of that name; raises ``BadInput`` when there is neither.

    options: of ``simulate``; baselines do without them.
    """
    if policy in POLICIES:
        return partial(simulate, policy=policy, **options)
    from workloads.baselines import BASELINES

    if policy not in BASELINES:
        raise BadInput(f"policy {policy!r} is unknown: choose one of {', '.join([*POLICIES, *BASELINES])}")
    return BASELINES[policy]


def _check(models: Sequence[SimModel], gpus: int, arrivals: Ints, choices: Slots) -> None:
    if not models or gpus < 1:
        raise BadInput(f"{len(models)} models on {gpus} GPUs: give at least 1 of each")
    if len(arrivals) == 0:
        raise BadInput("there are no requests to simulate")
    if len(choices) != len(arrivals):
        raise BadInput(f"{len(choices)} choices for {len(arrivals)} arrivals: give one a request")
    if (np.diff(arrivals) < 0).any() or arrivals[0] < 0:
        raise BadInput("arrivals_ns falls somewhere, or begins below 0: sort the requests by arrival, in ns from 0 on")
    if choices.min() < 0 or choices.max() >= len(models):
        raise BadInput(f"choices run from {choices.min()} to {choices.max()}: there are {len(models)} models")


def _room(arrivals: Ints, slo_ns: int, gpus: int, tables: Sequence[Ints]) -> int:
    """Enough request slots: for all that arrive within one SLO, and for all that can be at GPUs.

    A request leaves its queue by its deadline, so those queued arrived within an SLO, thus in two adjacent intervals of
    that length.
    """
    changes = np.flatnonzero(np.diff(arrivals // slo_ns)) + 1
    counts = np.diff(np.concatenate(([0], changes, [len(arrivals)])))
    adjacent = int(counts.max()) if len(counts) == 1 else int((counts[:-1] + counts[1:]).max())
    return min(len(arrivals), adjacent + gpus * DEPTH * (max(map(len, tables)) - 2))
