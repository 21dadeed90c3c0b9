"""An engine that reads in ms, for tests whose numbers are worked out by hand."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from symphony_dask.engine.engine import Engine, Ints
from symphony_dask.engine.latency_profile import LatencyProfile
from symphony_dask.units import NS_PER_MS


class Sent(NamedTuple):
    """A batch: its model, its GPU, its request slots in order, and when it is to start and end, in ms."""

    model: int
    gpu: int
    slots: list[int]
    start: float
    end: float


def ns(ms: float) -> int:
    return round(ms * NS_PER_MS)


def table(alpha_ms: float, beta_ms: float, max_batch: int = 128) -> Ints:
    return LatencyProfile(alpha_ms, beta_ms, max_batch).latency_ns()


def make_engine(
    *,
    models: int = 1,
    gpus: int = 1,
    max_batch: int = 128,
    slo: float = 25,
    exact: bool = True,
    max_requests: int = 256,
    policy: str = "deferred",
    **options: Any,
) -> Engine:
    """An engine whose models all take l(b) = b + 5 ms. A fresh engine numbers its slots 0, 1, 2, ... as they come."""
    engine = Engine(policy, exact=exact, max_requests=max_requests, **options)
    for _ in range(models):
        engine.add_model(0, slo_ns=ns(slo), latency_ns={0: table(1, 5, max_batch)})
    for _ in range(gpus):
        engine.add_gpu(0)
    return engine


def submit(engine: Engine, now: float, *deadlines: float, model: int = 0, priority: int = 0) -> list[int]:
    """Submit a request for each deadline, in ms; returns the slots."""
    n = len(deadlines)
    answers = engine.submit(
        ns(now),
        np.full(n, model, np.int32),
        np.array([ns(d) for d in deadlines], np.int64),
        np.arange(n),
        np.full(n, priority, np.int32),
    )
    return answers.tolist()


def advance(engine: Engine, now: float) -> tuple[list[Sent], list[int]]:
    """What the engine sends and drops at ``now``, in ms."""
    decisions = engine.advance(ns(now))
    engine.validate()
    sent = []
    for row in decisions.batches:
        members = decisions.members[row["offset"] : row["offset"] + row["size"]].tolist()
        start, end = row["start"] / NS_PER_MS, row["end"] / NS_PER_MS
        sent.append(Sent(int(row["model"]), int(row["gpu"]), members, start, end))
    return sent, decisions.drops.tolist()


def next_event(engine: Engine) -> float:
    """When the engine wants to be called next, in ms."""
    return engine.next_event() / NS_PER_MS
