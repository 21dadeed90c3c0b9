from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from symphony_dask.errors import BadInput
from workloads.traces.synthetic_arrivals import assign, gamma, poisson


def test_arrivals_are_sorted_nanoseconds_within_the_span() -> None:
    arrival_ns = poisson(1000, seconds=10, seed=1)
    assert arrival_ns.dtype == np.int64
    assert 0 <= arrival_ns[0] <= arrival_ns[-1] < 10_000_000_000
    assert (np.diff(arrival_ns) >= 0).all()


def test_as_many_arrive_as_the_rate_says() -> None:
    # 10,000 expected; a Poisson count deviates by 100, and one with gamma gaps of shape 0.2 by 224.
    assert abs(len(poisson(1000, seconds=10, seed=1)) - 10_000) < 400
    assert abs(len(gamma(1000, seconds=10, shape=0.2, seed=1)) - 10_000) < 900


@pytest.mark.parametrize("shape", [0.2, 1.0, 4.0])
def test_the_squared_variation_of_gaps_is_the_inverse_of_the_shape(shape: float) -> None:
    gaps = np.diff(gamma(1000, seconds=200, shape=shape, seed=3))
    assert gaps.var() / gaps.mean() ** 2 == pytest.approx(1 / shape, rel=0.05)


def test_shape_one_is_the_poisson_process_of_that_seed() -> None:
    assert gamma(50, seconds=10, shape=1, seed=9).tolist() == poisson(50, seconds=10, seed=9).tolist()


def test_a_seed_fixes_the_arrivals_and_another_changes_them() -> None:
    assert poisson(100, seconds=5, seed=4).tolist() == poisson(100, seconds=5, seed=4).tolist()
    assert poisson(100, seconds=5, seed=4).tolist() != poisson(100, seconds=5, seed=5).tolist()


def test_a_longer_run_begins_with_the_arrivals_of_the_shorter_one() -> None:
    short, long = gamma(100, 5, shape=0.2, seed=4), gamma(100, 50, shape=0.2, seed=4)
    assert long[: len(short)].tolist() == short.tolist()
    assert long[len(short)] >= 5_000_000_000


def test_models_are_assigned_by_their_shares() -> None:
    models = assign(100_000, [0.7, 0.3, 0.0], seed=2)
    assert models.dtype == np.int32
    assert np.bincount(models, minlength=3) == pytest.approx([70_000, 30_000, 0], abs=600)


def test_assigning_no_arrivals_gives_no_models() -> None:
    assert assign(0, [1.0], seed=0).tolist() == []


def test_models_do_not_depend_on_gaps_drawn_with_the_same_seed() -> None:
    gaps = np.diff(poisson(1000, seconds=50, seed=7), prepend=0)
    assert abs(np.corrcoef(gaps, assign(len(gaps), [0.5, 0.5], seed=7))[0, 1]) < 0.02


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: poisson(0, 1, seed=0), "rate_hz is 0"),
        (lambda: poisson(float("inf"), 1, seed=0), "rate_hz is inf"),
        (lambda: poisson(1, -2, seed=0), "seconds is -2"),
        (lambda: gamma(1, 1, shape=0, seed=0), "shape is 0"),
        (lambda: poisson(1, 1, seed=-1), "seed is -1"),
        (lambda: assign(-1, [1.0], seed=0), "n is -1"),
        (lambda: assign(1, [0.5], seed=0), "shares sum to 0.5"),
    ],
)
def test_values_that_make_no_process_are_refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        call()
