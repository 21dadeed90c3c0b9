from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from symphony_dask.cli.main import symphony
from symphony_dask.engine.latency_profile import LatencyProfile
from symphony_dask.errors import BadInput
from symphony_dask.trace import Outcome
from symphony_dask.units import NS_PER_MS, NS_PER_S
from workloads.baselines.nexus import CannotPlace
from workloads.compare.goodput import Found, Goodput, Mix, goodput, mix_arrivals, search
from workloads.simulation.result import SimModel, Simulated

L2 = LatencyProfile(1.053, 5.072)


def alike(slo_ms: int, models: int) -> list[SimModel]:
    return [SimModel(f"m{i}", L2, slo_ms * NS_PER_MS) for i in range(models)]


def serves(limit_hz: float, seconds: float) -> Any:
    """A scheduler that has all requests in time up to a rate, and none beyond it."""

    def simulated(models: Sequence[SimModel], gpus: int, arrivals_ns: Any, choices: Any) -> Simulated:
        n = len(arrivals_ns)
        outcome = np.full(n, Outcome.OK if n <= limit_hz * seconds else Outcome.LATE, np.int8)
        one, none = np.array([2], np.int32), np.zeros(1, np.int64)
        return Simulated(outcome, arrivals_ns, one, one, one, none, none + 1, gpus, NS_PER_S)

    return simulated


def test_a_mix_has_each_models_share_of_the_rate_in_order_of_time() -> None:
    arrivals_ns, choices = mix_arrivals(3, 10_000, 10.0, shares=[0.5, 0.3, 0.2])
    assert np.bincount(choices) / 100_000 == pytest.approx([0.5, 0.3, 0.2], abs=0.01)
    assert (np.diff(arrivals_ns) >= 0).all()
    assert arrivals_ns[0] >= 0
    assert arrivals_ns[-1] < 10 * NS_PER_S


def test_each_model_of_a_mix_is_as_bursty_as_its_shape_says() -> None:
    arrivals_ns, choices = mix_arrivals(10, 20_000, 20.0, shape=0.2)
    for m in range(10):
        gaps = np.diff(arrivals_ns[choices == m])
        assert gaps.var() / gaps.mean() ** 2 == pytest.approx(5, rel=0.1)


def test_bursty_models_do_not_all_begin_with_a_burst() -> None:
    arrivals_ns, _ = mix_arrivals(1000, 10_000, 2.0, shape=0.1)
    first = (arrivals_ns < NS_PER_S // 10).sum()
    assert first == pytest.approx(1_000, abs=350)  # of variance 10,000 at most; 3,400 if all began with an arrival


def test_a_rate_scales_the_same_gaps_and_a_seed_draws_others() -> None:
    slow, which = mix_arrivals(4, 1_000, 10.0, shape=0.5, seed=7)
    fast, same = mix_arrivals(4, 2_000, 10.0, shape=0.5, seed=7)
    assert (which == same[: len(which)]).all()
    assert np.abs(slow - 2 * fast[: len(slow)]).max() <= 2
    assert len(mix_arrivals(4, 1_000, 10.0, shape=0.5, seed=8)[0]) != len(slow)


def test_the_search_finds_the_rate_beyond_which_requests_are_late() -> None:
    found = goodput(alike(25, 1), 8, policy=serves(4_321, 5.0), seconds=5.0)
    assert found.goodput_hz == pytest.approx(4_321, rel=1e-3)
    assert found.low_hz <= found.goodput_hz <= found.high_hz
    assert found.high_hz - found.low_hz < 20
    assert found.bound_hz == pytest.approx(5_875, abs=1)
    assert found.mean_batch == 2


def test_the_search_goes_on_beyond_the_bound() -> None:
    assert goodput(alike(25, 1), 8, policy=serves(7_000, 2.0), seconds=2.0).goodput_hz == pytest.approx(7_000, rel=2e-3)


def test_nothing_is_served_where_one_request_takes_longer_than_its_slo() -> None:
    assert goodput(alike(6, 1), 8) == Goodput(0.0, 0.0, 0.0, 0.0, 0.0)


def test_a_scheduler_that_meets_no_rate_has_goodput_zero() -> None:
    found = goodput(alike(25, 1), 8, policy=serves(0, 1.0), seconds=1.0)
    assert (found.goodput_hz, found.low_hz, found.high_hz) == (0.0, 0.0, 0.0)


def test_the_papers_rule_comes_within_the_bound_and_beats_eager_on_one_model() -> None:
    deferred = goodput(alike(25, 1), 8, policy="deferred", seconds=5.0)
    eager = goodput(alike(25, 1), 8, policy="eager", seconds=5.0)
    assert 5_200 < deferred.goodput_hz < deferred.high_hz < deferred.bound_hz
    assert 3_600 < eager.goodput_hz < 4_100
    assert deferred.mean_batch > 15 > 6 > eager.mean_batch
    assert deferred == goodput(alike(25, 1), 8, policy="deferred", seconds=5.0)
    assert goodput(alike(25, 1), 8, seconds=5.0).goodput_hz > deferred.goodput_hz


def test_one_seed_has_no_spread_to_tell() -> None:
    found = goodput(alike(25, 1), 8, policy=serves(4_000, 1.0), seconds=1.0, seeds=1)
    assert found.low_hz == found.goodput_hz == found.high_hz


def test_arguments_that_cannot_be_used_are_named() -> None:
    with pytest.raises(BadInput, match="seeds=0"):
        goodput(alike(25, 1), 8, seeds=0)
    with pytest.raises(BadInput, match="2 shares for 1 models"):
        goodput(alike(25, 1), 8, shares=[0.5, 0.5])
    with pytest.raises(BadInput, match="shape is 0"):
        goodput(alike(25, 1), 8, shape=0)
    with pytest.raises(BadInput, match="there are no models"):
        goodput([], 8)
    with pytest.raises(BadInput, match="policy 'fifo' is unknown"):
        goodput(alike(25, 1), 8, policy="fifo")


def test_the_command_prints_goodput_with_its_interval_as_json() -> None:
    options = "--profile 1.053,5.072 --slo 25ms --models 1 --gpus 8 --policy deferred --seconds 2 --seeds 2 --json"
    result = CliRunner().invoke(symphony, ["goodput", *options.split()])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert list(found) == ["goodput_hz", "low_hz", "high_hz", "bound_hz", "mean_batch"]
    assert 5_000 < found["goodput_hz"] < found["bound_hz"]


def test_the_command_searches_baselines_too() -> None:
    options = "--profile 1.053,5.072 --slo 25ms --gpus 8 --policy nexus --seconds 2 --seeds 2 --json"
    result = CliRunner().invoke(symphony, ["goodput", *options.split()])
    assert result.exit_code == 0, result.output
    assert 0 < json.loads(result.stdout)["goodput_hz"] < 5_875


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--prefer", "speed"), "prefer is 'speed': choose latency or gpus"),
        (("--prefer", "gpus", "--policy", "eager"), "only policy 'adaptive' looks at it, not eager; leave it out"),
    ],
)
def test_the_command_names_a_preference_that_cannot_be_used(options: tuple[str, ...], said: str) -> None:
    given = ["--profile", "1.053,5.072", "--slo", "25ms", "--gpus", "1"]
    result = CliRunner().invoke(symphony, ["goodput", *given, *options])
    assert result.exit_code == 1
    assert said in result.output


def test_the_command_searches_for_models_that_prefer_gpus() -> None:
    options = "--profile 1.053,5.072 --slo 25ms --models 5 --gpus 8 --seconds 1 --seeds 1 --json --prefer"
    results = [CliRunner().invoke(symphony, ["goodput", *options.split(), prefer]) for prefer in ("latency", "gpus")]
    latency, gpus = [json.loads(result.stdout) for result in results]
    assert latency["goodput_hz"] != gpus["goodput_hz"]
    assert latency["bound_hz"] == gpus["bound_hz"]


def test_the_first_arrivals_of_a_mix_have_exactly_the_rate_asked_for() -> None:
    mix = Mix([0.5, 0.5], shape=0.1)
    arrivals_ns, choices = mix.first(3_000, 2.0)
    assert len(arrivals_ns) == len(choices) == 3_000
    assert 0 <= arrivals_ns[0] <= arrivals_ns[-1] <= 2 * NS_PER_S
    slower, same = mix.first(3_000, 4.0)
    assert (same == choices).all()
    assert np.abs(slower - 2 * arrivals_ns).max() <= 2


def test_a_search_believes_only_what_it_simulated_at_full_length() -> None:
    lengths = []

    def simulated(models: Sequence[SimModel], gpus: int, arrivals_ns: Any, choices: Any) -> Simulated:
        lengths.append(len(arrivals_ns))
        # A number of requests, not a rate: on the short traces it looks like eight times the rate.
        return serves(20_000, 1.0)(models, gpus, arrivals_ns, choices)

    found = search(simulated, alike(25, 1), 8, Mix([1.0]), 5_875.0, 5.0)
    assert found.rate_hz == pytest.approx(4_000, rel=1e-3)
    assert round(found.rate_hz * 5.0) in lengths


def test_a_search_says_when_the_scheduler_could_place_the_models_at_no_rate() -> None:
    def refuses(models: Sequence[SimModel], gpus: int, arrivals_ns: Any, choices: Any) -> Simulated:
        raise CannotPlace("too many models")

    assert search(refuses, alike(25, 1), 8, Mix([1.0]), 5_875.0, 1.0) == Found(0.0, 0.0, False)
    assert search(serves(0, 1.0), alike(25, 1), 8, Mix([1.0]), 5_875.0, 1.0) == Found(0.0, 0.0, True)


def test_the_command_takes_the_default_policy_and_a_zipf_popularity() -> None:
    mix = ["--profile", "resnet50", "--slo", "25ms", "--models", "10", "--gpus", "4", "--json"]
    found = {}
    for popularity in ("equal", "zipf"):
        result = CliRunner().invoke(
            symphony, ["goodput", *mix, "--popularity", popularity, "--seconds", "2", "--seeds", "1"]
        )
        assert result.exit_code == 0, result.output
        found[popularity] = json.loads(result.stdout)["bound_hz"]
        result = CliRunner().invoke(symphony, ["bound", *mix, "--popularity", popularity])
        assert json.loads(result.stdout)["bound_hz"] == found[popularity]
    assert found["zipf"] > 1.01 * found["equal"]  # popular models fill larger batches


@pytest.mark.parametrize("slower", [2, 4])
def test_slow_gpus_do_not_stand_idle_beside_fast_ones(slower: int) -> None:
    """Batches were held for what a fast GPU would take: 9 and 23 % below eager."""
    slow = LatencyProfile(1.053 * slower, 5.072 * slower)
    models = [SimModel(f"m{i}", L2, 50 * NS_PER_MS, {"slow": slow}) for i in range(20)]
    found = {
        policy: goodput(models, [("fast", 8), ("slow", 8)], policy=policy, seconds=2, seeds=1).goodput_hz
        for policy in ("adaptive", "eager")
    }
    assert found["adaptive"] > 0.97 * found["eager"]
