from __future__ import annotations

from collections.abc import Sequence
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
from workloads.compare.goodput import goodput, mix_arrivals
from workloads.compare.policies import scheduler
from workloads.simulation.fleet import (
    AddGpu,
    AddModel,
    DrainGpu,
    Event,
    Gpus,
    RemoveGpu,
    RemoveModel,
    parse_gpus,
    plan_fleet,
)
from workloads.simulation.record import record
from workloads.simulation.result import SimModel
from workloads.simulation.simulate import SimulatedRun, simulate
from workloads.simulation.workload import read_workload

MS = 1_000_000
#: On "fast" l(1) = 6, l(2) = 7, l(3) = 8 ms; on "slow" twice that.
FAST, SLOW = LatencyProfile(1, 5), LatencyProfile(2, 10)
MODEL = SimModel("m", FAST, 25 * MS, {"slow": SLOW})


def run(*arrivals_ms: float, gpus: Gpus = 1, events: Sequence[Event] = (), **options: Any) -> SimulatedRun:
    arrivals_ns = np.array([round(t * MS) for t in arrivals_ms], np.int64)
    return simulate([MODEL], gpus, arrivals_ns, np.zeros(len(arrivals_ns), np.int32), events=events, **options)


def batches(result: SimulatedRun) -> list[tuple[int, int, float, float]]:
    """(GPU, size, start in ms, end in ms) of each batch."""
    columns = (result.batch_gpu, result.batch_size, result.batch_start_ns / MS, result.batch_end_ns / MS)
    return list(zip(*(column.tolist() for column in columns), strict=True))


def changes(result: SimulatedRun) -> list[tuple[float, int, str]]:
    return [(change.time_ns / MS, change.gpu, change.event) for change in result.changes]


def crowd(events: Sequence[Event], **options: Any) -> SimulatedRun:
    """4,000 requests in 2 s for three models on four GPUs of two classes."""
    rng = np.random.default_rng(1)
    models = [SimModel(f"m{i}", FAST, slo * MS, {"slow": SLOW}) for i, slo in enumerate((20, 30, 50))]
    arrivals_ns = np.sort(rng.integers(0, 2_000 * MS, 4_000))
    choices = rng.integers(0, 3, 4_000).astype(np.int32)
    return simulate(models, [("slow", 2), ("fast", 2)], arrivals_ns, choices, events=events, **options)


def check_books(result: SimulatedRun) -> None:
    """Every request ends once, every kept batch holds what says that it was in it, and GPUs run one at a time."""
    ran = result.request_batch >= 0
    assert sum(result.count(kind) for kind in Outcome) == len(result.outcome)
    assert result.count(Outcome.OK) + result.count(Outcome.LATE) == ran.sum()
    assert (result.finish_ns >= 0).tolist() == ran.tolist()
    held = np.bincount(result.request_batch[ran], minlength=len(result.batch_size))
    assert (held == np.where(result.batch_lost, 0, result.batch_size)).all()
    assert (result.finish_ns[ran] == result.batch_end_ns[result.request_batch[ran]]).all()
    answered_ns = result.finish_ns + result.settings["reply_ns"]
    assert ((answered_ns <= result.deadlines_ns)[ran] == (result.outcome[ran] == Outcome.OK)).all()
    for gpu in range(result.gpus):
        mine = result.batch_gpu == gpu
        assert (result.batch_start_ns[mine][1:] >= result.batch_end_ns[mine][:-1]).all()


class TestClasses:
    def test_a_batch_takes_as_long_as_the_class_of_its_gpu_needs(self) -> None:
        # The first fills the slow GPU, which is named first: l(1) = 12 there. The second comes while it is busy.
        result = run(0, 1, gpus=[("slow", 1), ("fast", 1)], policy="eager")
        assert batches(result) == [(0, 1, 0, 12), (1, 1, 1, 7)]

    def test_a_batch_is_formed_for_the_class_of_the_gpu_that_it_gets(self) -> None:
        # Eight requests due at 25: the slow GPU ends seven at 10 + 2*7 = 24, and eight would be late there.
        result = run(*[0] * 8, gpus=[("slow", 1), ("fast", 1)], policy="eager")
        assert batches(result) == [(0, 7, 0, 24), (1, 1, 0, 6)]
        assert batches(run(*[0] * 8, gpus=[("fast", 1)], policy="eager")) == [(0, 8, 0, 13)]

    def test_gpus_of_the_lowest_rank_fill_first_whatever_their_number(self) -> None:
        result = run(
            0, 50, 100, 100, gpus=[("fast", 2, 1), ("slow", 1, 0)], policy="eager", slos_ns=np.full(4, 25 * MS)
        )
        assert batches(result)[:2] == [(2, 1, 0, 12), (2, 1, 50, 62)]
        assert result.fleet.rank == (1, 2, 0)

    def test_cheap_gpus_take_all_of_a_light_load_and_fast_ones_help_under_a_heavy_one(self) -> None:
        gpus = [("slow", 2), ("fast", 2)]
        light = run(*range(0, 4000, 40), gpus=gpus, policy="eager")
        assert set(light.batch_gpu.tolist()) == {0}
        heavy = run(*np.arange(0, 2000, 1.5), gpus=gpus, policy="eager")
        assert set(heavy.batch_gpu.tolist()) == {0, 1, 2, 3}
        assert heavy.attainment > 0.99

    def test_gpus_alike_by_number_or_by_class_are_the_same(self) -> None:
        by_number, by_class = run(*range(50), gpus=3), run(*range(50), gpus=[("fast", 1), ("fast", 2)])
        assert batches(by_number) == batches(by_class)

    def test_a_baseline_takes_gpus_of_one_class_only(self) -> None:
        arrivals_ns, choices = np.zeros(1, np.int64), np.zeros(1, np.int32)
        result = scheduler("shepherd")([MODEL], [("slow", 2)], arrivals_ns, choices)
        assert (result.batch_end_ns.tolist(), result.gpus) == ([12 * MS], 2)
        with pytest.raises(BadInput, match=r"for GPUs of one class: \['fast', 'slow'\]"):
            scheduler("shepherd")([MODEL], [("slow", 2), ("fast", 2)], arrivals_ns, choices)
        with pytest.raises(BadInput, match="leave noise out"):
            scheduler("shepherd", noise=0.1)

    def test_slower_gpus_add_goodput_within_the_bound_of_the_mix(self) -> None:
        model = SimModel("m", FAST, 100 * MS, {"slow": SLOW})
        options: dict[str, Any] = {"policy": "eager", "seconds": 3.0, "seeds": 1}
        fast = goodput([model], [("fast", 4)], **options)
        mixed = goodput([model], [("fast", 4), ("slow", 4)], **options)
        assert fast.goodput_hz < mixed.goodput_hz < mixed.bound_hz


class TestEvents:
    def test_a_gpu_that_is_added_takes_batches_from_then_on(self) -> None:
        # The queue of the one GPU lets the third wait until 12; a second GPU comes at 3.
        alone = run(0, 1, 2, policy="eager")
        assert batches(alone) == [(0, 1, 0, 6), (0, 2, 6, 13)]
        helped = run(0, 1, 2, policy="eager", events=[AddGpu(3 * MS)])
        assert batches(helped) == [(0, 1, 0, 6), (1, 2, 3, 10)]
        assert changes(helped) == [(0, 0, "ready"), (3, 1, "ready")]

    def test_an_added_gpu_of_a_lower_rank_fills_first(self) -> None:
        result = run(0, 20, gpus=[("fast", 1)], policy="eager", events=[AddGpu(10 * MS, "slow", rank=-1)])
        assert batches(result) == [(0, 1, 0, 6), (1, 1, 20, 32)]

    @pytest.mark.parametrize("noise", [0.0, 1e-12])
    def test_a_drained_gpu_ends_its_batch_gets_nothing_more_and_leaves(self, noise: float) -> None:
        result = run(0, 1, 10, gpus=2, policy="eager", noise=noise, events=[DrainGpu(4 * MS, 0)])
        assert batches(result) == [(0, 1, 0, 6), (1, 1, 1, 7), (1, 1, 10, 16)]
        assert changes(result) == [(0, 0, "ready"), (0, 1, "ready"), (4, 0, "drain"), (6, 0, "leave")]

    @pytest.mark.parametrize("noise", [0.0, 1e-12])
    def test_requests_of_a_lost_gpu_are_queued_again(self, noise: float) -> None:
        result = run(0, 1, gpus=2, policy="eager", noise=noise, events=[RemoveGpu(4 * MS, 0)])
        assert batches(result) == [(0, 1, 0, 4), (1, 1, 1, 7), (1, 1, 7, 13)]
        assert result.batch_lost.tolist() == [True, False, False]
        assert result.request_batch.tolist() == [2, 1]
        assert result.outcome.tolist() == [Outcome.OK, Outcome.OK]
        assert changes(result)[-1] == (4, 0, "leave")

    @pytest.mark.parametrize("noise", [0.0, 1e-12])
    def test_a_batch_that_ends_as_its_gpu_goes_has_ended(self, noise: float) -> None:
        result = run(0, policy="eager", noise=noise, reply_ns=MS, events=[RemoveGpu(6 * MS, 0)])
        assert result.outcome.tolist() == [Outcome.OK]
        assert not result.batch_lost.any()

    def test_without_gpus_requests_are_dropped_when_their_time_is_over(self) -> None:
        result = run(0, 1, 30, policy="eager", events=[RemoveGpu(4 * MS, 0), AddGpu(40 * MS)])
        assert result.outcome.tolist() == [Outcome.DROPPED, Outcome.DROPPED, Outcome.OK]
        assert batches(result)[-1] == (1, 1, 40, 46)

    def test_a_fleet_may_begin_with_no_gpu(self) -> None:
        result = run(0, gpus=0, policy="eager", events=[AddGpu(5 * MS)])
        assert batches(result) == [(0, 1, 5, 11)]

    def test_requests_of_a_withdrawn_model_are_cancelled_and_later_ones_rejected(self) -> None:
        events = [RemoveModel(4 * MS, 0), AddModel(20 * MS, 0)]
        result = run(0, 1, 10, 30, policy="eager", events=events)
        kinds = [Outcome.OK, Outcome.CANCELLED, Outcome.REJECTED, Outcome.OK]
        assert result.outcome.tolist() == kinds
        assert result.decided_ns.tolist() == [0, 4 * MS, 10 * MS, 30 * MS]

    def test_requests_before_a_model_is_added_are_rejected(self) -> None:
        assert run(0, 10, events=[AddModel(5 * MS, 0)]).outcome.tolist() == [Outcome.REJECTED, Outcome.OK]

    def test_a_withdrawn_model_is_cancelled_when_its_gpu_goes_too(self) -> None:
        result = run(0, policy="eager", events=[RemoveModel(2 * MS, 0), RemoveGpu(4 * MS, 0)])
        assert result.outcome.tolist() == [Outcome.CANCELLED]
        assert batches(result) == [(0, 1, 0, 4)]

    @pytest.mark.parametrize("policy", ["deferred", "adaptive", "eager"])
    @pytest.mark.parametrize("noise", [0.0, 0.2])
    def test_every_request_ends_once_while_gpus_and_models_come_and_go(self, policy: str, noise: float) -> None:
        rng = np.random.default_rng(3)
        events: list[Event] = [RemoveModel(900 * MS, 1), AddModel(1_200 * MS, 1)]
        there, number = [0, 1, 2, 3], 4
        for time_ns in np.sort(rng.integers(0, 2_000 * MS, 60)).tolist():
            if len(there) > 2 and rng.random() < 0.5:
                gpu = there.pop(int(rng.integers(len(there))))
                events.append((DrainGpu if rng.random() < 0.5 else RemoveGpu)(time_ns, gpu))
            else:
                events.append(AddGpu(time_ns, ("slow", "fast")[int(rng.integers(2))], int(rng.integers(-2, 3))))
                there.append(number)
                number += 1
        result = crowd(events, policy=policy, noise=noise, control_ns=MS, reply_ns=MS)
        check_books(result)
        assert result.batch_lost.any()
        assert min(result.count(kind) for kind in (Outcome.OK, Outcome.DROPPED, Outcome.REJECTED)) > 0
        life: dict[int, dict[str, int]] = {}
        for change in result.changes:
            life.setdefault(change.gpu, {})[change.event] = change.time_ns
        for gpu, times in life.items():
            mine = result.batch_gpu == gpu
            assert (result.batch_dispatch_ns[mine] >= times["ready"]).all()
            assert (result.batch_dispatch_ns[mine] <= times.get("drain", times.get("leave", 2**62))).all()
            assert (result.batch_end_ns[mine] <= times.get("leave", 2**62)).all()
        again = crowd(events, policy=policy, noise=noise, control_ns=MS, reply_ns=MS)
        assert again.outcome.tobytes() == result.outcome.tobytes()
        assert again.batch_start_ns.tobytes() == result.batch_start_ns.tobytes()

    @pytest.mark.parametrize(
        ("event", "message"),
        [
            (DrainGpu(0, 7), "that GPU is not there then"),
            (RemoveGpu(0, 4), "that GPU is not there then"),
            (AddGpu(-1), "times are ns from 0 on"),
            (AddModel(0, 3), "there are 3 models"),
            (AddGpu(0, "slow"), None),
        ],
    )
    def test_an_event_that_finds_nothing_to_change_is_named(self, event: Event, message: str | None) -> None:
        if message is None:
            crowd([event])
        else:
            with pytest.raises(BadInput, match=message):
                crowd([event])

    def test_a_gpu_drains_once_and_goes_once(self) -> None:
        with pytest.raises(BadInput, match="or drains already"):
            plan_fleet(1, 1, [DrainGpu(1, 0), DrainGpu(2, 0)])
        with pytest.raises(BadInput, match="that GPU is not there then"):
            plan_fleet(1, 1, [RemoveGpu(1, 0), RemoveGpu(2, 0)])
        with pytest.raises(BadInput, match="served already"):
            plan_fleet(1, 1, [RemoveModel(1, 0), AddModel(2, 0), AddModel(3, 0)])
        with pytest.raises(BadInput, match="not served then"):
            plan_fleet(1, 1, [RemoveModel(1, 0), RemoveModel(2, 0)])


def test_a_recorded_run_shows_the_life_of_each_gpu_and_the_batches_that_were_lost(tmp_path: Path) -> None:
    events = [RemoveGpu(4 * MS, 0), AddGpu(5 * MS, "fast", rank=-1)]
    result = run(0, 1, 20, gpus=[("slow", 1), ("fast", 1)], policy="eager", events=events)
    record(result, tmp_path)
    recorded = open_run(tmp_path)
    assert recorded.gpus.select("time_ns", "gpu", "event", "rank", "gpu_class").collect().rows() == [
        (0, 0, "ready", 1, "slow"),
        (0, 1, "ready", 2, "fast"),
        (4 * MS, 0, "leave", 1, "slow"),
        (5 * MS, 2, "ready", 0, "fast"),
    ]
    rows = recorded.batches.select("gpu", "start_ns", "end_ns", "outcome").collect().rows()
    assert rows[0] == (0, None, None, "lost")
    assert recorded.requests.filter(pl.col("id") == 0).collect()["gpu"].to_list() == [2]
    assert recorded.info["models"][0]["profiles"]["slow"]["alpha_ms"] == 2
    work = read_workload(tmp_path)
    assert work.models[0].profile_on("slow") == SLOW
    assert work.models[0].profile_on("fast") == FAST


def test_gpus_are_written_as_a_number_or_by_class() -> None:
    assert parse_gpus("8") == 8
    assert parse_gpus("4xfast, 8xslow") == [("fast", 4, 0), ("slow", 8, 0)]
    for text in ("", "fast", "4x", "4xfast,,", "4fast"):
        with pytest.raises(BadInput, match="cannot be read"):
            parse_gpus(text)
    with pytest.raises(BadInput, match="there are 0 GPUs"):
        plan_fleet(0, 1)
    with pytest.raises(BadInput, match="give a number, or groups"):
        plan_fleet([("fast",)], 1)  # type: ignore[list-item]
    with pytest.raises(BadInput, match="a number of at least 0"):
        plan_fleet([("fast", -1)], 1)


class TestCommand:
    def invoke(self, tmp_path: Path, *options: str) -> Any:
        trace = tmp_path / "trace"
        if not trace.exists():
            write_trace(trace, pl.DataFrame({"model": ["m", "m"], "arrival_ns": [0, MS]}))
        return CliRunner().invoke(symphony, ["simulate", str(trace), "--policy", "eager", "--slo", "25ms", *options])

    def test_simulates_a_mix_of_classes(self, tmp_path: Path) -> None:
        profiles = ("--profile", "fast=1,5", "--profile", "slow=2,10")
        found = self.invoke(tmp_path, "--gpus", "1xslow,1xfast", *profiles, "--folder", str(tmp_path / "run"))
        assert found.exit_code == 0, found.output
        ends = open_run(tmp_path / "run").batches.select("gpu", "end_ns").collect().rows()
        assert sorted(ends) == [(0, 12 * MS), (1, 7 * MS)]

    def test_a_plain_profile_holds_on_all_classes_that_have_none_of_their_own(self, tmp_path: Path) -> None:
        found = self.invoke(tmp_path, "--gpus", "1xslow,1xfast", "--profile", "1,5", "--profile", "slow=2,10")
        assert found.exit_code == 0, found.output

    def test_a_class_without_a_profile_and_a_profile_without_a_class_are_named(self, tmp_path: Path) -> None:
        one = ("--profile", "fast=1,5")
        assert "no profile for GPU class 'slow'" in self.invoke(tmp_path, "--gpus", "1xslow,1xfast", *one).output
        assert "has no GPU class 'fast'" in self.invoke(tmp_path, "--gpus", "1xslow", *one).output


def test_times_of_events_are_on_the_clock_of_the_arrivals_and_may_come_before_them() -> None:
    result = run(100, gpus=2, policy="eager", events=[DrainGpu(5 * MS, 0)])
    assert batches(result) == [(1, 1, 100, 106)]
    assert changes(result) == [(5, 0, "ready"), (5, 1, "ready"), (5, 0, "drain"), (5, 0, "leave")]
    assert result.span_ns == 6 * MS


def test_a_model_needs_one_largest_batch_on_all_classes() -> None:
    model = SimModel("m", FAST, 25 * MS, {"slow": LatencyProfile(2, 10, max_batch=8)})
    arrivals: npt.NDArray[np.int64] = np.zeros(1, np.int64)
    with pytest.raises(BadInput, match=r"profiles of m have max_batch \[8, 128\]"):
        simulate([model], [("fast", 1), ("slow", 1)], arrivals, np.zeros(1, np.int32))


@pytest.mark.parametrize("policy", ["deferred", "adaptive"])
@pytest.mark.parametrize("order", [("fast", "slow"), ("slow", "fast")])
def test_slow_gpus_add_to_what_fast_ones_serve_whichever_fill_first(policy: str, order: tuple[str, str]) -> None:
    # 8 fast GPUs alone serve 5,400 requests/s within 25 ms, by the bound at most 5,875; with 8 of half the speed 8,137.
    model = SimModel("m", LatencyProfile(1.053, 5.072), 25 * MS, {"slow": LatencyProfile(2.106, 10.144)})
    arrivals_ns, choices = mix_arrivals(1, 7_000, 2.0)
    result = simulate([model], [(name, 8) for name in order], arrivals_ns, choices, policy=policy)
    assert result.attainment > 0.99
