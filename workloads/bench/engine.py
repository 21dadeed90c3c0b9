"""Measures how many requests a second the scheduler alone can handle, and how late its decisions are: ``symphony bench
engine``.

The engine is the real one; the requests are generated and the GPUs emulated. In real time requests enter at their
times on the monotonic clock (open loop), and a decision that comes late makes its batch late. In virtual time the same
loop jumps from event to event, as fast as one core can. What is counted, and what a late decision is, stands at the
top of ``loops``.

One thread runs the whole engine. Of N threads, N - 1 are model threads (``workloads.parallel_engine.model_thread``) and
one is the rank thread (``workloads.parallel_engine.rank_thread``). Each keeps a core busy, polling the clock.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from symphony_dask.dispatcher.dispatcher import SLACK_SHARE
from symphony_dask.engine.engine import Engine
from symphony_dask.engine.latency_profile import LatencyProfile
from symphony_dask.errors import BadInput
from symphony_dask.units import NS_PER_MS, NS_PER_S, NS_PER_US
from workloads.parallel_engine.load import OFFERED, bound_hz, carrying, loads, with_room
from workloads.parallel_engine.loops import (
    LATE_NS,
    Counts,
    Load,
    make_counts,
    quantile_us,
    run_engine,
    run_ranks,
    run_shard,
)
from workloads.parallel_engine.model_thread import make_shard
from workloads.parallel_engine.rank_thread import make_ranks
from workloads.simulation.batch_ends import make_ends
from workloads.traces.zoo import ZOO

#: From a decision to the start of execution, ns: what a network takes, and what the loop may take without harm.
CONTROL_NS = 100 * NS_PER_US

#: Models and GPUs of ``growth``, and how many requests it runs with each at least.
SIZES = ((1, 8), (10, 80), (100, 1_000), (1_000, 5_000))
_GROWTH_REQUESTS = 2_000_000

#: ``search`` accepts this share of late requests, and tells rates apart that differ by this much.
MOST_LATE, _STEP = 1e-3, 1.1

#: From the making of the threads to the first request, ns.
_LEAD_NS = 20 * NS_PER_MS


@dataclass(frozen=True)
class Setting:
    """What is to be measured, ``models`` models alike and equally popular on ``gpus`` GPUs alike.

    rate_hz: offered; None for ``load.OFFERED`` of the goodput bound.
    seconds: on the clock, or virtual.
    profile: None for ResNet-50's, with alpha made as small as the rate needs (``load.carrying``).
    shape: of the gamma distributed gaps of each model's arrivals; 1 for Poisson.

    Raises ``BadInput`` when it cannot be measured.
    """

    models: int
    gpus: int
    rate_hz: float | None = None
    seconds: float = 5.0
    threads: int = 1
    virtual: bool = False
    policy: str = "deferred"
    profile: LatencyProfile | None = None
    slo_ns: int = ZOO["resnet50"].slo_ns
    shape: float = 1.0

    def __post_init__(self) -> None:
        if self.models < 1 or self.gpus < 1 or self.threads < 1:
            raise BadInput(f"models={self.models}, gpus={self.gpus}, threads={self.threads}: each must be at least 1")
        if self.rate_hz is not None and not 0 < self.rate_hz < float("inf"):
            raise BadInput(f"rate={self.rate_hz}: must be positive and finite")
        if not 0 < self.seconds < float("inf"):
            raise BadInput(f"seconds={self.seconds}: must be positive and finite")
        try:
            Engine(self.policy, max_requests=1)
        except ValueError as error:
            raise BadInput(str(error)) from None
        if self.threads > 1 and self.virtual:
            raise BadInput(
                f"--threads {self.threads} --virtual: virtual time runs in one thread, leave one of them out"
            )
        if self.threads > 1 and self.policy == "adaptive":
            raise BadInput(
                "policy 'adaptive' looks at all models at once: give --threads 1, or a policy such as deferred"
            )
        if self.threads > self.models + 1:
            raise BadInput(f"--threads {self.threads} for {self.models} models: give at most one more than models")


def bench_engine(setting: Setting) -> dict[str, Any]:
    """Measure ``setting``; the keys are described in docs/results.md.

    Raises ``BadInput`` when no request is offered, or the rate cannot be carried (``load.carrying``).
    """
    models, gpus, slo_ns = setting.models, setting.gpus, setting.slo_ns
    profile = with_room(setting.profile or ZOO["resnet50"].profile, slo_ns)
    rate_hz = setting.rate_hz or OFFERED * bound_hz(profile, models, gpus, slo_ns)
    if setting.profile is None and setting.rate_hz is not None:
        profile = carrying(rate_hz, models, gpus, slo_ns)
    parts = loads(models, max(1, setting.threads - 1), rate_hz, setting.seconds, slo_ns, setting.shape)
    run = _run_one if setting.threads == 1 else _run_threads
    run(setting, profile, rate_hz, [part._replace(total=0) for part in parts])  # compiles, or loads what was compiled
    return _figures(setting, profile, rate_hz, run(setting, profile, rate_hz, parts))


def growth(setting: Setting, on_progress: Callable[[str], None] = lambda text: None) -> dict[str, Any]:
    """CPU time per request in virtual time from (1, 8) to (1,000, 5,000) models and GPUs, all else alike.

    Each size is offered the same share of its bound with the same profile, so batches are alike, and the time per
    request differs by the sizes alone.
    """
    rows = []
    for models, gpus in SIZES:
        on_progress(f"{models:,} models, {gpus:,} GPUs")
        own = replace(setting, models=models, gpus=gpus, rate_hz=None, threads=1, virtual=True)
        profile = with_room(own.profile or ZOO["resnet50"].profile, own.slo_ns)
        full_s = _GROWTH_REQUESTS / bound_hz(profile, models, gpus, own.slo_ns)
        rows.append(bench_engine(replace(own, seconds=max(own.seconds, full_s))))
    return {"label": rows[0]["label"], "rows": rows}


def search(setting: Setting, on_progress: Callable[[str], None] = lambda text: None) -> dict[str, Any]:
    """The figures at the highest rate, from ``setting.rate_hz`` (or a million) on, with less than MOST_LATE late.

    The rate doubles or halves until one is found that holds and one that does not, then the interval is halved down to
    ``_STEP``. ``tried`` lists each rate with its late fraction. If none holds, the figures are those of the lowest.
    """
    tried = []
    best: dict[str, Any] | None = None
    low_hz, high_hz = 0.0, float("inf")
    rate_hz = setting.rate_hz or 1e6
    while True:
        found = bench_engine(replace(setting, rate_hz=rate_hz))
        tried.append({"rate_hz": rate_hz, "late_fraction": found["late_fraction"]})
        on_progress(f"{rate_hz:12,.0f} req/s: {found['late_fraction']:.3%} late")
        if found["late_fraction"] < MOST_LATE:
            low_hz, best = rate_hz, found
        else:
            high_hz = rate_hz
        if high_hz <= _STEP * low_hz or (best is None and high_hz < 1000):
            return {**(best or found), "tried": tried}
        between_hz = (low_hz * high_hz) ** 0.5 if low_hz else high_hz / 2
        rate_hz = 2 * low_hz if high_hz == float("inf") else between_hz


@dataclass(frozen=True)
class _Ran:
    """counts, cpu_ns: of each loop, the rank thread's last; start: when the first request could come, ns."""

    counts: Sequence[Counts]
    cpu_ns: Sequence[int]
    start: int


def _engine(setting: Setting, profile: LatencyProfile, models: int, rate_hz: float, now: int) -> Engine:
    """An engine with all GPUs and so many of the models; nothing of it is paged in by its first requests."""
    # Who is not late leaves by its deadline; twice that, and some to spare, for a loop that has fallen behind.
    room = int(2 * rate_hz * setting.slo_ns / NS_PER_S) + (1 << 16)
    engine = Engine(setting.policy, exact=setting.virtual, max_requests=room)
    engine.state.req["state"] = 0
    engine.set_control(now, CONTROL_NS)
    engine.set_slack(0, SLACK_SHARE)
    for _ in range(setting.gpus):  # before the models, each of which would be looked at for each GPU
        engine.add_gpu(now, control_ns=CONTROL_NS)
    table = profile.latency_ns()
    for _ in range(models):
        engine.add_model(now, slo_ns=setting.slo_ns, latency_ns={0: table}, queue_limit=room)
    return engine


def _run_one(setting: Setting, profile: LatencyProfile, rate_hz: float, parts: Sequence[Load]) -> _Ran:
    now = 0 if setting.virtual else time.monotonic_ns()
    engine = _engine(setting, profile, setting.models, rate_hz, now)
    engine.advance(now)
    counts = make_counts(setting.gpus)
    ends = make_ends(setting.gpus)
    stop = np.zeros(1, np.int64)
    start = now if setting.virtual else time.monotonic_ns() + _LEAD_NS
    loop = partial(run_engine, engine.state, engine.profiles, parts[0], ends, counts, start, int(setting.virtual), stop)
    return _Ran([counts], _side_by_side([loop], stop), start)


def _run_threads(setting: Setting, profile: LatencyProfile, rate_hz: float, parts: Sequence[Load]) -> _Ran:
    now = time.monotonic_ns()
    owned = [len(range(j, setting.models, len(parts))) for j in range(len(parts))]
    ranks = make_ranks(owned, setting.gpus, CONTROL_NS, now)
    shards = [
        make_shard(_engine(setting, profile, own, rate_hz, now), ranks, j, sum(owned[:j]), now)
        for j, own in enumerate(owned)
    ]
    counts = [make_counts(setting.gpus) for _ in range(len(parts) + 1)]
    stop, done, gpu_ends = (np.zeros(n, np.int64) for n in (1, len(parts), setting.gpus))
    start = time.monotonic_ns() + _LEAD_NS
    loops: list[Callable[[], None]] = [
        partial(run_shard, shard, part, gpu_ends, own, start, done, j, stop)
        for j, (shard, part, own) in enumerate(zip(shards, parts, counts[:-1], strict=True))
    ]
    loops.append(partial(run_ranks, ranks, counts[-1], done, stop))
    return _Ran(counts, _side_by_side(loops, stop), start)


def _side_by_side(loops: Sequence[Callable[[], None]], stop: npt.NDArray[np.int64]) -> list[int]:
    """Run each loop in a thread of its own; returns the CPU time of each, ns. An interrupt sets ``stop``."""
    cpu_ns = [0] * len(loops)
    failures: list[BaseException] = []

    def run(i: int) -> None:
        try:
            before = time.thread_time_ns()
            loops[i]()
            cpu_ns[i] = time.thread_time_ns() - before
        except BaseException as failure:
            failures.append(failure)
            stop[0] = 1

    threads = [threading.Thread(target=run, args=(i,), name=f"bench-{i}") for i in range(len(loops))]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        stop[0] = 1
    if failures:
        raise failures[0]
    return cpu_ns


def _figures(setting: Setting, profile: LatencyProfile, rate_hz: float, ran: _Ran) -> dict[str, Any]:
    tallies = [own.tally[0] for own in ran.counts]

    def total(name: str) -> int:
        return sum(int(tally[name]) for tally in tallies)

    used = np.sum([own.used for own in ran.counts], axis=0)
    lateness = np.sum([own.lateness for own in ran.counts], axis=0)
    requests, batches = total("requests"), total("batches")
    worked = [1 - tally.idle_ns / tally.wall_ns if tally.wall_ns else 0.0 for tally in tallies]
    cpu_ns = sum(own * share for own, share in zip(ran.cpu_ns, worked, strict=True))
    span_s = max(max(int(tally.taken) for tally in tallies) - ran.start, setting.seconds * NS_PER_S) / NS_PER_S
    clock = "virtual time" if setting.virtual else "real time"
    if total("overlaps"):
        raise RuntimeError(f"{total('overlaps')} batches were given to a GPU that was busy: the figures are void")
    return {
        "label": f"measured in {clock}: the real engine, emulated GPUs, generated requests",
        "models": setting.models,
        "gpus": setting.gpus,
        "threads": setting.threads,
        "virtual": setting.virtual,
        "policy": setting.policy,
        "offered_hz": rate_hz,
        "bound_hz": bound_hz(profile, setting.models, setting.gpus, setting.slo_ns),
        "alpha_ms": profile.alpha_ms,
        "beta_ms": profile.beta_ms,
        "slo_ms": setting.slo_ns / NS_PER_MS,
        "rate_hz": requests / (cpu_ns / NS_PER_S) if setting.virtual else requests / span_s,
        "late_fraction": total("late") / requests,
        "lateness_us": {name: quantile_us(lateness, q) for name, q in (("p50", 0.5), ("p99", 0.99), ("p999", 0.999))},
        "late_threshold_us": LATE_NS / NS_PER_US,
        "cpu_us_per_request": cpu_ns / NS_PER_US / requests,
        "thread_work_share": worked,
        "gpus_used": int((used > 0).sum()),
        "highest_rank": int(np.flatnonzero(used).max(initial=-1)),
        "busy_gpus": total("gpu_ns") / NS_PER_S / span_s,
        "requests": requests,
        "attainment": total("ok") / requests,
        "missed": total("missed"),
        "dropped": total("dropped"),
        "rejected": total("rejected"),
        "decisions": batches,
        "late_decisions": total("late_batches"),
        "mean_batch": (total("ok") + total("missed")) / batches if batches else 0.0,
    }
