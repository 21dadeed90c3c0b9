"""Trials of policies: what is paid, who comes and goes, and the figures of the command."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner

from autoscale.policies.decision import Memory, Settings, Target
from autoscale.policies.registry import POLICIES
from symphony_dask.cli.main import symphony
from symphony_dask.engine.latency_profile import LatencyProfile
from symphony_dask.errors import BadInput
from symphony_dask.trace import Outcome
from workloads.cli.autoscale_trials import POLICY_NAMES
from workloads.policy_trials.trial import FleetModel, run_trial
from workloads.simulation.result import SimModel
from workloads.simulation.workload import Workload
from workloads.traces.diurnal import diurnal

MS, S = 1_000_000, 1_000_000_000
MODEL = SimModel("m", LatencyProfile(1, 5), 50 * MS)
NO_LIMIT = Settings(maximum=20)


def work(*rates_hz: int, seconds: int = 100) -> Workload:
    """So many seconds of each rate, evenly spaced."""
    parts = [np.arange(seconds * r) * S // max(r, 1) + i * seconds * S for i, r in enumerate(rates_hz)]
    arrivals = np.concatenate(parts).astype(np.int64)
    n = len(arrivals)
    return Workload([MODEL], arrivals, np.zeros(n, np.int32), np.full(n, 50 * MS))


def scripted(*targets: int):
    """A policy that asks for these, one a tick, then for the last."""

    def policy(settings, memory, signals, fleet):
        policy.seen.append((signals, fleet))
        return memory, Target(targets[min(len(policy.seen), len(targets)) - 1], "scripted")

    policy.seen = []
    return policy


def test_a_gpu_is_paid_from_launch_to_end_and_serves_after_its_boot_time():
    # Launched at 10 s, serves at 40 s, given back at 60 s and seen to be gone within 5 s; the other is always there.
    policy = scripted(2, 2, 2, 2, 2, 1)
    trial = run_trial(work(100), "scripted", policy, NO_LIMIT, FleetModel(boot_s=30), start_gpus=1)
    assert (trial.launches, trial.terminations) == (1, 1)
    assert 100 + 50 <= trial.gpu_hours * 3600 <= 100 + 55
    assert [(t[2], t[3]) for t in trial.ticks.tolist()[:5]] == [(1, 0), (1, 1), (1, 1), (2, 0), (2, 0)]
    assert trial.attainment == 1.0


def test_those_that_boot_go_first_then_the_highest_ranks():
    policy = scripted(3, 2, 1)
    trial = run_trial(work(100), "scripted", policy, NO_LIMIT, FleetModel(boot_s=1000), start_gpus=2)
    assert trial.ticks[:, 2:4].tolist()[:4] == [[2, 0], [2, 1], [2, 0], [1, 0]]
    assert trial.terminations == 2
    assert [gpu.rank for gpu in policy.seen[-1][0].gpus] == [0]


def test_no_request_is_lost_by_scaling_in():
    trial = run_trial(work(100), "scripted", scripted(4, 1, 4, 1, 4, 1), NO_LIMIT, FleetModel(boot_s=1), start_gpus=4)
    assert trial.outcomes.tolist() == [10_000, 0, 0, 0, 0, 0]


def test_the_policy_sees_what_the_live_sampler_tells():
    policy = scripted(1)
    run_trial(work(100), "scripted", policy, NO_LIMIT, FleetModel(), start_gpus=1)
    signals, fleet = policy.seen[5]
    (model,) = signals.models
    assert signals.time_s == 60.0
    assert model.rate_hz == {1.0: 100.0, 10.0: 100.0, 30.0: 100.0, 60.0: 100.0}
    assert model.gpu_seconds_per_request == {"gpu": pytest.approx(10e-3 / 5)}
    assert (fleet.ready, fleet.booting, fleet.draining) == (1, 0, 0)
    assert 0.1 < signals.gpus[0].busy < 0.7  # one GPU starts batches at once, and they are small


def test_requests_without_a_gpu_are_bad():
    trial = run_trial(work(100), "scripted", scripted(0), NO_LIMIT, FleetModel(), start_gpus=0)
    assert trial.outcomes[Outcome.OK] == 0
    assert trial.requests == 10_000
    assert trial.gpu_hours == 0


def test_a_launch_that_fails_is_tried_again():
    trial = run_trial(
        work(100), "scripted", scripted(5), NO_LIMIT, FleetModel(boot_s=1, capacity_errors=0.5), start_gpus=1
    )
    assert trial.failed > 0
    assert trial.launches == 4
    assert trial.ticks[-1, 2] == 5


def test_a_gpu_that_will_be_killed_is_replaced_while_it_still_serves():
    # Kills come after 6 min on average, 2 min after their notice.
    cloud = FleetModel(boot_s=30, spot_kills_per_hour=10)
    trial = run_trial(work(100, seconds=1200), "scripted", scripted(3), NO_LIMIT, cloud, start_gpus=3)
    assert trial.kills > 3
    assert trial.launches >= trial.kills
    assert trial.ticks[:, 4].max() >= 1
    assert trial.attainment > 0.999


def test_the_same_seed_gives_the_same_trial_and_another_one_another():
    cloud = FleetModel(boot_s=40, boot_spread=0.5, capacity_errors=0.3, spot_kills_per_hour=20)
    found = [
        run_trial(work(800, 300, 900), "p", POLICIES["load_proportional"], NO_LIMIT, cloud, start_gpus=1, seed=seed)
        for seed in (1, 1, 2)
    ]
    assert found[0].to_dict() == found[1].to_dict()
    assert found[0].ticks.tolist() == found[1].ticks.tolist()
    assert found[0].ticks.tolist() != found[2].ticks.tolist()


def test_the_default_policy_follows_load_steps_and_goes_to_zero_and_back():
    # 100 s each: one GPU, three, one, none at all, and one again.
    settings = replace(NO_LIMIT, boot_s=10, scale_in_window_s=20, last_delay_s=30)
    trial = run_trial(
        work(500, 2500, 500, 0, 500), "p", POLICIES["load_proportional"], settings, FleetModel(boot_s=10), start_gpus=1
    )
    ready = {int(t[0]): int(t[2]) for t in trial.ticks.tolist()}
    assert ready[190] > ready[90]
    assert ready[290] < ready[190]
    assert ready[390] == 0
    assert ready[480] >= ready[90]


def test_figures_that_make_no_sense_are_refused():
    with pytest.raises(BadInput, match="probability below 1"):
        FleetModel(capacity_errors=1.0)
    with pytest.raises(BadInput, match="below 0"):
        FleetModel(boot_s=-1)
    with pytest.raises(BadInput, match="tick_s=0"):
        run_trial(work(1), "p", scripted(1), NO_LIMIT, FleetModel(), start_gpus=1, tick_s=0)


# The command


@pytest.fixture(scope="module")
def trace(tmp_path_factory):
    folder = tmp_path_factory.mktemp("traces") / "day"
    diurnal(folder, seconds=7200, peak_hz=1500, slo_ns=50 * MS, seed=1, bursts_per_day=24)
    return str(folder)


def invoke(*arguments: str) -> str:
    result = CliRunner().invoke(symphony, ["autoscale", "simulate", *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_the_command_prints_what_its_contract_names(trace, tmp_path):
    page = tmp_path / "page.html"
    found = json.loads(
        invoke(trace, "--policy", "load_proportional", "--boot", "120s", "--profile", "1.053,5.072", "--slo", "50ms",
               "--json", "--out", str(page))
    )  # fmt: skip
    for key in ("gpu_hours", "fixed_peak_gpu_hours", "saving", "attainment", "launches", "terminations", "usd"):
        assert isinstance(found[key], int | float)
    assert found["label"] == "simulated"
    assert found["saving"] == pytest.approx(1 - found["gpu_hours"] / found["fixed_peak_gpu_hours"])
    assert found["usd"] == pytest.approx(found["gpu_hours"] * 0.526)
    assert found["ok"] + found["late"] + found["dropped"] + found["rejected"] == found["requests"]
    assert page.read_text().count("<path") > 3


def test_settings_prices_and_a_table_for_people(trace):
    text = invoke(trace, "--policy", "fixed_peak", "--set", "fixed_gpus=3", "--price", "2", "--markdown")
    row = next(line for line in text.splitlines() if "fixed_peak |" in line)
    assert "| 6.0 |" in row  # three GPUs for two hours
    assert "| 12.00 |" in row


def test_policies_side_by_side(tmp_path):
    folder = tmp_path / "short"
    diurnal(folder, seconds=120, peak_hz=1500, slo_ns=50 * MS, seed=1, trough=1.0)
    options = ("--compare", "--attainment", "0.95", "--boot", "20s", "--processes", "1", "--profile", "1.053,5.072")
    found = json.loads(invoke(str(folder), *options, "--json"))
    assert list(dict.fromkeys(row["policy"] for row in found["rows"])) == list(POLICY_NAMES)
    ours = found["rows"][0]
    for policy in POLICY_NAMES[1:]:
        rows = [row for row in found["rows"] if row["policy"] == policy]
        trials = [trial for trial in found["trials"] if trial["policy"] == policy]
        enough = [trial["gpu_hours"] for trial in trials if trial["attainment"] >= 0.95]
        assert rows[0]["gpu_hours"] == min(enough) if enough else rows[0]["attainment"] < 0.95
        alike = [trial["gpu_hours"] for trial in trials if trial["ok"] >= ours["ok"]]
        assert rows[-1]["gpu_hours"] == min(alike) if alike else len(rows) == 1


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--set", "boot=3"), "no setting 'boot'"),
        (("--set", "maximum=many"), "'many' is no int"),
        (("--gpu-class", "abacus"), "price of GPU class 'abacus' is unknown"),
        (("--tick", "1.5s"), "whole seconds"),
        (("--profile", "1"), "cannot be read"),
    ],
)
def test_what_cannot_be_used_is_said(trace, arguments, text):
    result = CliRunner().invoke(symphony, ["autoscale", "simulate", trace, *arguments])
    assert result.exit_code == 1
    assert text in result.output


def test_memory_can_be_given():
    policy = scripted(1)
    memory = Memory(active_s=-5.0)

    def remembers(settings, given, signals, fleet):
        assert given.active_s == -5.0
        return policy(settings, given, signals, fleet)

    run_trial(work(10), "p", remembers, NO_LIMIT, FleetModel(), start_gpus=1, memory=memory)
    assert policy.seen
