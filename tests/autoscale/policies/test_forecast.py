"""Ways to continue a course of demand, what each would have cost, and what is learned from shortfalls."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoscale.policies.forecast import (
    DAY_STEPS,
    MARGINS,
    METHOD,
    METHODS,
    MOST_STEPS,
    Course,
    Shortfall,
    backtest,
    growth,
)
from workloads.traces.diurnal import diurnal_rates


def test_methods_on_a_course_that_rises_by_one_a_step():
    past = np.arange(1.0, 41.0)
    assert METHODS["last"](past, 3, 1440) == 40
    assert METHODS["moving_max"](past, 3, 1440) == 40
    assert METHODS["trend"](past, 3, 1440) == pytest.approx(43)
    assert METHODS["seasonal"](past, 3, 1440) == 40  # no day is known


def test_the_seasonal_method_grows_as_the_season_before_did():
    # 100 steps a season; from its step 50 on demand was twice as much. This season is at three times the last.
    season = np.repeat([1.0, 2.0], 50)
    past = np.concatenate((season, 3 * season[:45]))
    assert METHODS["seasonal"](past, 12, 100) == pytest.approx(6.0)
    assert METHODS["seasonal"](past, 1, 100) == pytest.approx(3.0 * (1 + 1 / 11) / 1)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_continues_any_course_with_a_finite_amount(name):
    for past in (np.array([0.0]), np.zeros(200), np.ones(3), np.arange(300.0) % 7):
        assert 0 <= METHODS[name](past, 3, 100) < math.inf


def test_a_backtest_costs_one_where_demand_does_not_change_and_nothing_may_be_missed():
    found = backtest(np.full(300, 5.0), ahead=3, miss=0.0)
    assert found == dict.fromkeys(METHODS, pytest.approx(1.0))


def test_a_backtest_tells_what_it_takes_to_cover_what_was_not_foreseen():
    # Demand doubles once, in step 100 of 199, and one step ahead "last" does not see it. With a factor of 2 nothing is
    # missed, and then twice as much as before is kept.
    demand = np.concatenate((np.ones(100), np.full(100, 2.0)))
    found = backtest(demand, ahead=1, window=1, miss=0.0, skip=10, methods={"last": METHODS["last"]})
    made, real = demand[10:199].sum(), demand[11:200].sum()
    assert found["last"] == pytest.approx(2 * made / real)
    # When that one step may be missed, last is as good as knowing.
    allowed = backtest(demand, ahead=1, window=1, miss=0.005, skip=10, methods={"last": METHODS["last"]})
    assert 0.99 * made / real < allowed["last"] <= made / real


def test_the_method_in_use_costs_hardly_more_than_the_best_on_calm_days_and_on_bursty_ones():
    rng = np.random.default_rng(0)
    at = np.arange(3 * DAY_STEPS)
    calm = (1.1 - np.cos(2 * np.pi * at / DAY_STEPS)) * (1 + 0.02 * rng.normal(size=len(at)))
    bursty = diurnal_rates(3 * 86_400, 1000, seed=1).reshape(-1, 60).mean(1)
    for demand in (calm, bursty):
        found = backtest(demand, ahead=2, skip=DAY_STEPS + 10)
        assert found[METHOD] < 1.015 * min(found.values())


@given(st.lists(st.floats(0, 100), min_size=1, max_size=50), st.integers(1, 5))
def test_growth_is_at_least_one(past, ahead):
    assert growth(np.array(past), ahead) >= 1


def test_a_course_keeps_the_mean_of_each_minute():
    course = Course()
    for i in range(19):
        course = course.follow(10.0 * i, float(i), 120)
    # Ticks 0 to 5 are the first minute, 6 to 11 the second, 12 to 17 the third.
    assert course.demand == (2.5, 8.5, 14.5)


def test_a_course_forgets_what_is_older_than_two_days():
    course = Course(tuple(float(i) for i in range(MOST_STEPS)), since_s=0.0, sum_=7.0, ticks=1)
    course = course.follow(60.0, 1.0, 120)
    assert (course.demand[0], course.demand[-1], len(course.demand)) == (1.0, 7.0, MOST_STEPS)


def test_the_margin_begins_with_the_setting_and_falls_when_two_hours_have_shown_that_less_is_enough():
    shortfall = Shortfall()
    assert shortfall.margin(1.15, 0.01) == 1.15
    for _ in range(119):
        shortfall = shortfall.add(60, 2.0, 2.0, 2.0)
    assert shortfall.margin(1.15, 0.01) == 1.15
    for _ in range(3):
        shortfall = shortfall.add(60, 2.0, 2.0, 2.0)
    assert shortfall.margin(1.15, 0.01) == 1.0


def test_the_margin_is_the_least_that_keeps_shortfalls_within_what_may_be_missed():
    # One minute in ten 14 GPUs are needed where 10 were forecast, for so long that the day before hardly counts.
    shortfall = Shortfall(work=10.4 * 1e9, seconds=1e9)
    for i in range(20_000):
        shortfall = shortfall.add(60, 14.0 if i % 10 == 0 else 10.0, 10.0, 10.0)
    # With 13 GPUs a tenth of a GPU is missing on average, of 10.4: 0.96 %, and less with what went before.
    allowed = shortfall.short[MARGINS.index(1.25)] / shortfall.work
    assert shortfall.margin(1.0, 1.01 * allowed) == 1.25  # ceil(12.5) = 13
    assert shortfall.margin(1.0, 0.9 * allowed) == 1.35  # ceil(13.5) = 14


def test_one_burst_on_a_first_day_is_forgiven_up_to_what_two_days_may_miss():
    # A tenth of a GPU-hour is missing, in an hour of ten: as a part of 25 hours of work it is 0.04 %.
    shortfall = Shortfall().add(3600, 10.1, 10.0, 10.0)
    assert shortfall.margin(1.0, 0.0005) == 1.0
    assert shortfall.margin(1.0, 0.0003) == 1.05


def test_a_shortfall_fades():
    shortfall = Shortfall().add(600, 20.0, 10.0, 10.0)
    later = shortfall.add(2 * 86_400, 10.0, 10.0, 10.0)
    assert later.short[0] == pytest.approx(shortfall.short[0] / 2)


def test_the_level_is_the_median_of_the_last_hour():
    course = Course()
    for minute in range(62):
        amount = 9.0 if minute % 3 == 0 else 2.0
        for tick in range(6):
            course = course.follow(60.0 * minute + 10 * tick, amount, 120)
    assert course.level == 2.0
