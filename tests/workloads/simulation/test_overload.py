"""What happens to whom when more is asked for than there is: priorities and fairness, by simulation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from symphony_dask.engine.latency_profile import LatencyProfile
from symphony_dask.errors import BadInput
from symphony_dask.trace import Outcome
from workloads.compare.goodput import mix_arrivals
from workloads.simulation.result import SimModel
from workloads.simulation.simulate import SimulatedRun, simulate

MS = 1_000_000
RESNET = LatencyProfile(1.053, 5.072)
INCEPTION = LatencyProfile(5.090, 18.368)


def served(
    models: Sequence[SimModel], gpus: int, rates_hz: Sequence[float], seed: int = 0, **options: Any
) -> SimulatedRun:
    total = sum(rates_hz)
    arrivals_ns, choices = mix_arrivals(len(models), total, 5.0, shares=[rate / total for rate in rates_hz], seed=seed)
    return simulate(models, gpus, arrivals_ns, choices, **options)


def attainments(result: SimulatedRun) -> npt.NDArray[np.float64]:
    """Of each model, from the first second on."""
    settled = result.arrivals_ns > 1_000 * MS
    ok = result.outcome == Outcome.OK
    n = len(result.models)
    return np.bincount(result.choices[ok & settled], minlength=n) / np.bincount(result.choices[settled], minlength=n)


def one_in_five(n: int) -> npt.NDArray[np.int32]:
    return (np.random.default_rng(1).random(n) < 0.2).astype(np.int32)


@pytest.mark.parametrize(("models", "gpus", "slo_ms", "rate_hz"), [(1, 8, 25, 11_800), (20, 16, 50, 17_800)])
def test_requests_of_high_priority_are_served_in_overload_and_no_fewer_in_all(
    models: int, gpus: int, slo_ms: int, rate_hz: float
) -> None:
    mix = [SimModel("m", RESNET, slo_ms * MS)] * models
    without = served(mix, gpus, [rate_hz / models] * models)
    raised = one_in_five(len(without.outcome))
    result = served(mix, gpus, [rate_hz / models] * models, priorities=raised)
    ok = result.outcome == Outcome.OK
    assert ok[raised == 1].mean() > 0.99
    assert ok.sum() > 0.97 * (without.outcome == Outcome.OK).sum()


def test_priorities_that_are_all_alike_change_nothing() -> None:
    mix = [SimModel("m", RESNET, 25 * MS)] * 3
    plain = served(mix, 2, [600] * 3)
    same = served(mix, 2, [600] * 3, priorities=np.zeros(len(plain.outcome), np.int32))
    assert np.array_equal(plain.finish_ns, same.finish_ns)


def test_a_request_evicted_from_a_full_queue_counts_as_rejected() -> None:
    arrivals_ns = np.array([0, 1, 2], np.int64)
    result = simulate(
        [SimModel("m", RESNET, 25 * MS)], 1, arrivals_ns, np.zeros(3, np.int32),
        policy="deferred", queue_limit=2, priorities=[0, 0, 1],
    )  # fmt: skip
    assert result.outcome.tolist() == [Outcome.OK, Outcome.REJECTED, Outcome.OK]
    assert result.decided_ns[1] == 2


def test_priorities_out_of_range_are_named() -> None:
    with pytest.raises(BadInput, match="priorities has 1 entries from 8 to 8: give 1, each between 0 and 7"):
        simulate([SimModel("m", RESNET, 25 * MS)], 1, np.array([0]), np.zeros(1, np.int32), priorities=[8])


def test_models_within_their_share_are_served_beside_one_that_asks_for_ten_times_its_own() -> None:
    mix = [SimModel("flood", RESNET, 25 * MS)] + [SimModel(f"light{i}", RESNET, 25 * MS) for i in range(3)]
    found = [attainments(served(mix, 8, [13_400, 300, 300, 300], seed)) for seed in range(6)]
    assert (np.mean(found, axis=0)[1:] > 0.98).all()


def test_a_flood_of_short_requests_leaves_long_ones_their_share() -> None:
    mix = [SimModel("flood", RESNET, 25 * MS)] + [SimModel(f"light{i}", INCEPTION, 100 * MS) for i in range(3)]
    result = served(mix, 8, [13_400, 120, 120, 120])
    assert (attainments(result)[1:] > 0.99).all()


def test_models_that_all_ask_for_more_than_their_share_get_about_as_much_gpu_time() -> None:
    mix = [SimModel(f"m{i}", RESNET, 50 * MS) for i in range(8)]
    result = served(mix, 4, [500 * (i + 1) for i in range(8)])
    used = [(result.batch_end_ns - result.batch_start_ns)[result.batch_model == m].sum() for m in range(8)]
    assert max(used[1:]) < 2 * min(used[1:])
