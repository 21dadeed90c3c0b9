"""Runs the engine under a virtual clock: the code that serves, fed with a trace and told how long each batch took.

One compiled loop jumps from event to event (the next arrival, the engine's next event, the next report of an end), so a
simulated second costs what its requests cost. Nothing of scheduling is written here.

Rule 1. At one instant, reports of ended batches come first, then arrivals, then the engine decides.
Rule 2. A batch starts when it has reached its GPU (``control_ns`` after the decision) and the GPU has ended its others.
Rule 3. Without noise a batch takes l(b), with noise l(b) times a random factor. The engine plans with l(b) and learns
        the end ``reply_ns`` after it. Where there is neither noise nor control latency it ends batches itself
        (``exact``), which is faster; with control latency it would forget them late, when it next looks at their GPU.
Rule 4. GPUs and models that come or go at an instant do so before all else then, but a batch that ends then has ended.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from symphony_dask.engine import kernels
from symphony_dask.engine.engine import NEVER, POLICIES, Engine
from symphony_dask.engine.native import heap
from symphony_dask.engine.native.arrays import Bools, Floats, Int8s, Int32s, Int64s
from symphony_dask.engine.native.compiled import compiled, wide
from symphony_dask.engine.policy import starts
from symphony_dask.engine.queue_limits import DEFAULT_QUEUE_LIMIT, MOST_PRIORITY
from symphony_dask.engine.state import DEPTH, Profiles, State
from symphony_dask.errors import BadInput
from symphony_dask.trace import Outcome
from workloads.simulation.batch_ends import Ends, begin, lose, make_ends, report
from workloads.simulation.engine_host import Host, Ids, latency_tables
from workloads.simulation.fleet import Change, Event, Fleet, Gpus, RemoveGpu, plan_fleet
from workloads.simulation.result import SimModel, Simulated, check_times

Ints = npt.NDArray[np.int64]
Slots = npt.NDArray[np.int32]

#: Simulates models on GPUs: ``f(models, gpus, arrivals_ns, choices)``.
Scheduler = Callable[[Sequence[SimModel], Gpus, Ints, Slots], Simulated]

# Numba keeps a global only as a plain number.
_OK, _LATE, _DROPPED, _REJECTED = (int(kind) for kind in (Outcome.OK, Outcome.LATE, Outcome.DROPPED, Outcome.REJECTED))


@dataclass(frozen=True)
class SimulatedRun(Simulated):
    """What was simulated, and beside the outcomes all that the tables of a run hold.

    models, arrivals_ns, choices: as they were given; deadlines_ns: (n,) arrival + SLO.
    settings: the other arguments by name.
    fleet: every GPU that there ever was; changes: how they came and went, by time.
    request_batch: (n,) int32, index of the request's batch, -1 if it was in none.
    decided_ns: (n,) int64, when the request was dispatched, dropped or rejected.
    batch_rule: (k,) int8, number of the rule of ``START_RULES`` that let the batch start.
    batch_lost: (k,) bool, whether the batch was lost with its GPU; it ends with it then, and its requests went on.
    batch_dispatch_ns, batch_open_ns, batch_close_ns, batch_planned_start_ns, batch_planned_end_ns: (k,) int64, the
        decision, the window and the plan of each batch.
    """

    models: Sequence[SimModel] = field(repr=False)
    arrivals_ns: Ints = field(repr=False)
    choices: Slots = field(repr=False)
    deadlines_ns: Ints = field(repr=False)
    settings: dict[str, Any]
    fleet: Fleet = field(repr=False)
    changes: Sequence[Change] = field(repr=False)
    request_batch: Slots = field(repr=False)
    decided_ns: Ints = field(repr=False)
    batch_lost: npt.NDArray[np.bool_] = field(repr=False)
    batch_dispatch_ns: Ints = field(repr=False)
    batch_open_ns: Ints = field(repr=False)
    batch_close_ns: Ints = field(repr=False)
    batch_planned_start_ns: Ints = field(repr=False)
    batch_planned_end_ns: Ints = field(repr=False)
    batch_rule: npt.NDArray[np.int8] = field(repr=False)


class Log(NamedTuple):
    """Where the loop writes, of n requests and their batches. Memory that is not written to costs nothing."""

    outcome: Int8s  # (n,) int8
    finish: Int64s  # (n,) int64, and so all that have no type here
    decided: Int64s
    batch: Int32s  # (n,) int32
    gpu: Int32s  # (batches,) int32, and so model and size
    model: Int32s
    size: Int32s
    start: Int64s
    end: Int64s
    dispatch: Int64s
    opened: Int64s
    closed: Int64s
    planned_start: Int64s
    planned_end: Int64s
    rule: Int8s  # (batches,) int8
    lost: Bools  # (batches,) bool


def new_log(n: int, batches: int) -> Log:
    of_requests: list[Any] = [np.empty(n, kind) for kind in (np.int8, np.int64, np.int64, np.int32)]
    of_batches: list[Any] = [np.empty(batches, kind) for kind in [np.int32] * 3 + [np.int64] * 7]
    return Log._make([*of_requests, *of_batches, np.empty(batches, np.int8), np.zeros(batches, np.bool_)])


@compiled
def loop(
    s: State,
    p: Profiles,
    arrivals: Ints,
    models: Slots,
    deadlines: Ints,
    priorities: Slots,
    factors: Floats,
    slowness: Floats,
    control: int,
    reply: int,
    ends: Ends,
    log: Log,
    ids: Ids,
    place: Ints,
    until: int,
) -> None:
    """Run to just before ``until``, or until nothing is left to happen.

    deadlines: of the end of work on the GPU. factors: of execution time, by batch; (0,) where ends are exact.
    slowness: of execution time, by GPU of the fleet.
    place: (3,) where the run stands: the next arrival, how many batches there were, the time.
    """
    n = len(arrivals)
    i = place[0]
    k = place[1]
    now = place[2]
    reported = len(factors) > 0
    while True:
        at = kernels.next_event(s)
        if i < n:
            at = min(at, arrivals[i])
        if reported and heap.size(ends.heap) > 0:
            at = min(at, heap.first_key(ends.heap))
        if at >= until:
            place[0] = i
            place[1] = k
            place[2] = now
            return
        now = max(now, at)
        if reported:
            report(s, p, ends, now, reply)
        while i < n and arrivals[i] <= now:
            if kernels.submit_one(s, now, wide(ids.slot[models[i]]), deadlines[i], i, wide(priorities[i])) < 0:
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
        if kernels.next_event(s) > now:
            continue
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
            if reported:
                nominal = p.given[b.model, s.gpu[b.gpu].gpu_class, size]
                took = int(nominal * slowness[ids.gpu[b.gpu]] * factors[k] + 0.5)
                end = begin(ends, b.gpu, b.batch, now + control, took, reply)
                start = end - took
            log.gpu[k] = ids.gpu[b.gpu]
            log.model[k] = ids.model[b.model]
            log.size[k] = size
            log.start[k] = start
            log.end[k] = end
            log.dispatch[k] = now
            log.opened[k] = b.window_open
            log.closed[k] = b.window_close
            log.planned_start[k] = b.start
            log.planned_end[k] = b.end
            log.rule[k] = starts.of_batch(s, b.gpu, b.batch)
            for member in range(size):
                r = s.req[s.members[b.offset + member]].request
                log.outcome[r] = _OK if end <= deadlines[r] else _LATE
                log.finish[r] = end
                log.decided[r] = now
                log.batch[r] = k
            k += 1


def simulate(
    models: Sequence[SimModel],
    gpus: Gpus,
    arrivals_ns: Ints,
    choices: Slots,
    *,
    policy: str = "adaptive",
    slos_ns: Ints | None = None,
    priorities: Slots | None = None,
    control_ns: int = 0,
    reply_ns: int = 0,
    slack_ns: int = 0,
    slack_share: float = 0.0,
    noise: float = 0.0,
    slowness: Sequence[float] | None = None,
    seed: int = 0,
    queue_limit: int = DEFAULT_QUEUE_LIMIT,
    events: Sequence[Event] = (),
) -> SimulatedRun:
    """Serve request i of ``models[choices[i]]``, arriving at ``arrivals_ns[i]``, on ``gpus``.

    gpus: how many, all alike; or groups of (class, how many[, rank]), such as ``[("slow", 8), ("fast", 4)]``: GPUs of
        the lowest rank fill first, and among equals those that are named first. A batch is formed for the class of the
        GPU that it gets.
    arrivals_ns: (n,) int64, never falling, from any origin; choices: (n,) int32.
    policy: a name in ``engine.engine.POLICIES``.
    slos_ns: (n,) int64, of each request; by default those of the models.
    priorities: (n,) of each request, 0 to MOST_PRIORITY; by default 0. Higher ones survive longer in overload.
    control_ns, reply_ns: network latency from a decision to the GPU, and from the end of a batch to its answer. The
        engine knows both and plans for them.
    slack_ns, slack_share: how much earlier than frontrun windows open, and by which share of the SLO besides; a live
        dispatcher makes up so for a host that is called late (``dispatcher.SLACK_SHARE``).
    noise: standard deviation of execution times relative to l(b). The factors are gamma distributed with mean 1, drawn
        by ``seed``; the k-th batch of a simulation has the k-th.
    slowness: of each GPU, what its execution times are multiplied by beside the noise; the engine is not told of it.
    queue_limit: queued requests of one model beyond which requests are rejected.
    events: GPUs and models that come and go meanwhile (``workloads.simulation.fleet``), on the clock of the arrivals.

    The same arguments give the same result, bit for bit. Raises ``BadInput`` when they cannot be used.
    """
    # Read-only arrays, such as those of polars, are another type to the compiler.
    arrivals = np.require(arrivals_ns, np.int64, ("C", "W"))
    which = np.require(choices, np.int32, ("C", "W"))
    n = len(arrivals)
    _check(models, arrivals, which)
    fleet = plan_fleet(gpus, len(models), events)
    if policy not in POLICIES:
        raise BadInput(f"policy {policy!r} is unknown: choose one of {', '.join(POLICIES)}")
    if not 0 <= noise < np.inf or min(control_ns, reply_ns, slack_ns, slack_share, seed) < 0:
        raise BadInput(
            f"noise={noise}, control_ns={control_ns}, reply_ns={reply_ns}, slack_ns={slack_ns}, "
            f"slack_share={slack_share}, seed={seed}: each must be at least 0"
        )
    slos = np.array([model.slo_ns for model in models], np.int64)[which] if slos_ns is None else slos_ns
    if len(slos) != n or slos.min() < 1:
        raise BadInput(f"slos_ns has {len(slos)} entries, the least {slos.min()}: give {n}, each at least 1 ns")
    check_times(arrivals, np.append(slos, [model.slo_ns for model in models]))
    deadlines = arrivals + slos
    ranks = np.zeros(n, np.int32) if priorities is None else np.require(priorities, np.int32, ("C", "W"))
    if len(ranks) != n or ranks.min() < 0 or ranks.max() > MOST_PRIORITY:
        raise BadInput(
            f"priorities has {len(ranks)} entries from {ranks.min()} to {ranks.max()}: give {n}, "
            f"each between 0 and {MOST_PRIORITY}"
        )

    tables = [latency_tables(model, fleet.classes) for model in models]
    largest = max(len(table) for of_model in tables for table in of_model.values()) - 2
    n_gpus = len(fleet.rank)
    slow = np.ones(n_gpus) if slowness is None else np.array(slowness, float)
    if slow.shape != (n_gpus,) or not (slow > 0).all() or not np.isfinite(slow).all():
        raise BadInput(f"slowness={slowness}: give a positive factor for each of the {n_gpus} GPUs")
    room = slots_needed(arrivals, int(slos.max()), n_gpus * DEPTH * largest)
    exact = noise == 0 and control_ns == 0 and slowness is None
    engine = Engine(policy, exact=exact, max_requests=room)
    start = min([int(arrivals[0]), *(event.time_ns for event in fleet.events)])
    engine.set_control(start, control_ns)
    engine.set_slack(slack_ns, slack_share)
    # Each request of a batch that is lost may come to run in a batch of its own.
    most = n + DEPTH * largest * sum(isinstance(event, RemoveGpu) for event in fleet.events)
    factors = np.empty(0) if exact else np.ones(most)
    if noise > 0:
        factors = np.random.Generator(np.random.PCG64(seed)).gamma(noise**-2, noise**2, most)
    ends = make_ends(n_gpus)
    log = new_log(n, most)
    host = Host(engine, fleet, models, tables, log, control_ns=control_ns, queue_limit=queue_limit)
    host.start(start)
    place = np.array([0, 0, start], np.int64)
    due = deadlines - reply_ns if reply_ns else deadlines

    def run_until(until: int) -> None:
        s, p = engine.state, engine.profiles  # replaced as the engine grows
        loop(s, p, arrivals, which, due, ranks, factors, slow, control_ns, reply_ns, ends, log, host.ids, place, until)

    for event in fleet.events:
        run_until(event.time_ns)
        if not exact and isinstance(event, RemoveGpu):
            lose(engine.state, engine.profiles, ends, host.gpu_slots[event.gpu], event.time_ns)
        host.apply(event, event.time_ns)
        place[2] = event.time_ns
    run_until(int(NEVER))
    # Views: the rest of each array was never written to, so it takes no memory.
    batches = {name: values[: place[1]] for name, values in log._asdict().items()}
    last = max(int(arrivals[-1]), int(batches["end"].max(initial=start)))
    return SimulatedRun(
        outcome=log.outcome,
        finish_ns=log.finish,
        batch_gpu=batches["gpu"],
        batch_model=batches["model"],
        batch_size=batches["size"],
        batch_start_ns=batches["start"],
        batch_end_ns=batches["end"],
        gpus=n_gpus,
        span_ns=max(last - int(arrivals[0]), 1),
        models=models,
        arrivals_ns=arrivals,
        choices=which,
        deadlines_ns=deadlines,
        settings={
            "policy": policy,
            "control_ns": control_ns,
            "reply_ns": reply_ns,
            "slack_ns": slack_ns,
            "slack_share": slack_share,
            "noise": noise,
            "slowness": None if slowness is None else slow.tolist(),
            "seed": seed,
            "queue_limit": queue_limit,
        },
        fleet=fleet,
        changes=host.finish(batches["gpu"], batches["end"]),
        request_batch=log.batch,
        decided_ns=log.decided,
        batch_lost=batches["lost"],
        batch_dispatch_ns=batches["dispatch"],
        batch_open_ns=batches["opened"],
        batch_close_ns=batches["closed"],
        batch_planned_start_ns=batches["planned_start"],
        batch_planned_end_ns=batches["planned_end"],
        batch_rule=batches["rule"],
    )


def _check(models: Sequence[SimModel], arrivals: Ints, choices: Slots) -> None:
    if not models:
        raise BadInput("there are 0 models: give at least 1")
    if len(arrivals) == 0:
        raise BadInput("there are no requests to simulate")
    if len(choices) != len(arrivals):
        raise BadInput(f"{len(choices)} choices for {len(arrivals)} arrivals: give one a request")
    if (arrivals[1:] < arrivals[:-1]).any() or arrivals[0] < 0:
        raise BadInput("arrivals_ns falls somewhere, or begins below 0: sort the requests by arrival, in ns from 0 on")
    if choices.min() < 0 or choices.max() >= len(models):
        raise BadInput(f"choices run from {choices.min()} to {choices.max()}: there are {len(models)} models")


def slots_needed(arrivals: Ints, slo_ns: int, in_flight: int) -> int:
    """Enough request slots: for all that arrive within one SLO, and for all that can be at GPUs.

    A request leaves its queue by its deadline, so those queued arrived within an SLO, thus in two adjacent intervals of
    that length.
    """
    changes = np.flatnonzero(np.diff(arrivals // slo_ns)) + 1
    counts = np.diff(np.concatenate(([0], changes, [len(arrivals)])))
    adjacent = int(counts.max()) if len(counts) == 1 else int((counts[:-1] + counts[1:]).max())
    return min(len(arrivals), adjacent + in_flight)
