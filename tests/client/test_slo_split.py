"""How an SLO is split over stages; the figures are worked out by hand, in ms."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from symphony_dask.client.slo_split import Split, Work, split
from symphony_dask.engine.latency_profile import LatencyProfile
from symphony_dask.errors import BadInput

MS = 1_000_000


def work(alpha: float, beta: float, max_batch: int = 4, rate_hz: float | None = None, overhead_ns: int = 0) -> Work:
    return Work(LatencyProfile(alpha, beta, max_batch).latency_ns(), rate_hz, overhead_ns)


#: b + 3: batches of 1 to 4 take 4, 5, 6, 7 ms, and need twice that; a request costs 4, 2.5, 2, 1.75 ms of GPU time.
STEEP = work(1, 3)

#: 2b + 1: 3, 5, 7, 9 ms; a request costs 3, 2.5, 2.333, 2.25 ms.
FLAT = work(2, 1)


def leaves(part: Split) -> list[tuple[int, float]]:
    """(batch, budget in ms) of each stage on GPUs."""
    if part.parts:
        return [leaf for inner in part.parts for leaf in leaves(inner)]
    return [(part.batch, part.budget_ns / MS)]


def test_a_stage_alone_has_the_whole_slo() -> None:
    assert leaves(split([STEEP], 12 * MS)) == [(3, 12.0)]


def test_the_stage_that_gains_more_from_batching_gets_more() -> None:
    # 14 + 10 ms at 1.75 + 2.5 ms a request; halves, 12 + 12, would cost 2 + 2.5.
    found = split([STEEP, FLAT], 24 * MS, steps=24)
    assert leaves(found) == [(4, 14.0), (2, 10.0)]
    assert found.cost == pytest.approx(0.00425)


def test_a_stage_goes_down_to_one_request_where_the_other_saves_more_by_its_time() -> None:
    # 14 + 6 ms at 1.75 + 3; 10 + 10 would cost 2.5 + 2.5, and 12 + 6 with 2 ms left 2 + 3.
    assert leaves(split([STEEP, FLAT], 20 * MS, steps=20)) == [(4, 14.0), (1, 6.0)]


def test_what_is_left_over_is_shared_in_proportion() -> None:
    # All that the batches of 4 need is 14 + 18 ms.
    assert leaves(split([STEEP, FLAT], 64 * MS, steps=64)) == [(4, 28.0), (4, 36.0)]


def test_stages_side_by_side_all_have_the_time_of_their_group() -> None:
    # As 14 + 10 above, but the second stage is two; they cost 5 ms at 10 and 6 ms at 6 ms, so the first yields nothing.
    found = split([STEEP, (FLAT, FLAT)], 24 * MS, steps=24)
    assert leaves(found) == [(4, 14.0), (2, 10.0), (2, 10.0)]
    assert found.cost == pytest.approx(0.00675)


def test_a_chain_within_a_group_shares_the_time_of_the_group() -> None:
    assert leaves(split([(STEEP, [STEEP, FLAT])], 24 * MS, steps=24)) == [(4, 24.0), (4, 14.0), (2, 10.0)]


def test_a_known_rate_says_how_long_a_batch_takes_to_gather() -> None:
    # At 1,000 requests a second b + 3 needs 5, 7, 9, 11 ms, and takes 4, 2.5, 2, 1.75 GPUs.
    found = split([work(1, 3, rate_hz=1000)], 9 * MS, steps=9)
    assert leaves(found) == [(3, 9.0)]
    assert found.cost == pytest.approx(2.0)


def test_at_a_low_rate_nothing_waits_for_others() -> None:
    # A batch of 2 would gather for 200 ms; one alone has as long to wait for a GPU as it runs.
    assert leaves(split([work(1, 3, rate_hz=10), work(2, 1, rate_hz=10)], 28 * MS, steps=28)) == [(1, 16.0), (1, 12.0)]


def test_the_network_takes_its_time_of_each_stage() -> None:
    assert leaves(split([work(1, 3, overhead_ns=2 * MS)], 12 * MS, steps=12)) == [(2, 12.0)]


def test_a_function_between_stages_takes_no_time() -> None:
    assert leaves(split([STEEP, None, FLAT], 24 * MS, steps=24)) == [(4, 14.0), (0, 0.0), (2, 10.0)]


def test_stages_that_take_no_time_have_some() -> None:
    assert leaves(split([work(0, 0), None, work(0, 0)], 20 * MS)) == [(1, 10.0), (0, 0.0), (1, 10.0)]


def test_an_slo_that_leaves_no_time_to_wait_is_split_as_requests_run_alone() -> None:
    assert leaves(split([STEEP, FLAT], 7 * MS, steps=7)) == [(1, 4.0), (1, 3.0)]


def test_an_slo_that_cannot_be_met_is_refused() -> None:
    with pytest.raises(BadInput, match="SLO 6ms cannot be met: one request alone takes 7ms through all stages"):
        split([STEEP, FLAT], 6 * MS)


def test_only_functions_need_nothing() -> None:
    assert split([None], MS) == Split(MS, 0.0, 0, (Split(0, 0.0),))


def test_the_papers_models_in_a_row_take_fewer_gpus_than_with_halves_of_the_slo() -> None:
    inception, resnet = work(5.090, 18.368, 64, rate_hz=500), work(1.053, 5.072, 64, rate_hz=500)
    found = split([inception, resnet], 100 * MS)
    # 59.1 ms for 8 and 11.4 ms for 6, and 16 and 12 ms to gather them: 3.69 + 0.95 GPUs.
    assert [batch for batch, _ in leaves(found)] == [8, 6]
    assert found.cost == pytest.approx(4.642, abs=1e-3)
    # In 50 ms: 38.7 ms for 4 and 8 to gather them, 19.8 ms for 14 and 28: 4.84 + 0.71 GPUs.
    halves = [min(w.cost(b) for b in range(1, 65) if w.needs_ns()[b] <= 50 * MS) for w in (inception, resnet)]
    assert sum(halves) == pytest.approx(5.549, abs=1e-3)


def brute_force(stages: list[Work], slo_ns: int) -> float:
    """The least cost over all batches of all stages."""
    best = np.inf
    for batches in itertools.product(*[range(1, len(w.latency_ns) - 1) for w in stages]):
        if sum(w.needs_ns()[b] for w, b in zip(stages, batches, strict=True)) <= slo_ns:
            best = min(best, sum(w.cost(b) for w, b in zip(stages, batches, strict=True)))
    return float(best)


profiles = st.tuples(st.integers(1, 4), st.integers(0, 9))


@given(st.lists(profiles, min_size=1, max_size=3), st.integers(10, 90))
def test_no_batches_within_the_slo_cost_less(given: list[Any], slo_ms: int) -> None:
    stages = [work(alpha, beta) for alpha, beta in given]
    least = brute_force(stages, slo_ms * MS)
    if np.isinf(least):
        return
    found = split(list(stages), slo_ms * MS, steps=slo_ms)
    assert found.cost == pytest.approx(least)
    assert sum(part.budget_ns for part in found.parts) <= slo_ms * MS
    for stage, part in zip(stages, found.parts, strict=True):
        assert part.budget_ns >= stage.needs_ns()[part.batch] - 1
