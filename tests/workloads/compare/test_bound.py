from __future__ import annotations

from dataclasses import replace

import pytest

from symphony_dask.engine.latency_profile import LatencyProfile
from symphony_dask.errors import BadInput
from symphony_dask.units import NS_PER_MS
from workloads.compare.bound import BoundModel, goodput_bound, ideal_gpus

L1 = LatencyProfile(1.082, 5.204)
L2 = LatencyProfile(1.053, 5.072)
INCEPTION = LatencyProfile(5.090, 18.368)


def alike(profile: LatencyProfile, slo_ms: int, models: int) -> list[BoundModel]:
    return [BoundModel(profile, slo_ms * NS_PER_MS, 1 / models)] * models


@pytest.mark.parametrize(
    ("profile", "slo_ms", "models", "gpus", "bound_hz"),
    [
        (L1, 100, 1, 8, 6_961),
        (L2, 25, 1, 8, 5_875),
        (L2, 50, 20, 16, 11_840),
        (L2, 25, 20, 16, 8_835),
        (L2, 50, 100, 32, 18_891),
        (L2, 25, 1, 4, 2_849),
        (INCEPTION, 70, 1, 4, 535),
        (L2, 100, 1, 4, 3_559),
    ],
)
def test_the_bound_of_models_alike(profile: LatencyProfile, slo_ms: int, models: int, gpus: int, bound_hz: int) -> None:
    assert goodput_bound(alike(profile, slo_ms, models), gpus).bound_hz == pytest.approx(bound_hz, abs=1)


@pytest.mark.parametrize(
    ("profile", "slo_ms", "batch", "bound_hz"),
    [(L2, 25, 14, 2_826), (INCEPTION, 70, 7, 518), (L2, 100, 71, 3_557)],
)
def test_the_bound_with_whole_batches_on_four_gpus(
    profile: LatencyProfile, slo_ms: int, batch: int, bound_hz: int
) -> None:
    result = goodput_bound(alike(profile, slo_ms, 1), 4, whole=True)
    assert result.bound_hz == pytest.approx(bound_hz, abs=1)
    assert result.batch_sizes == (batch,)


def test_at_the_bound_the_first_of_a_batch_finishes_at_its_deadline_and_the_gpus_are_full() -> None:
    result = goodput_bound([BoundModel(L2, 25 * NS_PER_MS, 0.75), BoundModel(INCEPTION, 70 * NS_PER_MS, 0.25)], 8)
    work = 0.0
    for profile, slo_ms, share, b in zip((L2, INCEPTION), (25, 70), (0.75, 0.25), result.batch_sizes, strict=True):
        rate_per_ms = share * result.bound_hz / 1000
        latency_ms = profile.alpha_ms * b + profile.beta_ms
        assert (b - 1) / rate_per_ms + latency_ms == pytest.approx(slo_ms)
        work += rate_per_ms * latency_ms / b
    assert work == pytest.approx(8)


def test_a_model_without_a_share_changes_nothing_even_if_it_cannot_meet_its_slo() -> None:
    models = [*alike(L2, 25, 1), BoundModel(INCEPTION, 1 * NS_PER_MS, 0.0)]
    result = goodput_bound(models, 8)
    assert result.bound_hz == goodput_bound(models[:1], 8).bound_hz
    assert result.batch_sizes[1] == 0


def test_batches_stay_within_max_batch() -> None:
    # l(8) = 8*1.082 + 5.204 = 13.86 ms, and 8 GPUs * 8 / 13.86 ms = 4,617.6 Hz.
    result = goodput_bound(alike(LatencyProfile(1.082, 5.204, max_batch=8), 100, 1), 8)
    assert result.bound_hz == pytest.approx(4_617.6, abs=0.1)
    assert result.batch_sizes == (8.0,)


@pytest.mark.parametrize("whole", [False, True])
def test_a_measured_table_stops_at_the_batch_size_that_uses_the_gpu_best(whole: bool) -> None:
    # 1 in 10 ms, 4 in 12 ms, 8 in 40 ms: batches of 4 give 333 Hz, of 8 only 200 Hz.
    profile = LatencyProfile(0, 0, max_batch=8, table=((1, 10.0), (4, 12.0), (8, 40.0)))
    result = goodput_bound(alike(profile, 100, 1), 1, whole=whole)
    assert result.bound_hz == pytest.approx(333.33, abs=0.01)
    assert result.batch_sizes == (4.0,)


@pytest.mark.parametrize("whole", [False, True])
def test_an_slo_of_just_one_request_allows_batches_of_one(whole: bool) -> None:
    result = goodput_bound(alike(LatencyProfile(1, 4), 5, 1), 2, whole=whole)
    assert result.bound_hz == pytest.approx(400)
    assert result.batch_sizes == (1.0,)


def test_the_bound_is_zero_when_one_request_alone_is_too_slow() -> None:
    result = goodput_bound(alike(L2, 6, 2), 100)
    assert result.bound_hz == 0
    assert result.batch_sizes == (0, 0)


def test_mixes_that_have_no_bound_are_refused() -> None:
    with pytest.raises(BadInput, match="gpus is 0"):
        goodput_bound(alike(L2, 25, 1), 0)
    with pytest.raises(BadInput, match="shares"):
        goodput_bound([], 1)
    with pytest.raises(BadInput, match=r"shares sum to 0\.5"):
        goodput_bound([BoundModel(L2, 25 * NS_PER_MS, 0.5)], 1)
    with pytest.raises(BadInput, match="slo_ns is 0"):
        goodput_bound(alike(L2, 0, 1), 1)
    with pytest.raises(BadInput, match="0 ms"):
        goodput_bound(alike(LatencyProfile(0, 0), 25, 1), 1)


class TestClasses:
    HALF = LatencyProfile(2.106, 10.144)
    MIXED = BoundModel(L2, 50 * NS_PER_MS, 1.0, {"slow": HALF})

    def test_the_same_gpus_under_two_names_have_the_same_bound(self) -> None:
        models = alike(L2, 50, 20)
        both = goodput_bound(models, [("a", 6), ("b", 10)]).bound_hz
        assert both == pytest.approx(goodput_bound(models, 16).bound_hz, rel=1e-6)

    def test_gpus_of_one_class_have_the_profile_of_that_class(self) -> None:
        slow = goodput_bound([self.MIXED], [("slow", 8)]).bound_hz
        assert slow == pytest.approx(goodput_bound(alike(self.HALF, 50, 1), 8).bound_hz)

    def test_without_slo_pressure_each_class_adds_its_throughput(self) -> None:
        # Batches of at most 8 in 10 ms on one class and 20 ms on the other: 4 * 800 + 8 * 400 = 6,400 Hz.
        fast = LatencyProfile(0, 10, max_batch=8)
        model = BoundModel(fast, 1000 * NS_PER_MS, 1.0, {"slow": LatencyProfile(0, 20, max_batch=8)})
        assert goodput_bound([model], [("fast", 4), ("slow", 8)]).bound_hz == pytest.approx(6_400, rel=1e-6)

    def test_each_model_goes_where_it_costs_the_other_least(self) -> None:
        # One request a batch. Model 0 takes 10 ms on "a", 40 on "b"; model 1 takes 40 on "a", 10 on "b". Apart they
        # have 100 Hz each on one GPU a class; equal shares make 200 in all.
        a, b = LatencyProfile(0, 10, max_batch=1), LatencyProfile(0, 40, max_batch=1)
        models = [BoundModel(a, 10**9, 0.5, {"b": b}), BoundModel(b, 10**9, 0.5, {"b": a})]
        assert goodput_bound(models, [("a", 1), ("b", 1)]).bound_hz == pytest.approx(200, rel=1e-6)
        # At shares of 3/4 and 1/4 "b" serves R/4 in R/400 of its time; the rest, 1 - R/400, serves (1 - R/400) * 25 of
        # model 0, and "a" 100 of it: 3R/4 = 125 - R/16, R = 153.85.
        models = [replace(model, share=share) for model, share in zip(models, (0.75, 0.25), strict=True)]
        assert goodput_bound(models, [("a", 1), ("b", 1)]).bound_hz == pytest.approx(153.846, rel=1e-5)

    def test_a_class_that_is_too_slow_for_a_model_does_not_serve_it(self) -> None:
        slow = LatencyProfile(10, 60)
        model = BoundModel(L2, 50 * NS_PER_MS, 1.0, {"slow": slow})
        result = goodput_bound([model], [("slow", 4), ("fast", 8)])
        assert result.bound_hz == pytest.approx(goodput_bound([model], 8).bound_hz, rel=1e-6)
        assert result.batch_sizes == (0,)

    def test_whole_batches_are_for_one_class(self) -> None:
        with pytest.raises(BadInput, match="whole batches on GPU classes fast, slow"):
            goodput_bound([self.MIXED], [("fast", 1), ("slow", 1)], whole=True)


def test_the_ideal_gpus_of_a_rate_are_those_whose_bound_it_is() -> None:
    assert ideal_gpus(alike(L2, 25, 1), 5_875.05) == pytest.approx(8, abs=1e-3)
    assert ideal_gpus(alike(L2, 50, 20), 11_840) == pytest.approx(16, abs=1e-2)
    # At 1 request/s, batches of 1: 6.125 ms of GPU time a second.
    assert ideal_gpus(alike(L2, 25, 1), 1.0) == pytest.approx(0.006125, rel=0.02)
    assert ideal_gpus(alike(L2, 6, 1), 1.0) == float("inf")
    with pytest.raises(BadInput, match="rate_hz is 0"):
        ideal_gpus(alike(L2, 25, 1), 0)
