"""The measure of how unevenly requests arrive."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from tests.helpers.engines.engines import advance, make_engine, submit


def measured(counts: Sequence[int], *, tick_ms: float = 100.0, model_of: int = 1) -> float:
    """What the engine finds where so many requests come in one tick after another."""
    engine = make_engine(policy="adaptive", gpus=4, models=model_of, max_requests=4096, slo=20)
    now = 0.0
    advance(engine, now)
    for n in counts:
        for i in range(n):
            submit(engine, now + tick_ms / 2, now + tick_ms / 2 + 20, model=i % model_of)
        advance(engine, now + tick_ms / 2)
        now += tick_ms
        advance(engine, now)
    return float(engine.state.g["bursts"][0])


@pytest.mark.parametrize("models", [1, 3])
def test_even_arrivals_have_none_and_poissons_one(models: int) -> None:
    assert measured([40] * 100, model_of=models) == 0
    seeds = [measured(np.random.default_rng(seed).poisson(12, 100).tolist(), model_of=models) for seed in range(8)]
    assert np.mean(seeds) == pytest.approx(1, rel=0.3)


def test_gamma_arrivals_of_shape_k_have_one_over_k() -> None:
    found = []
    for seed in range(8):
        arrivals = np.cumsum(np.random.default_rng(seed).gamma(0.2, 5 / 20, 2500))
        found.append(measured(np.bincount(arrivals.astype(int))[:100].tolist()))
    assert np.mean(found) == pytest.approx(5, rel=0.4)


def test_a_load_that_rises_slowly_is_no_burst() -> None:
    assert measured(list(range(20, 120))) < 0.1


@pytest.mark.parametrize("counts", [[0, 400, 0, 0], [0] * 10 + [200] * 3, [200] * 3 + [0] * 10])
def test_a_load_that_begins_or_ends_is_no_burst(counts: list[int]) -> None:
    assert measured(counts) == 0


def test_a_long_tick_says_nothing() -> None:
    assert measured([5, 400, 5, 400], tick_ms=500) == 0


def test_in_bursts_a_model_on_many_gpus_aims_for_smaller_batches() -> None:
    targets = []
    for bursts in (0.0, 1.0, 5.0):
        engine = make_engine(policy="adaptive", gpus=8, models=1, max_requests=4096, slo=50)
        engine.state.g["bursts"] = bursts
        for at in np.arange(0, 600, 0.2):  # 5 a ms keep some seven GPUs at work
            submit(engine, at, at + 50)
            if at % 1 < 0.1:
                advance(engine, at)
                engine.state.g["bursts"] = bursts
        targets.append(int(engine.state.mod["target"][0]))
    assert targets[0] == targets[1] > targets[2]
