from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pytest
from click.testing import CliRunner

from symphony_dask.cli.main import symphony
from symphony_dask.engine.latency_profile import LatencyProfile
from symphony_dask.errors import BadInput
from symphony_dask.trace import Outcome, open_run, write_trace
from workloads.compare.policies import scheduler
from workloads.simulation.record import record
from workloads.simulation.result import SimModel, Simulated
from workloads.simulation.simulate import SimulatedRun, simulate
from workloads.simulation.workload import read_workload
from workloads.traces.digest import digest

MS = 1_000_000
#: l(1) = 6 ms, l(2) = 7 ms, l(3) = 8 ms.
MODEL = SimModel("m", LatencyProfile(1, 5), 25 * MS)
ARRAYS = ("outcome", "finish_ns", "request_batch", "decided_ns", "batch_gpu", "batch_size", "batch_start_ns")


def ms(*times: float) -> npt.NDArray[np.int64]:
    return np.array([round(t * MS) for t in times], np.int64)


def run(*arrivals: float, gpus: int = 1, model: SimModel = MODEL, **options: Any) -> SimulatedRun:
    return simulate([model], gpus, ms(*arrivals), np.zeros(len(arrivals), np.int32), **options)


def crowd(**options: Any) -> SimulatedRun:
    """3,000 requests of three models on two GPUs, more than these can serve."""
    rng = np.random.default_rng(1)
    models = [SimModel(f"m{i}", LatencyProfile(1, 5), slo * MS) for i, slo in enumerate((20, 30, 50))]
    arrivals_ns = np.sort(rng.integers(0, 2_000 * MS, 3_000))
    return simulate(models, 2, arrivals_ns, rng.integers(0, 3, 3_000).astype(np.int32), **options)


def same(a: SimulatedRun, b: SimulatedRun) -> bool:
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in ARRAYS)


def test_a_lone_request_leaves_at_its_frontrun_and_ends_one_step_before_its_deadline() -> None:
    result = run(0, policy="deferred")  # 25 - l(2) = 18, and 18 + l(1) = 24
    assert result.batch_start_ns.tolist() == [18 * MS]
    assert result.finish_ns.tolist() == [24 * MS]
    assert result.outcome.tolist() == [Outcome.OK]
    assert (result.batch_open_ns.tolist(), result.batch_close_ns.tolist()) == ([18 * MS], [19 * MS])


def test_two_requests_are_one_batch() -> None:
    result = run(0, 10, policy="deferred")  # 25 - l(3) = 17, and 17 + l(2) = 24
    assert result.batch_size.tolist() == [2]
    assert result.batch_start_ns.tolist() == [17 * MS]
    assert result.finish_ns.tolist() == [24 * MS, 24 * MS]
    assert result.request_batch.tolist() == [0, 0]


def test_eager_starts_at_once_and_the_second_request_waits_for_the_gpu() -> None:
    result = run(0, 1, policy="eager")
    assert result.batch_start_ns.tolist() == [0, 6 * MS]
    assert result.finish_ns.tolist() == [6 * MS, 12 * MS]
    assert result.busy_gpus == 1.0
    assert result.gpu_seconds == 0.012


def test_a_request_that_cannot_be_in_time_is_dropped_and_has_no_batch() -> None:
    result = run(0, 1, policy="eager", slos_ns=ms(25, 8))  # free at 6, done at 12, due at 9
    assert result.outcome.tolist() == [Outcome.OK, Outcome.DROPPED]
    assert result.finish_ns.tolist() == [6 * MS, -1]
    assert result.request_batch.tolist() == [0, -1]
    assert result.decided_ns.tolist() == [0, 3 * MS + 1]
    assert result.attainment == 0.5


def test_a_full_queue_rejects() -> None:
    result = run(0, 1, 2, policy="deferred", queue_limit=2)
    assert result.outcome.tolist() == [Outcome.OK, Outcome.OK, Outcome.REJECTED]
    assert result.decided_ns[2] == 2 * MS


def test_network_latency_moves_the_decision_ahead() -> None:
    result = run(0, policy="deferred", control_ns=2 * MS, reply_ns=3 * MS)
    # Due at 25 - 3 = 22; 22 - l(2) - 2 = 13; starts 2 later and ends at 15 + l(1).
    assert result.batch_dispatch_ns.tolist() == [13 * MS]
    assert result.batch_start_ns.tolist() == [15 * MS]
    assert result.finish_ns.tolist() == [21 * MS]
    assert result.outcome.tolist() == [Outcome.OK]


def test_a_clock_far_from_zero_changes_nothing_but_the_times() -> None:
    year = 365 * 24 * 3600 * 1000
    assert (run(year, year + 10).finish_ns - run(0, 10).finish_ns).tolist() == [year * MS] * 2


@pytest.mark.parametrize("policy", ["deferred", "eager"])
@pytest.mark.parametrize("noise", [0.0, 0.2])
def test_every_request_ends_once_and_gpus_run_one_batch_at_a_time(policy: str, noise: float) -> None:
    result = crowd(policy=policy, noise=noise)
    counts = {kind: result.count(kind) for kind in Outcome}
    ran = result.request_batch >= 0
    assert sum(counts.values()) == 3_000
    assert counts[Outcome.OK] + counts[Outcome.LATE] == ran.sum() == result.batch_size.sum()
    assert (np.bincount(result.request_batch[ran]) == result.batch_size).all()
    assert (result.finish_ns[ran] == result.batch_end_ns[result.request_batch[ran]]).all()
    assert ((result.finish_ns <= result.deadlines_ns)[ran] == (result.outcome[ran] == Outcome.OK)).all()
    assert counts[Outcome.DROPPED] > 0
    assert (counts[Outcome.LATE] > 0) == (noise > 0)
    for gpu in range(2):
        mine = result.batch_gpu == gpu
        assert (result.batch_start_ns[mine][1:] >= result.batch_end_ns[mine][:-1]).all()


def test_the_same_arguments_give_the_same_result() -> None:
    assert same(crowd(noise=0.1, seed=4), crowd(noise=0.1, seed=4))
    assert not same(crowd(noise=0.1, seed=4), crowd(noise=0.1, seed=5))


@pytest.mark.parametrize("control_ns", [0, MS])
def test_noise_too_small_to_move_an_end_gives_what_no_noise_gives(control_ns: int) -> None:
    assert same(crowd(noise=1e-12, control_ns=control_ns), crowd(control_ns=control_ns))


def test_noise_lengthens_batches_by_its_factor_and_not_on_average() -> None:
    result = crowd(noise=0.1, policy="deferred")
    took = result.batch_end_ns - result.batch_start_ns
    factors = took / (result.batch_planned_end_ns - result.batch_planned_start_ns)
    assert factors.mean() == pytest.approx(1, abs=0.03)
    assert factors.std() == pytest.approx(0.1, rel=0.2)


def steady(gpus: int, slowness: list[float], **options: Any) -> SimulatedRun:
    """20 s of 500 requests/s for each GPU; a batch of l(b) = 1.053b + 5.072 ms within 50 ms."""
    rng = np.random.default_rng(2)
    model = SimModel("m", LatencyProfile(1.053, 5.072), 50 * MS)
    arrivals_ns = np.sort(rng.integers(0, 20_000 * MS, 10_000 * gpus))
    return simulate([model], gpus, arrivals_ns, np.zeros(len(arrivals_ns), np.int32), slowness=slowness, **options)


def test_one_gpu_three_times_as_slow_is_noticed_and_used_last() -> None:
    result = steady(4, [3, 1, 1, 1])
    assert result.attainment > 0.99
    assert (result.batch_gpu == 0).mean() < 0.05


def test_windows_follow_when_all_gpus_are_slower_than_the_profile() -> None:
    result = steady(4, [1.3] * 4)
    assert result.attainment > 0.98
    assert not (result.outcome == Outcome.LATE)[result.arrivals_ns > 2_000 * MS].any()


def test_a_gpu_as_fast_as_its_profile_is_planned_as_without_observation() -> None:
    assert same(steady(2, [1, 1]), steady(2, [1, 1], noise=1e-12))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"policy": "fifo"}, "policy 'fifo' is unknown: choose one of deferred"),
        ({"gpus": 0}, "0 GPUs"),
        ({"noise": -1}, "noise=-1"),
        ({"slowness": [1, 2]}, r"slowness=\[1, 2\]: give a positive factor for each of the 1 GPUs"),
        ({"slos_ns": ms(25)}, "slos_ns has 1 entries"),
    ],
)
def test_arguments_that_cannot_be_used_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        run(0, 1, **options)


def test_arrivals_must_be_in_order_and_choices_known() -> None:
    with pytest.raises(BadInput, match="sort the requests"):
        run(1, 0)
    with pytest.raises(BadInput, match="there are no requests"):
        run()
    with pytest.raises(BadInput, match="there are 1 models"):
        simulate([MODEL], 1, ms(0), np.array([1], np.int32))


def test_a_scheduler_is_found_by_name_among_policies_and_baselines() -> None:
    arrivals_ns, choices = ms(0), np.zeros(1, np.int32)
    assert isinstance(scheduler("eager")([MODEL], 1, arrivals_ns, choices), SimulatedRun)
    assert isinstance(scheduler("shepherd")([MODEL], 1, arrivals_ns, choices), Simulated)
    with pytest.raises(BadInput, match=r"choose one of deferred, .*clockwork"):
        scheduler("fifo")


def test_a_recorded_simulation_reads_like_a_live_run(tmp_path: Path) -> None:
    result = run(0, 1, policy="eager", slos_ns=ms(25, 8), reply_ns=MS)
    record(result, tmp_path / "run", trace="two requests")
    recorded = open_run(tmp_path / "run")
    assert recorded.info["label"] == "simulated"
    assert recorded.info["policy"] == "eager"
    assert recorded.info["trace"] == "two requests"
    assert recorded.info["counts"] == {"requests": 2, "batches": 1, "gpus": 1, "events": 0, "scaling": 0}
    dropped, ok = recorded.requests.collect().rows(named=True)
    assert (ok["id"], ok["outcome"], ok["batch"], ok["gpu"]) == (0, "ok", 0, 0)
    assert [ok[k] for k in ("dispatch_ns", "start_ns", "end_ns", "reply_ns")] == [0, 0, 6 * MS, 7 * MS]
    assert (dropped["id"], dropped["outcome"], dropped["batch"], dropped["end_ns"]) == (1, "dropped", None, None)
    assert (dropped["deadline_ns"], dropped["reply_ns"]) == (9 * MS, 3 * MS + 1)
    assert recorded.batches.collect().rows(named=True)[0]["planned_end_ns"] == 6 * MS


def test_a_long_run_is_recorded_in_parts_that_hold_the_same_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = crowd(policy="adaptive")
    record(result, tmp_path / "one")
    monkeypatch.setattr("workloads.simulation.record.PART_ROWS", 1000)
    record(result, tmp_path / "many")
    assert [len(list((tmp_path / name).glob("requests-*"))) for name in ("one", "many")] == [1, 3]
    assert digest(tmp_path / "one") == digest(tmp_path / "many")
    replies = open_run(tmp_path / "many").requests.collect()["reply_ns"]
    assert replies.is_sorted()


def test_a_recorded_run_can_be_simulated_again_as_it_was(tmp_path: Path) -> None:
    result = crowd(policy="eager")
    record(result, tmp_path)
    work = read_workload(tmp_path)
    assert sorted((m.name, m.slo_ns, m.profile) for m in work.models) == sorted(
        (m.name, m.slo_ns, m.profile) for m in result.models
    )
    again = simulate(work.models, 2, work.arrivals_ns, work.choices, slos_ns=work.slos_ns, policy="eager")
    assert np.array_equal(again.outcome, result.outcome)


def test_a_trace_without_deadlines_is_served_within_50_ms_as_resnet50(tmp_path: Path) -> None:
    write_trace(tmp_path, pl.DataFrame({"model": ["a", "b", "a"], "arrival_ns": [0, 5, 9]}))
    work = read_workload(tmp_path)
    assert [(m.name, m.slo_ns, m.profile.alpha_ms) for m in work.models] == [
        ("a", 50 * MS, 1.053),
        ("b", 50 * MS, 1.053),
    ]
    assert work.choices.tolist() == [0, 1, 0]
    assert read_workload(tmp_path, LatencyProfile(2, 3), 7 * MS).models[0] == SimModel(
        "a", LatencyProfile(2, 3), 7 * MS
    )


def test_a_file_with_deadlines_gives_each_request_its_own_slo(tmp_path: Path) -> None:
    frame = pl.DataFrame({"model": ["a", "a", "b"], "arrival_ns": [0, 5, 9], "deadline_ns": [30, 25, 9]})
    frame.write_parquet(tmp_path / "trace.parquet")
    work = read_workload(tmp_path / "trace.parquet")
    assert work.slos_ns.tolist() == [30, 20, 50 * MS]
    assert [m.slo_ns for m in work.models] == [20, 50 * MS]


def test_the_command_prints_the_figures_of_a_trace_as_json(tmp_path: Path) -> None:
    write_trace(tmp_path / "trace", pl.DataFrame({"model": ["m", "m"], "arrival_ns": [0, MS]}))
    options = ["--gpus", "1", "--policy", "eager", "--slo", "25ms", "--profile", "1,5", "--json"]
    result = CliRunner().invoke(symphony, ["simulate", str(tmp_path / "trace"), *options])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found.pop("simulated_hz") > 0
    assert found.pop("read_s") > 0
    assert found == {
        "requests": 2,
        "ok": 2,
        "late": 0,
        "dropped": 0,
        "rejected": 0,
        "cancelled": 0,
        "attainment": 1.0,
        "goodput_hz": pytest.approx(2 / 0.012),
        "mean_batch": 1.0,
        "busy_gpus": 1.0,
        "gpu_seconds": 0.012,
    }


def test_the_command_records_a_run_and_refuses_to_for_a_baseline(tmp_path: Path) -> None:
    write_trace(tmp_path / "trace", pl.DataFrame({"model": ["m"] * 3, "arrival_ns": [0, MS, 1000 * MS]}))
    command = ["simulate", str(tmp_path / "trace"), "--gpus", "1", "--folder", str(tmp_path / "run"), "--policy"]
    refused = CliRunner().invoke(symphony, [*command, "shepherd"])
    assert "policy 'shepherd' is a baseline" in refused.output
    assert CliRunner().invoke(symphony, [*command, "deferred"]).exit_code == 0
    assert open_run(tmp_path / "run").summary().ok == 3


@pytest.mark.parametrize(("prefer", "starts_ns"), [("latency", 0), ("gpus", 18 * MS)])
def test_the_command_has_models_prefer_latency_or_gpus(prefer: str, starts_ns: int, tmp_path: Path) -> None:
    write_trace(tmp_path / "trace", pl.DataFrame({"model": ["m"], "arrival_ns": [0]}))
    options = [
        "--gpus",
        "1",
        "--slo",
        "25ms",
        "--profile",
        "1,5",
        "--prefer",
        prefer,
        "--folder",
        str(tmp_path / "run"),
    ]
    result = CliRunner().invoke(symphony, ["simulate", str(tmp_path / "trace"), *options])
    assert result.exit_code == 0, result.output
    run = open_run(tmp_path / "run")
    assert run.batches.collect()["start_ns"].to_list() == [starts_ns]
    assert run.info["prefer"] == prefer


def test_the_command_lists_the_policies_when_it_knows_no_such(tmp_path: Path) -> None:
    write_trace(tmp_path, pl.DataFrame({"model": ["m"], "arrival_ns": [0]}))
    result = CliRunner().invoke(symphony, ["simulate", str(tmp_path), "--gpus", "1", "--policy", "fifo"])
    assert result.exit_code == 1
    assert "policy 'fifo' is unknown: choose one of deferred" in result.output
