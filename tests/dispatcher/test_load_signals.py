"""Rates, spreads and busy shares from counts of each second."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from symphony_dask.dispatcher.load_signals import GpuFacts, ModelFacts, Sampler, gpu_seconds_per_request
from symphony_dask.engine.latency_profile import LatencyProfile

#: l(b) = b + 5 ms.
TABLE = LatencyProfile(1, 5).latency_ns()
MS = 1_000_000


def facts(name: str = "m", queued: int = 0) -> ModelFacts:
    return ModelFacts(name, 50 * MS, queued, {"gpu": TABLE})


def sampled(arrived: list[float], **columns: list[float]) -> Sampler:
    """A sampler that saw these counts of one model and one GPU, one a second from 100 s on."""
    sampler = Sampler()
    none = [0.0] * len(arrived)
    rows = zip(arrived, *(columns.get(name, none) for name in ("bad", "ongoing", "busy_s")), strict=True)
    for i, (came, bad, ongoing, busy_s) in enumerate(rows):
        sampler.add(100.0 + i, ["m"], [came], [bad], [ongoing], ["g"], [busy_s])
    return sampler


def model(sampler: Sampler) -> dict:
    return sampler.reply({"m": facts()}, {})["models"][0]


def test_the_rate_over_a_window_is_what_came_in_it_over_its_length():
    # 10 a second for a minute, then 70 in the last second.
    counts = [10.0 * i for i in range(60)] + [590.0 + 70]
    found = model(sampled(counts))
    assert found["rate_hz"] == {"1": 70.0, "10": (9 * 10 + 70) / 10, "30": (29 * 10 + 70) / 30, "60": (590 + 70) / 60}


def test_the_spread_is_the_deviation_of_single_seconds():
    # Seconds with 0 and 20 requests in turn.
    counts = np.concatenate(([0], np.cumsum([0, 20] * 30))).tolist()
    found = model(sampled(counts))
    assert found["spread_hz"] == {"1": 0.0, "10": 10.0, "30": 10.0, "60": 10.0}


def test_a_short_history_is_taken_as_far_as_it_goes():
    assert model(sampled([0.0, 5.0, 10.0]))["rate_hz"] == {"1": 5.0, "10": 5.0, "30": 5.0, "60": 5.0}


def test_one_sample_tells_no_rate():
    found = model(sampled([17.0]))
    assert found["rate_hz"] == dict.fromkeys(("1", "10", "30", "60"), 0.0)
    assert found["bad_hz"] == 0.0


def test_bad_requests_are_a_rate_over_ten_seconds_and_ongoing_ones_a_mean():
    found = model(
        sampled([0.0] * 21, bad=[0.0] * 11 + [float(i) for i in range(1, 11)], ongoing=[3.0] * 16 + [5.0] * 5)
    )
    assert found["bad_hz"] == 1.0
    assert found["ongoing"] == {"1": 5.0, "10": 4.0, "30": 3.5, "60": 3.5}


def test_busy_is_the_share_of_ten_seconds():
    sampler = sampled([0.0] * 21, busy_s=[0.0] * 11 + [0.25 * i for i in range(1, 11)])
    gpu = GpuFacts(3, 2, "gpu", "tcp://w", True)
    found = sampler.reply({}, {"g": gpu})["gpus"]
    assert found == [{"gpu": 3, "rank": 2, "gpu_class": "gpu", "worker": "tcp://w", "draining": True, "busy": 0.25}]


def test_models_and_gpus_that_come_later_had_counted_nothing_before():
    sampler = sampled([0.0, 10.0, 20.0])
    sampler.add(103.0, ["m", "new"], [30.0, 4.0], [0, 0], [0, 0], ["g", "h"], [0.0, 0.5])
    found = sampler.reply({"new": facts("new"), "m": facts("m")}, {"h": GpuFacts(1, 1, "gpu", "w", False)})
    assert [(m["name"], m["rate_hz"]["1"]) for m in found["models"]] == [("new", 4.0), ("m", 10.0)]
    assert found["gpus"][0]["busy"] == pytest.approx(0.5 / 3)


def test_what_was_never_sampled_has_no_rate():
    found = sampled([0.0, 10.0]).reply({"other": facts("other", queued=2)}, {})["models"][0]
    assert (found["name"], found["rate_hz"]["10"], found["queued"]) == ("other", 0.0, 2)


def test_the_least_a_request_costs_is_that_of_the_largest_batch():
    assert model(sampled([0.0, 1.0]))["least_gpu_seconds"] == {"gpu": pytest.approx(50e-3 / 45, rel=1e-3)}


def test_a_request_costs_less_at_higher_rates_as_batches_grow():
    # SLO 50 ms. At a billion a second a batch takes all of it: b + 5 = 50, so 50 / 45 ms each.
    assert gpu_seconds_per_request(TABLE, 50 * MS, 1e9) == pytest.approx(50e-3 / 45)
    # At 100 req/s: b = 1 + 0.1 * (50 - b - 5), so b is 5, and 10 / 5 ms each.
    assert gpu_seconds_per_request(TABLE, 50 * MS, 100.0) == pytest.approx(10e-3 / 5)
    # At 200 req/s: 1.2 * b = 10, so b is 25 / 3 on average.
    assert gpu_seconds_per_request(TABLE, 50 * MS, 200.0) == pytest.approx((25 / 3 + 5) * 1e-3 / (25 / 3))
    # Alone: l(1).
    assert gpu_seconds_per_request(TABLE, 50 * MS, 0.0) == pytest.approx(6e-3)


@given(st.floats(0, 1e5), st.floats(1.0, 2.0), st.floats(0, 10), st.floats(0, 100), st.integers(1, 200))
def test_more_requests_never_take_less_gpu_time(rate_hz, factor, alpha_ms, beta_ms, slo_ms):
    table = LatencyProfile(alpha_ms, beta_ms).latency_ns()
    less, more = (r * gpu_seconds_per_request(table, slo_ms * MS, r) for r in (rate_hz, rate_hz * factor))
    assert more >= less * (1 - 1e-9)


def test_a_request_costs_what_it_takes_alone_where_no_batch_meets_the_slo_and_a_full_batch_where_every_one_does():
    assert gpu_seconds_per_request(TABLE, 5 * MS, 1000.0) == pytest.approx(6e-3)
    assert gpu_seconds_per_request(LatencyProfile(1, 5, 8).latency_ns(), 50 * MS, 1e9) == pytest.approx(13e-3 / 8)
