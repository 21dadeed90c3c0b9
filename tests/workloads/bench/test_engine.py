"""The scheduler-only benchmark. Other work may share this machine: nothing here depends on decisions being on time."""

from __future__ import annotations

import json
import time
from typing import Any

import numba
import numpy as np
import pytest
from click.testing import CliRunner

from symphony_dask.cli.main import symphony
from symphony_dask.engine.latency_profile import LatencyProfile
from symphony_dask.errors import BadInput
from workloads.bench import engine as bench
from workloads.bench.engine import Setting, bench_engine
from workloads.compare.goodput import mix_arrivals
from workloads.parallel_engine.clock import clock_ns
from workloads.parallel_engine.load import CARRIED, bound_hz, carrying, loads
from workloads.parallel_engine.loops import make_counts, quantile_us, run_engine
from workloads.simulation.batch_ends import make_ends
from workloads.simulation.result import SimModel
from workloads.simulation.simulate import simulate

SLO_NS = 25_000_000

pytestmark = pytest.mark.skipif(numba.config.DISABLE_JIT, reason="the interpreter is too slow for real time")


def run(*arguments: str) -> Any:
    result = CliRunner().invoke(symphony, ["bench", "engine", *arguments, "--json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def adds_up(found: dict[str, Any]) -> None:
    served = round(found["mean_batch"] * found["decisions"])
    assert served + found["dropped"] + found["rejected"] == found["requests"]
    assert round(found["attainment"] * found["requests"]) == served - found["missed"]
    assert found["late_fraction"] >= (found["missed"] + found["dropped"] + found["rejected"]) / found["requests"]


def test_the_compiled_clock_is_the_monotonic_clock() -> None:
    before, between, after = time.monotonic_ns(), clock_ns(), time.monotonic_ns()
    assert before <= between <= after


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_in_real_time_every_request_ends_once_with_any_number_of_threads(threads: int) -> None:
    found = bench_engine(Setting(models=4, gpus=32, rate_hz=20_000, seconds=0.2, threads=threads))
    assert found["requests"] == sum(load.total for load in loads(4, 1, 20_000, 0.2, SLO_NS, 1.0))
    assert len(found["thread_work_share"]) == threads
    adds_up(found)


def test_threads_tell_the_rank_thread_of_every_batch_and_leave_no_request_behind(monkeypatch: Any) -> None:
    made: dict[str, Any] = {}

    def keep(name: str, function: Any) -> Any:
        def call(*arguments: Any) -> Any:
            made.setdefault(name, []).append(function(*arguments))
            return made[name][-1]

        return call

    monkeypatch.setattr(bench, "make_ranks", keep("ranks", bench.make_ranks))
    monkeypatch.setattr(bench, "_engine", keep("engine", bench._engine))
    found = bench_engine(Setting(models=4, gpus=32, rate_hz=20_000, seconds=0.2, threads=3))
    assert made["ranks"][-1].gpus["batches"].sum() == found["decisions"]
    for engine in made["engine"][-2:]:
        engine.validate()
        assert engine.state.g["n_slots"][0] == len(engine.state.req)


def test_virtual_time_decides_what_the_simulator_decides() -> None:
    profile = LatencyProfile(1.0, 5.0)
    found = bench_engine(Setting(models=3, gpus=4, rate_hz=1_500, seconds=2, virtual=True, profile=profile))
    arrivals, choices = mix_arrivals(3, 1_500, 2)
    models = [SimModel(str(m), profile, SLO_NS) for m in range(3)]
    simulated = simulate(models, 4, arrivals, choices, policy="deferred", control_ns=bench.CONTROL_NS)
    assert found["requests"] == len(arrivals)
    assert found["missed"] == found["rejected"] == found["late_decisions"] == 0
    assert found["lateness_us"] == {"p50": 0.0, "p99": 0.0, "p999": 0.0}
    assert found["attainment"] == pytest.approx(simulated.attainment, abs=0.01)
    assert found["mean_batch"] == pytest.approx(simulated.mean_batch, rel=0.1)  # here windows open 5 % of the SLO early
    adds_up(found)


def test_a_stalled_thread_makes_its_requests_late() -> None:
    """The requests came 100 to 60 ms before the loop began."""
    setting = Setting(models=1, gpus=8, rate_hz=1_000, seconds=0.04)
    now = clock_ns()
    engine = bench._engine(setting, LatencyProfile(1.0, 5.0), 1, 1_000, now)
    engine.advance(now)
    counts = make_counts(8)
    load = loads(1, 1, 1_000, 0.04, SLO_NS, 1.0)[0]
    run_engine(engine.state, engine.profiles, load, make_ends(8), counts, now - 100_000_000, 0, np.zeros(1, np.int64))
    tally = counts.tally[0]
    assert tally.requests == tally.late == tally.dropped == load.total > 0


def test_a_run_can_be_interrupted() -> None:
    stop = np.zeros(1, np.int64)

    def wait() -> None:
        while not stop[0]:
            time.sleep(0.001)

    def fail() -> None:
        raise ValueError("told to")

    with pytest.raises(ValueError, match="told to"):
        bench._side_by_side([wait, fail], stop)
    assert stop[0] == 1


def test_a_rate_beyond_resnet_50_is_carried_by_a_smaller_alpha_at_eighty_percent_of_the_bound() -> None:
    assert carrying(4_000, 1, 8, SLO_NS).alpha_ms == 1.053
    profile = carrying(2e6, 10, 80, SLO_NS)
    assert profile.beta_ms == 5.072
    assert CARRIED * bound_hz(profile, 10, 80, SLO_NS) == pytest.approx(2e6, rel=1e-3)
    with pytest.raises(BadInput, match="offer less, or give --profile, a longer --slo or more --gpus"):
        carrying(2e6, 1, 1, SLO_NS)


def test_long_runs_repeat_a_block_of_a_million_arrivals() -> None:
    one, other = loads(4, 2, 2e6, 10, SLO_NS, 1.0)
    assert one.period == other.period == 524_288_000
    assert len(one.times) + len(other.times) == pytest.approx(1 << 20, rel=0.01)
    assert one.total + other.total == pytest.approx(20e6, rel=0.01)
    assert set(one.models) == set(other.models) == {0, 1}
    assert (np.diff(one.times) >= 0).all()
    assert one.times[-1] < one.period


def test_quantiles_of_lateness_are_at_most_a_bin_too_high() -> None:
    lateness = make_counts(1).lateness
    assert quantile_us(lateness, 0.5) is None
    lateness[32 * 10] = 99  # 1.024 us
    lateness[32 * 20] = 1  # 1,048.576 us
    assert quantile_us(lateness, 0.5) == pytest.approx(1.024, rel=0.022)
    assert quantile_us(lateness, 0.999) == pytest.approx(1048.576, rel=0.022)


def test_the_command_prints_the_contracts_keys() -> None:
    found = run("--models", "2", "--gpus", "8", "--rate", "1000", "--seconds", "0.2", "--threads", "2")
    assert {"rate_hz", "late_fraction", "lateness_us", "cpu_us_per_request", "gpus_used"} <= set(found)
    assert set(found["lateness_us"]) == {"p50", "p99", "p999"}
    assert 0 < found["rate_hz"] < 2_000
    assert found["cpu_us_per_request"] > 0
    assert 0 <= found["gpus_used"] <= 8
    assert found["label"].startswith("measured in real time")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--threads", "2", "--virtual", "--models", "9"], "virtual time runs in one thread"),
        (["--threads", "2", "--policy", "adaptive"], "policy 'adaptive' looks at all models at once"),
        (["--threads", "4", "--models", "2"], "--threads 4 for 2 models"),
        (["--policy", "psychic"], "policy 'psychic' is unknown"),
        (["--rate", "0"], "rate=0.0: must be positive"),
        (["--search", "--virtual"], "--search is for real time"),
        (["--rate", "0.001", "--seconds", "1"], "is no request"),
    ],
)
def test_what_cannot_be_measured_is_refused(arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(symphony, ["bench", "engine", *arguments])
    assert result.exit_code == 1
    assert message in result.output


def test_a_search_keeps_the_best_rate_that_holds(monkeypatch: Any) -> None:
    def pretend(setting: Setting) -> dict[str, Any]:
        assert setting.rate_hz is not None
        return {"offered_hz": setting.rate_hz, "late_fraction": 0.0 if setting.rate_hz <= 3e6 else 0.5}

    monkeypatch.setattr(bench, "bench_engine", pretend)
    found = bench.search(Setting(models=1, gpus=8))
    assert [round(row["rate_hz"]) for row in found["tried"]][:3] == [1_000_000, 2_000_000, 4_000_000]
    assert 2.7e6 < found["offered_hz"] <= 3e6


def test_growth_offers_each_size_the_same_share_of_its_bound(monkeypatch: Any) -> None:
    monkeypatch.setattr(bench, "SIZES", ((1, 8), (4, 32)))
    monkeypatch.setattr(bench, "_GROWTH_REQUESTS", 20_000)
    rows = bench.growth(Setting(models=1, gpus=1, seconds=0.1))["rows"]
    assert [(row["models"], row["gpus"]) for row in rows] == [(1, 8), (4, 32)]
    assert all(row["offered_hz"] == pytest.approx(0.9 * row["bound_hz"]) for row in rows)
    assert all(row["requests"] == pytest.approx(18_000, rel=0.05) for row in rows)
