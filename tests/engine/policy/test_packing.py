"""How many GPUs start batches at once, and which model may (``packing``)."""

from __future__ import annotations

import math

import numpy as np
import pytest

from symphony_dask.engine.engine import Engine
from symphony_dask.engine.policy import packing, window
from tests.helpers.engines.engines import advance, make_engine, ns, submit


def packed(engine: Engine) -> int:
    return int(engine.state.g["packed"][0])


def test_a_lone_request_on_an_idle_cluster_starts_when_it_comes() -> None:
    engine = make_engine(gpus=3, policy="adaptive")
    submit(engine, 0, 500)
    batches = engine.advance(0).batches
    assert (batches["gpu"].tolist(), batches["size"].tolist(), batches["start"].tolist()) == ([0], [1], [0])


def test_a_further_gpu_waits_for_a_window() -> None:
    engine = make_engine(models=2, gpus=3, policy="adaptive")
    assert packed(engine) == 1
    submit(engine, 0, 25, model=0)
    submit(engine, 0, 25, model=1)
    assert engine.advance(0).batches["model"].tolist() == [0]
    # l(1) = 6, l(2) = 7: the other window opens at 18 ms, and the first GPU is free at 6 ms.
    assert engine.next_event() == ns(6)
    assert engine.advance(ns(6)).batches[["model", "gpu"]].tolist() == [(1, 0)]


def test_the_next_batch_of_a_model_is_larger_the_more_gpus_it_is_at() -> None:
    engine = make_engine(gpus=4, policy="adaptive")
    engine.state.g["packed"] = 4
    sizes = []
    while sum(sizes) < 60:
        submit(engine, 0, 500)
        sizes += engine.advance(0).batches["size"].tolist()
        if engine.state.mod["in_flight"][0] == 4:
            break
    target = engine.target(0)
    least = [max(1, math.ceil(packing.HOLD * target * i / (engine.state.mod["excess"][0] + 2))) for i in range(4)]
    assert sizes == least
    assert sizes == sorted(set(sizes))


@pytest.mark.parametrize(("every", "slo"), [(1, 25), (5, 25), (2, 100)])
def test_needed_is_what_deferral_keeps_busy(every: int, slo: float) -> None:
    """One request every so many ms: deferral would collect b of them until one more could not join, (b-1)*every apart,
    and run them in l(b)."""
    engine = make_engine(gpus=8, policy="adaptive")
    for t in range(0, 2_000, every):
        submit(engine, t, t + slo)
        advance(engine, t)
    found = float(engine.state.g["needed"][0])
    b = next(b for b in range(1, 1000) if (b - 1) * every + every > slo - (5 + b + 1))
    assert found == pytest.approx((5 + b) / (b * every), rel=0.25)
    assert packed(engine) == math.ceil(found + packing.SPREAD * math.sqrt(found)) + 1


def test_silence_lets_needed_fall() -> None:
    engine = make_engine(gpus=8, policy="adaptive")
    for t in range(500):
        submit(engine, t, t + 25)
        advance(engine, t)
    assert packed(engine) > 2
    for t in range(600, 6_000, 100):
        engine.advance(ns(t))
    assert packed(engine) == 2


def test_more_than_there_are_gpus_is_no_fault() -> None:
    engine = make_engine(gpus=1, policy="adaptive")
    rng = np.random.default_rng(1)
    for t in range(400):
        submit(engine, t, *(t + 25 + rng.integers(0, 5, 20)).tolist())
        advance(engine, t)
    assert packed(engine) > 1
    engine.validate()


def test_where_no_batch_waits_for_a_gpu_the_hold_does_not_shrink_with_the_target() -> None:
    """At 0.2 requests a ms no more than 2.4 GPUs are at work: the model aims for half of the formula's batch."""
    excess = {}
    for waiting in (0.0, 0.1):
        engine = make_engine(gpus=8, policy="adaptive", slo=50, max_requests=1024)
        for at in np.arange(0, 1500, 5):
            engine.state.g["waiting"] = waiting
            submit(engine, at, at + 50)
            advance(engine, at)
        excess[waiting] = float(engine.state.mod["excess"][0])
    assert excess[0.1] == 0
    assert excess[0.0] == pytest.approx(2 * (1 - window.SHORT) / packing.AIM_CALM - 2)
