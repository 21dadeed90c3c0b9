"""Demand, its spread, and the GPUs that leave a given share of it without one."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoscale.policies.demand import bad_demand, demand, gpu_seconds, spread, staffed
from tests.helpers.aws.policies import at, gpus, model


def test_demand_is_the_sum_of_rates_times_gpu_seconds_per_request():
    signals = at(0.0, model(200.0, 0.01), model(50.0, 0.02))
    assert demand(signals) == pytest.approx(200 * 0.01 + 50 * 0.02)


def test_demand_rises_with_the_short_window_and_falls_with_the_long_one():
    rising = model(100.0, 0.01)
    rising = type(rising)(**{**vars(rising), "rate_hz": {10.0: 300.0, 60.0: 100.0}})
    falling = type(rising)(**{**vars(rising), "rate_hz": {10.0: 100.0, 60.0: 300.0}})
    assert demand(at(0.0, rising)) == demand(at(0.0, falling)) == pytest.approx(3.0)


def test_a_request_costs_the_mean_over_the_gpus_that_are_there_and_the_most_where_none_is():
    found = model(1.0)
    found = type(found)(**{**vars(found), "gpu_seconds_per_request": {"slow": 0.03, "fast": 0.01}})
    fleet = tuple(
        type(gpu)(**{**vars(gpu), "gpu_class": name})
        for gpu, name in zip(gpus(0, 0, 0, 0), ("slow", "fast", "fast", "fast"), strict=True)
    )
    assert gpu_seconds(found, at(0.0, gpus=fleet)) == pytest.approx(0.015)
    assert gpu_seconds(found, at(0.0)) == 0.03


def test_bad_demand_is_the_bad_rate_times_gpu_seconds_per_request():
    assert bad_demand(at(0.0, model(100.0, 0.01, bad_hz=20.0))) == pytest.approx(0.2)


def test_the_spread_of_a_poisson_process_is_that_of_its_counts_within_half_an_slo():
    # 100 req/s vary by 10 req/s from second to second; in 25 ms there come 2.5, give or take sqrt(2.5), so 63.2 req/s.
    signals = at(0.0, model(100.0, 0.01, spread_hz=10.0))
    assert spread(signals) == pytest.approx(math.sqrt(100 / 0.025) * 0.01)


def test_a_burstier_process_has_a_spread_that_grows_with_its_dispersion():
    # Seconds vary by 20 req/s: four times Poisson's variance.
    calm, bursty = at(0.0, model(100.0, spread_hz=10.0)), at(0.0, model(100.0, spread_hz=20.0))
    assert spread(bursty) == pytest.approx(2 * spread(calm))


def test_variances_of_models_add_so_headroom_pools():
    one, four = at(0.0, model(100.0)), at(0.0, *(model(100.0, name=str(i)) for i in range(4)))
    assert spread(four) == pytest.approx(2 * spread(one))


def test_staffing_by_the_normal_loss_function_of_a_table():
    # L(1) = 0.08332: with a deviation of 1 and a mean of 10, 10 + 1 GPUs leave 0.08332 of 10, a share of 0.008332.
    assert staffed(10.0, 1.0, 0.008332) == pytest.approx(11.0, abs=1e-3)
    # L(2) = 0.008491.
    assert staffed(10.0, 1.0, 0.0008491) == pytest.approx(12.0, abs=1e-2)


def test_no_headroom_where_demand_does_not_vary_or_where_a_miss_is_allowed_that_it_never_reaches():
    assert staffed(3.0, 0.0, 0.001) == 3.0
    assert staffed(10.0, 0.1, 0.01) == 10.0
    assert staffed(0.0, 1.0, 0.01) == 0.0


@given(st.floats(0, 1000), st.floats(0, 100), st.floats(1e-5, 0.1))
def test_staffing_is_never_below_demand(amount, deviation, miss):
    assert staffed(amount, deviation, miss) >= amount


@given(st.floats(0.1, 1000), st.floats(0.01, 50), st.floats(0.01, 50), st.floats(1e-4, 0.05))
def test_more_spread_never_needs_fewer_gpus(amount, deviation, more, miss):
    assert staffed(amount, deviation + more, miss) >= staffed(amount, deviation, miss) - 1e-6 * amount
