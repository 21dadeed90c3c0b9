"""A day's arrivals."""

from __future__ import annotations

import numpy as np
import pytest

from symphony_dask.errors import BadInput
from symphony_dask.trace.validate import problems
from workloads.simulation.workload import read_workload
from workloads.traces.diurnal import diurnal, diurnal_rates

CALM = {"bursts_per_day": 0.0, "wobble": 0.0}


def test_without_bursts_and_noise_a_day_goes_from_the_trough_to_the_peak_and_back():
    rates = diurnal_rates(86_400, 1000, trough=0.1, **CALM)
    assert rates[0] == pytest.approx(100)
    assert rates[43_200] == pytest.approx(1000)
    # At six a quarter of the way through the cosine: 0.5 ** 1.5 of the 900 between.
    assert rates[21_600] == pytest.approx(100 + 900 * 0.5**1.5)


def test_bursts_multiply_the_rate_by_the_mean_that_is_asked_for():
    calm = diurnal_rates(86_400, 1000, **CALM)
    ratios = [
        (diurnal_rates(86_400, 1000, bursts_per_day=1.0, burst=1.5, wobble=0.0, seed=seed) / calm).max()
        for seed in range(100)
    ]
    burst = [ratio for ratio in ratios if ratio > 1]
    # One burst a day on average: none on a day in e; on the others there are 1.58, and the highest counts.
    assert 0.5 < len(burst) / 100 < 0.75
    assert 1.5 < np.mean(burst) < 1.95


def test_the_same_seed_gives_the_same_rates_and_another_one_others():
    one, same, other = (diurnal_rates(3600, 100, seed=seed) for seed in (5, 5, 6))
    assert (one == same).all()
    assert not (one == other).all()


def test_a_trace_has_the_rates_and_the_format_of_any_trace(tmp_path):
    found = diurnal(tmp_path / "day", seconds=7200, peak_hz=2000, models=2, slo_ns=10**7, seed=3, **CALM)
    rates = diurnal_rates(7200, 2000, seed=3, **CALM)
    assert found["requests"] == pytest.approx(rates.sum(), rel=0.01)
    assert problems(tmp_path / "day") == []
    work = read_workload(tmp_path / "day")
    assert [model.name for model in work.models] == ["model-0", "model-1"]
    assert (np.diff(work.arrivals_ns) >= 0).all()
    late, early = (np.bincount(work.arrivals_ns // 10**9, minlength=7200)[part].mean() for part in np.s_[6600:, :600])
    assert late == pytest.approx(rates[6600:].mean(), rel=0.05)
    assert early == pytest.approx(rates[:600].mean(), rel=0.05)


WRONG = [{"peak_hz": 0.0}, {"seconds": 0}, {"trough": 2.0}, {"burst": 0.5}, {"bursts_per_day": -1.0}, {"wobble": 1.0}]


@pytest.mark.parametrize("wrong", WRONG)
def test_what_makes_no_day_is_refused(wrong):
    with pytest.raises(BadInput):
        diurnal_rates(**{"seconds": 10, "peak_hz": 1.0, **wrong})
