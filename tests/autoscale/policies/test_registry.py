"""load_proportional: when it scales out, when it gives back, and that it does neither beyond its bounds."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoscale.policies.demand import demand
from autoscale.policies.registry import POLICIES, Fleet, Memory, Settings, load_proportional
from tests.helpers.aws.policies import at, gpus, model

#: No headroom, so that figures can be worked out by hand.
PLAIN = Settings(headroom=0.0, attainment=0.9, scale_in_window_s=60, boot_s=20, last_delay_s=100)


def run(course, settings=PLAIN, fleet=None, tick_s=10.0, cost_s=0.01):
    """Targets of a course of rates, one a tick; the fleet is always as the target before."""
    memory, found, there = Memory(), [], Fleet(fleet or 0)
    for i, rate in enumerate(course):
        memory, target = load_proportional(settings, memory, at(i * tick_s, model(rate, cost_s, slo_ns=10**12)), there)
        found.append(target.gpus)
        there = Fleet(target.gpus)
    return found


def test_the_target_is_the_demand_rounded_up():
    # 250 req/s of 10 ms each are 2.5 GPUs.
    assert run([250.0]) == [3]


def test_it_scales_out_at_once_and_in_after_a_window_without_more():
    # 100 s at one GPU, 20 s at four, then one again: the four stay for 60 s after they were last wanted.
    found = run([90.0] * 10 + [390.0] * 2 + [90.0] * 10)
    assert found == [1] * 10 + [4] * 2 + [4] * 5 + [1] * 5


def test_it_gives_nothing_back_in_the_first_window_as_it_knows_nothing_of_what_was_before():
    assert run([100.0] * 8, fleet=5) == [5] * 6 + [1] * 2


def test_the_last_gpu_goes_after_a_delay_of_its_own_and_comes_back_with_the_first_request():
    # The last request is seen at 90 s; the window ends at 150 s, the last GPU goes at 190 s.
    found = run([100.0] * 10 + [0.0] * 12 + [1.0])
    assert found == [1] * 19 + [0] * 3 + [1]


def test_the_last_gpu_stays_where_it_shall():
    assert run([100.0] * 10 + [0.0] * 30, replace(PLAIN, scale_to_zero=False))[-1] == 1


def test_a_request_that_was_refused_for_want_of_a_gpu_asks_for_one():
    signals = at(0.0, model(0.1, 0.001, bad_hz=0.1))
    assert load_proportional(PLAIN, Memory(), signals, Fleet())[1].gpus == 1


def test_requests_that_end_badly_while_no_gpu_is_missing_count_as_demand():
    # 2.9 GPUs of work on 4 GPUs, and yet 120 req/s end badly: 1.2 GPUs more.
    signals = at(0.0, model(290.0, bad_hz=120.0, slo_ns=10**12))
    assert load_proportional(PLAIN, Memory(), signals, Fleet(ready=4))[1].gpus == 5
    # On 2 GPUs they are missed because GPUs are missing, which the rate says already.
    assert load_proportional(PLAIN, Memory(), signals, Fleet(ready=2, booting=1))[1].gpus == 3


def test_a_margin_is_learned_from_bursts_that_came_faster_than_gpus_boot():
    # Every 200 s the rate doubles for 20 s, as long as a GPU boots, and the window of 60 s has then forgotten it. That
    # leaves 0.8 GPUs out of 1 for a tenth of the time, 8 %; all of a day before counts as if it had left none.
    course = ([90.0] * 18 + [180.0] * 2) * 100
    careful = replace(PLAIN, attainment=0.99)
    found = run(course, careful)
    assert found[:18] == [1] * 18
    assert set(found[-200:]) == {2}


def test_a_margin_that_nothing_needed_is_forgotten():
    settings = replace(PLAIN, headroom=0.5, attainment=0.99)
    found = run([180.0] * 1000, settings)
    assert found[100] == 3  # 1.8 * 1.5
    assert found[-1] == 2


rates = st.lists(st.floats(0, 5000), min_size=1, max_size=30)


@settings(max_examples=60, deadline=None)
@given(rates, st.integers(0, 5), st.integers(0, 20), st.sampled_from(sorted(POLICIES)))
def test_every_policy_stays_within_its_bounds(course, minimum, more, name):
    chosen = Settings(minimum=minimum, maximum=minimum + more, fixed_gpus=7)
    memory, there = Memory(), Fleet(minimum)
    for i, rate in enumerate(course):
        busy = [min(1.0, rate * 0.01 / max(1, there.ready))] * there.ready
        signals = at(10.0 * i, model(rate, ongoing=rate * 0.05, bad_hz=rate / 10), gpus=gpus(*busy))
        memory, target = POLICIES[name](chosen, memory, signals, there)
        assert minimum <= target.gpus <= minimum + more
        assert target.why
        there = Fleet(target.gpus)


@settings(max_examples=60, deadline=None)
@given(rates)
def test_the_target_is_never_below_what_is_asked_for_now(course):
    memory, there = Memory(), Fleet()
    for i, rate in enumerate(course):
        signals = at(10.0 * i, model(rate, spread_hz=math.sqrt(rate)))
        memory, target = load_proportional(Settings(maximum=10**6), memory, signals, there)
        assert target.gpus >= math.ceil(demand(signals) - 1e-9)
        there = Fleet(target.gpus)


@settings(max_examples=60, deadline=None)
@given(rates, st.floats(1, 3))
def test_more_load_at_a_first_tick_never_gets_fewer_gpus(course, factor):
    for rate in course:
        less, more = (
            load_proportional(Settings(maximum=10**6), Memory(), at(0.0, model(r)), Fleet())[1].gpus
            for r in (rate, rate * factor)
        )
        assert more >= less


def test_the_same_memory_and_signals_give_the_same_target_and_change_nothing():
    memory, _ = load_proportional(PLAIN, Memory(), at(0.0, model(100.0)), Fleet(1))
    before = replace(memory)
    first = load_proportional(PLAIN, memory, at(10.0, model(300.0)), Fleet(1))
    assert load_proportional(PLAIN, memory, at(10.0, model(300.0)), Fleet(1)) == first
    assert memory == before


def test_why_tells_the_figures():
    _, target = load_proportional(PLAIN, Memory(), at(0.0, model(250.0, slo_ns=10**12)), Fleet())
    assert target.why == "demand 2.50, growth 1.00, with headroom 2.50, margin 1.00"


@pytest.mark.parametrize("name", sorted(POLICIES))
def test_no_model_and_no_gpu_is_no_error(name):
    assert POLICIES[name](Settings(fixed_gpus=0), Memory(), at(0.0), Fleet())[1].gpus == 0
