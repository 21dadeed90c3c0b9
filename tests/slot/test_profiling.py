from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from symphony_dask.backends import BatchResult
from symphony_dask.errors import BadInput, DeploymentError
from symphony_dask.slot.profiling import fit, measure, profile_runner


class FakeClock:
    """Time in ns that moves only when a batch runs."""

    def __init__(self) -> None:
        self.now = 0
        self.ran: list[int] = []

    def __call__(self) -> int:
        return self.now

    def batch(self, ms: Callable[[int], float]) -> Callable[[int], None]:
        """A ``run_batch`` that takes ``ms(b)``."""

        def run(b: int) -> None:
            self.ran.append(b)
            self.now += round(ms(b) * 1e6)

        return run


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


def test_sizes_double_up_to_the_largest_batch(clock: FakeClock) -> None:
    table = measure(clock.batch(lambda b: 2 * b + 3), 12, clock=clock)
    assert table == [(1, 5.0), (2, 7.0), (4, 11.0), (8, 19.0), (12, 27.0)]


def test_each_size_is_run_once_to_warm_up_and_then_repeated(clock: FakeClock) -> None:
    measure(clock.batch(lambda b: 1), 2, repeats=3, clock=clock)
    assert clock.ran == [1, 1, 1, 1, 2, 2, 2, 2]


def test_the_median_ignores_the_warm_up_and_one_slow_run(clock: FakeClock) -> None:
    times = iter([100, 1, 50, 2])
    assert measure(clock.batch(lambda b: next(times)), 1, repeats=3, clock=clock) == [(1, 2.0)]


def test_measuring_ends_when_the_budget_is_spent(clock: FakeClock) -> None:
    # One warm-up and two runs of 1 s at b = 1, then one of each of 2 s at b = 2: 7 s, over the 6 s allowed.
    table = measure(clock.batch(lambda b: 1000 * b), 64, budget_s=6, repeats=2, clock=clock)
    assert table == [(1, 1000.0), (2, 2000.0)]
    assert clock.ran == [1, 1, 1, 2, 2]


def test_measuring_ends_after_the_first_size_that_is_too_slow(clock: FakeClock) -> None:
    assert measure(clock.batch(lambda b: b), 64, stop_above_ms=3, clock=clock) == [(1, 1.0), (2, 2.0), (4, 4.0)]


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")])
def test_measuring_ends_before_the_size_that_runs_out_of_memory(clock: FakeClock, error: Exception) -> None:
    def run(b: int) -> None:
        if b > 4:
            raise error
        clock.now += 1_000_000

    assert measure(run, 64, clock=clock) == [(1, 1.0), (2, 1.0), (4, 1.0)]


def test_other_errors_and_running_out_of_memory_at_once_are_raised(clock: FakeClock) -> None:
    def run(error: Exception) -> Callable[[int], None]:
        def raise_it(b: int) -> None:
            raise error

        return raise_it

    with pytest.raises(MemoryError):
        measure(run(MemoryError()), 8, clock=clock)
    with pytest.raises(ZeroDivisionError):
        measure(run(ZeroDivisionError()), 8, clock=clock)
    with pytest.raises(BadInput, match="max_batch is 0"):
        measure(run(MemoryError()), 0, clock=clock)


def test_a_straight_line_is_fitted_exactly_and_keeps_its_table() -> None:
    table = [(1, 5.0), (2, 7.0), (4, 11.0)]
    profile = fit(table)
    assert profile.alpha_ms == pytest.approx(2)
    assert profile.beta_ms == pytest.approx(3)
    assert profile.table == tuple(table)
    assert profile.max_batch == 4


def test_errors_count_relative_to_the_latency() -> None:
    # Least squares of (alpha*b + beta)/t - 1 at (1, 1), (2, 4), (3, 3): with u = 1/t the rows are (1, 1), (1/2, 1/4),
    # (1, 1/3), so the normal equations are 9/4 a + 35/24 b = 5/2 and 35/24 a + 169/144 b = 19/12. By Cramer's rule
    # a = 90/74 and b = -12/74, below 0; so b = 0 and a = (5/2) / (9/4).
    profile = fit([(1, 1.0), (2, 4.0), (3, 3.0)])
    assert profile.alpha_ms == pytest.approx(10 / 9)
    assert profile.beta_ms == 0


def test_a_latency_that_falls_with_the_batch_is_fitted_as_constant() -> None:
    # b minimises (b/4 - 1)^2 + (b/2 - 1)^2: b = (1/4 + 1/2) / (1/16 + 1/4) = 12/5.
    profile = fit([(1, 4.0), (2, 2.0)])
    assert (profile.alpha_ms, profile.beta_ms) == (0, pytest.approx(2.4))


def test_a_single_size_is_fitted_as_if_batching_gained_nothing() -> None:
    profile = fit([(2, 6.0)])
    assert (profile.alpha_ms, profile.beta_ms) == (3, 0)


def test_an_empty_table_is_refused() -> None:
    with pytest.raises(BadInput, match="empty"):
        fit([])


class RecordingRunner:
    """Answers with nothing and keeps the batches it was given; fails from ``fail_at`` samples on."""

    def __init__(self, fail_at: int = 1000, message: str = "ValueError: no") -> None:
        self.batches: list[tuple[int, int]] = []
        self.fail_at = fail_at
        self.message = message

    def run(self, blob: memoryview, sizes: np.ndarray) -> BatchResult:
        assert len(blob) == sizes.sum()
        self.batches.append((len(sizes), len(blob)))
        errors = {0: self.message} if len(sizes) >= self.fail_at else {}
        return BatchResult(memoryview(b""), np.zeros(len(sizes), np.int64), errors)


def test_a_runner_is_profiled_on_batches_of_the_example() -> None:
    runner = RecordingRunner()
    profile = profile_runner(runner, b"abc", max_batch=4)
    assert sorted(set(runner.batches)) == [(1, 4), (2, 8), (4, 16)]
    assert profile.max_batch == 4


def test_a_runner_is_profiled_no_further_than_its_slo() -> None:
    assert profile_runner(RecordingRunner(), b"abc", max_batch=4, slo_ns=0).max_batch == 1


def test_a_runner_out_of_memory_gets_the_largest_batch_that_worked() -> None:
    runner = RecordingRunner(fail_at=4, message="torch.OutOfMemoryError: CUDA out of memory.")
    assert profile_runner(runner, b"abc", max_batch=64).max_batch == 2


def test_a_runner_that_fails_on_the_example_is_a_deployment_error() -> None:
    with pytest.raises(DeploymentError, match=r"batch of 1 x float64 \(2,\):\nValueError: no"):
        profile_runner(RecordingRunner(fail_at=1), np.zeros(2), max_batch=8)
