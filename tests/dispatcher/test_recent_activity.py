"""The last batches and seconds, without a dispatcher."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from symphony_dask.dispatcher.recent_activity import (
    KEPT,
    LEFT_BOUNDS,
    SIZE_BOUNDS,
    Facts,
    RecentActivity,
    Spent,
    quantile_ns,
    spent_by,
)
from symphony_dask.engine.request_kernels import LATENCY_BINS
from symphony_dask.engine.start_rules import START_RULES
from symphony_dask.trace import Outcome

MS = 1_000_000
NOTHING = Spent(0, 0, 0, 0, 0, 0)
FACTS = {0: Facts("m", 50 * MS, 2, 8)}


def add(
    recent: RecentActivity,
    size: int = 4,
    *,
    at: float,
    model: int = 0,
    waited: bool = False,
    end: float = 130,
    spent: Spent = NOTHING,
    rule: str = "window",
) -> None:
    """A batch of a window from 100 to 110 ms, dispatched ``at`` ms, that was planned for 20 ms and ran 25."""
    window = (100 * MS, 110 * MS)
    recent.batch(
        model, 7, size, window, int(at * MS), int(end * MS) - 25 * MS, int(end * MS), waited, 20 * MS, spent,
        START_RULES.index(rule),
    )  # fmt: skip


def counts(**outcomes: int) -> Any:
    row = np.zeros(len(Outcome), np.int64)
    for name, n in outcomes.items():
        row[Outcome[name.upper()]] = n
    return row


def latencies(**bins: int) -> Any:
    """``_20=5``: 5 requests in bin 20, which ends at 1 ms."""
    row = np.zeros(LATENCY_BINS + 1, np.int64)
    for name, n in bins.items():
        row[int(name[1:])] = n
    return row


def test_a_batch_leaves_because_its_window_opens_or_a_gpu_is_free_or_early() -> None:
    recent = RecentActivity()
    add(recent, at=100.5)
    add(recent, at=105)
    add(recent, at=100, waited=True)
    add(recent, at=99)
    recent.fold()
    assert recent.tallies[0].reasons.tolist() == [1, 2, 1]  # opening, gpu_free, early


def test_each_answered_request_spends_the_whole_times_of_its_batch() -> None:
    recent = RecentActivity()
    add(recent, 4, at=105, spent=Spent(4, 400, 100, 1, 20, 3))
    add(recent, 4, at=105, spent=Spent(3, 300, 90, 2, 20, 4))  # one of them failed
    add(recent, 1, at=105, spent=Spent(1, 50, 10, 5, 6, 7), end=140)
    recent.fold()
    assert spent_by(recent.tallies[0], 150 * MS) == {
        "answered": 8,
        "answer_ns": 750,
        "queue_ns": 200,
        "input_ns": 4 * 1 + 3 * 2 + 5,
        "infer_ns": 7 * 20 + 6,
        "output_ns": 4 * 3 + 3 * 4 + 7,
        "by_size": [[1, 1, 5, 6, 7], [4, 2, 3, 40, 7]],
        "idle_ns": 10 * MS,
    }


def test_batches_are_counted_by_size_and_by_what_was_left_of_their_window() -> None:
    recent = RecentActivity()
    for size, at in ((1, 99), (2, 100), (3, 105), (1000, 112)):
        add(recent, size, at=at)
    recent.fold()
    tally = recent.tallies[0]
    assert dict(zip((*SIZE_BOUNDS, "more"), tally.sizes.tolist(), strict=True)) == {
        1: 1, 2: 1, 4: 1, 8: 0, 16: 0, 32: 0, 64: 0, 128: 0, 256: 0, 512: 0, "more": 1,
    }  # fmt: skip
    left = dict(zip((*LEFT_BOUNDS, "more"), tally.left.tolist(), strict=True))
    assert {bound: n for bound, n in left.items() if n} == {0.0: 1, 0.5: 1, 1.0: 1, "more": 1}
    assert tally.requests == 1006
    assert tally.left_sum == pytest.approx(1.1 + 1.0 + 0.5 + 0.0)
    assert (tally.run_ns, tally.planned_ns) == (100 * MS, 80 * MS)


def test_batches_are_counted_by_the_rule_that_let_them_start() -> None:
    recent = RecentActivity()
    for rule in ("window", "packing", "packing"):
        add(recent, at=100, rule=rule)
    recent.fold()
    found = recent.tallies[0].rules.tolist()
    assert {rule: n for rule, n in zip(START_RULES, found, strict=True) if n} == {"window": 1, "packing": 2}


def test_batches_are_counted_once_however_often_they_are_folded() -> None:
    recent = RecentActivity()
    add(recent, at=100)
    recent.fold()
    add(recent, at=100, model=3)
    recent.fold()
    recent.fold()
    assert {model: tally.requests for model, tally in recent.tallies.items()} == {0: 4, 3: 4}


def test_more_batches_than_are_kept_are_all_counted_and_the_last_are_kept() -> None:
    recent = RecentActivity()
    for size in range(2 * KEPT + 10):
        add(recent, size, at=100)
    recent.fold()
    assert recent.tallies[0].sizes.sum() == 2 * KEPT + 10
    assert recent.last()["size"].tolist() == list(range(KEPT + 10, 2 * KEPT + 10))
    assert recent.last(2)["size"].tolist() == [2 * KEPT + 8, 2 * KEPT + 9]


def test_models_are_told_by_their_last_ten_seconds() -> None:
    recent = RecentActivity()
    add(recent, 4, at=100, rule="eager")
    add(recent, 8, at=105)
    add(recent, 8, at=105)
    add(recent, 100, at=105, end=130 - 20_000)  # long ago
    recent.sample(0.0, [(0, counts(ok=100), latencies(_40=100))])
    for second in range(1, 21):
        recent.sample(float(second), [(0, counts(ok=100, dropped=0), latencies(_40=100))])
    recent.sample(21.0, [(0, counts(ok=130, late=4, dropped=5, failed=1, cancelled=50), latencies(_40=100, _21=34))])
    (found,) = recent.models(131 * MS, FACTS)
    assert found == {
        "name": "m",
        "slo_ns": 50 * MS,
        "queued": 2,
        "target_batch": 8,
        "ended_hz": 4.0,
        "goodput_hz": 3.0,
        "attainment": 0.75,
        "p50_ns": 1_060_000,  # the middle of bin 21, from 1 to 1.12 ms
        "p99_ns": 1_118_800,
        "batches": 3,
        "mean_batch": pytest.approx(20 / 3),
        "window_left": pytest.approx(2 / 3),
        "reasons": {"opening": 1, "gpu_free": 2, "early": 0},
        "rules": {"window": 2, "eager": 1},
    }


def test_a_model_that_has_done_nothing_has_no_figures() -> None:
    recent = RecentActivity()
    recent.sample(0.0, [(0, counts(), latencies())])
    recent.sample(1.0, [(0, counts(), latencies())])
    (found,) = recent.models(MS, FACTS)
    assert (found["ended_hz"], found["goodput_hz"]) == (0.0, 0.0)
    assert [found[key] for key in ("attainment", "p50_ns", "p99_ns", "mean_batch", "window_left")] == [None] * 5


def test_history_tells_each_second_and_a_model_that_came_later_its_own() -> None:
    recent = RecentActivity()
    recent.sample(10.0, [(0, counts(), latencies())])
    recent.sample(11.0, [(0, counts(ok=30, late=10), latencies())])
    recent.sample(13.0, [(0, counts(ok=30, late=10), latencies()), (1, counts(ok=6), latencies())])
    seconds, goodput, attainment = recent.history(0)
    assert (seconds, goodput) == ([-2.0, 0.0], [30.0, 0.0])
    assert attainment[0] == 0.75
    assert np.isnan(attainment[1])
    assert recent.history(1) == ([0.0], [3.0], [1.0])


def test_what_is_counted_of_a_model_ends_with_it() -> None:
    recent = RecentActivity()
    add(recent, at=100)
    recent.fold()
    recent.sample(0.0, [(5, counts(), latencies())])
    assert recent.tallies == {}


@pytest.mark.parametrize(("q", "expected"), [(0.5, 1_000_000), (0.75, 1_060_000), (1.0, 1_120_000)])
def test_quantiles_lie_within_their_bin(q: float, expected: int) -> None:
    # Bin 20 is from 0.9 to 1 ms, bin 21 to 1.12 ms.
    assert quantile_ns(latencies(_20=50, _21=50), q) == expected


def test_quantiles_of_nothing_are_none_and_beyond_the_last_bound_are_that() -> None:
    assert quantile_ns(latencies(), 0.5) is None
    assert quantile_ns(latencies(**{f"_{LATENCY_BINS - 1}": 3}), 0.5) == 100_000 * MS
