"""What a trace asks of any fleet, known only afterwards."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoscale.policies.decision import Settings
from autoscale.policies.registry import POLICIES
from symphony_dask.engine.latency_profile import LatencyProfile
from symphony_dask.trace import Outcome
from workloads.policy_trials.assess import asked, best, cheapest_of, least_changes, variants
from workloads.policy_trials.trial import Trial
from workloads.simulation.result import SimModel
from workloads.simulation.workload import Workload

MS = 1_000_000
#: l(b) = b + 5 ms, SLO 50 ms: 2 ms a request at 100 req/s (b = 5), 1.6 at 200 (b = 25 / 3).
MODEL = SimModel("m", LatencyProfile(1, 5), 50 * MS)


def work(*rates_hz: int) -> Workload:
    """Ten seconds of each rate, evenly spaced."""
    arrivals = np.concatenate([np.arange(10 * r) * 10**9 // r + i * 10**10 for i, r in enumerate(rates_hz)])
    n = len(arrivals)
    return Workload([MODEL], arrivals.astype(np.int64), np.zeros(n, np.int32), np.full(n, 50 * MS))


def test_demand_is_told_for_every_ten_seconds_but_the_last_which_is_cut_off():
    assert asked(work(100, 100, 200, 100)).demand == pytest.approx([0.2, 0.2, 0.32])


def test_levels_are_whole_gpus_of_each_minute():
    found = asked(work(*[100] * 6, *[1000] * 6, 1))
    # 1000 req/s: b = 1 + 50 - b - 5, so b is 23, and 28/23 ms each.
    assert found.levels.tolist() == [1, 2]
    assert found.first_gpus == 1


def test_the_peak_fleet_has_headroom_for_the_busiest_ten_seconds():
    found = asked(work(100, 1000, 100, 100))
    assert found.peak_gpus == 2  # 1.22 GPUs of work and its spread


def test_least_changes_of_a_day_that_rises_and_falls_once():
    assert least_changes(np.array([1, 2, 3, 3, 2, 1]), 0) == (2, 2)


def test_gpus_that_are_there_from_the_start_or_to_the_end_are_not_changed():
    assert least_changes(np.array([2, 2, 1, 1]), 0) == (0, 1)
    assert least_changes(np.array([1, 1, 2, 2]), 0) == (1, 0)


def test_a_gap_as_short_as_the_scale_in_window_is_bridged():
    assert least_changes(np.array([1, 2, 1, 1, 2, 1]), 2) == (1, 1)
    assert least_changes(np.array([1, 2, 1, 1, 2, 1]), 1) == (2, 2)


@given(st.lists(st.integers(0, 6), min_size=1, max_size=40), st.integers(0, 5))
def test_a_longer_window_never_needs_more_changes(levels, gap):
    shorter, longer = (least_changes(np.array(levels), g) for g in (gap, gap + 1))
    assert longer <= shorter
    assert longer[0] <= shorter[0]
    assert longer[1] <= shorter[1]


@given(st.lists(st.integers(0, 6), min_size=1, max_size=40))
def test_without_a_window_changes_are_the_rises_and_falls(levels):
    steps = np.diff(levels)
    assert least_changes(np.array(levels), 0) == (steps[steps > 0].sum(), -steps[steps < 0].sum())


def trial(ok: int, gpu_hours: float) -> Trial:
    """Of 1,000 requests."""
    outcomes = np.zeros(len(Outcome), np.int64)
    outcomes[Outcome.OK], outcomes[Outcome.DROPPED] = ok, 1000 - ok
    return Trial("p", 60.0, outcomes, gpu_hours, 0, 0, 0, 0, 1.0, np.empty((0, 6)))


FOUND = [("a", trial(999, 9.0)), ("b", trial(992, 6.0)), ("c", trial(991, 7.0)), ("d", trial(980, 5.0))]


def test_the_best_takes_the_fewest_gpu_hours_of_those_that_attain_enough():
    assert best(FOUND, 0.99)[0] == "b"


def test_where_none_attains_enough_the_best_attains_most():
    assert best(FOUND[1:], 0.995)[0] == "b"
    assert cheapest_of(FOUND[1:], 0.995) is None


@pytest.mark.parametrize("name", sorted(POLICIES))
def test_a_policy_is_tried_with_its_defaults_among_others_that_are_told_apart(name):
    settings = Settings()
    tried = variants(name, settings, work(100), 1)
    assert len({text for text, _ in tried}) == len(tried)
    assert settings in [chosen for _, chosen in tried]
