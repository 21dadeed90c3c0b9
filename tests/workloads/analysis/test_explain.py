from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from symphony_dask.cli.main import symphony
from symphony_dask.errors import BadInput
from symphony_dask.trace import BatchOutcome, Outcome, Recorder, Run, open_run, write_trace
from symphony_dask.trace.validate import problems
from tests.helpers.runs.simulated import MODEL, MS, crowd, simulated
from workloads.analysis.causes import CAUSES, causes, idleness, label, top
from workloads.analysis.explain import explain
from workloads.analysis.gpu_presence import presence_intervals
from workloads.traces.digest import digest


def live(folder: Path, rows: list[dict[str, int]], batch: dict[str, int], label: str | None = None) -> Run:
    """A recorded run of model "m" on GPU 0, all of whose requests are in the one ``batch``; times are in ms."""
    model = {"name": "m", "slo_ns": 25 * MS, "profiles": {"gpu": MODEL.profile.to_dict()}}
    recorder = Recorder(folder, {"models": [model], **({} if label is None else {"label": label})})
    code = recorder.add_model("m")
    recorder.record_gpu_event(time_ns=0, gpu=0, event="ready", rank=0, gpu_class="gpu", worker="w", host="h")
    times = ("arrival", "deadline", "dispatch", "start", "end", "reply")
    defaults = {"client": 0, "model": code, "batch": 0, "gpu": 0, "bytes": 0, "outcome": Outcome.LATE}
    full = [{**defaults, "id": i, **row} for i, row in enumerate(rows)]
    columns = {k: np.array([r[k] for r in full]) for k in (*defaults, "id")}
    columns |= {f"{t}_ns": np.array([r[t] * MS for r in full]) for t in times}
    recorder.record_requests(columns)
    of_batch = {"batch": 0, "model": code, "gpu": 0, "size": len(rows), "outcome": BatchOutcome.DONE}
    times = ("dispatch", "window_open", "window_close", "planned_start", "planned_end", "start", "end")
    columns = {k: np.array([v]) for k, v in of_batch.items()}
    recorder.record_batches(columns | {f"{t}_ns": np.array([batch[t] * MS]) for t in times})
    recorder.close()
    return open_run(folder)


BATCH = {"dispatch": 1, "window_open": 1, "window_close": 2, "planned_start": 2, "planned_end": 9, "start": 2, "end": 9}


@pytest.mark.parametrize(
    ("times", "planned_end", "cause"),
    [
        ({"arrival": 5, "deadline": 10, "start": 2, "end": 9, "reply": 11}, 9, "no-time"),  # 5 ms, and l(1) is 6
        ({"start": 2, "end": 9, "reply": 11}, 12, "planned-late"),
        ({"start": 6, "end": 14, "reply": 16}, 9, "started-late"),  # 4 late, 1 longer, 2 back
        ({"start": 3, "end": 15, "reply": 17}, 9, "ran-long"),  # 1 late, 5 longer, 2 back
        ({"start": 2, "end": 9, "reply": 12}, 9, "way-back"),
    ],
)
def test_a_late_request_has_the_cause_of_its_largest_delay(
    tmp_path: Path, times: dict[str, int], planned_end: int, cause: str
) -> None:
    row = {"arrival": 0, "deadline": 10, "dispatch": 1, **times}
    run = live(tmp_path / "run", [row], {**BATCH, "planned_end": planned_end, "start": row["start"], "end": row["end"]})
    assert [found["cause"] for found in top(run, "late")] == [cause]
    assert explain(run, 0)["cause"] == cause


def test_a_request_that_estimates_refused_on_an_idle_gpu_is_told_so(tmp_path: Path) -> None:
    ran = {"arrival": 0, "deadline": 25, "dispatch": 1, "start": 2, "end": 23, "reply": 24, "outcome": Outcome.OK}
    never = {"batch": -1, "gpu": -1, "dispatch": -1, "start": -1, "end": -1}
    dropped = {"arrival": 40, "deadline": 55, "reply": 41, "outcome": Outcome.DROPPED, **never}
    # A batch of one took 21 ms where its profile says 7 (of 2): l(1) = 6 is thought to be 18, and 15 are left.
    run = live(tmp_path / "run", [ran, dropped], {**BATCH, "end": 23})
    assert [found["cause"] for found in top(run, "dropped")] == ["estimates"]
    assert "took longer than its profile" in "\n".join(explain(run, 1)["sentences"])


def test_what_a_run_is_stands_in_its_label(tmp_path: Path) -> None:
    row = {"arrival": 0, "deadline": 10, "dispatch": 1, "start": 2, "end": 9, "reply": 12}
    assert label(live(tmp_path / "live", [row], BATCH)) == "live"
    assert label(live(tmp_path / "emulated", [row], BATCH, "emulated GPUs, everything else real")) == "emulated"
    assert label(simulated(tmp_path / "simulated", 0)) == "simulated"
    write_trace(tmp_path / "trace", pl.DataFrame({"model": ["m"], "arrival_ns": [0]}))
    assert label(open_run(tmp_path / "trace")) == "imported"


def test_a_request_that_waits_for_its_window_is_told_in_order(tmp_path: Path) -> None:
    run = simulated(tmp_path / "run", 0, 10, policy="deferred")  # 25 - l(3) = 17, and 17 + l(2) = 24
    found = explain(run, 1)
    assert (found["label"], found["outcome"], found["deadline_ms"], found["reply_ms"]) == ("simulated", "ok", 25, 14)
    assert found["batch"] == {
        "batch": 0, "gpu": 0, "size": 2, "outcome": "done", "rule": "window", "window_open_ms": 7, "window_close_ms": 8,
        "dispatch_ms": 7, "planned_start_ms": 7, "planned_end_ms": 14, "start_ms": 7, "end_ms": 14,
    }  # fmt: skip
    text = "\n".join(found["sentences"])
    for part in (
        "Request 1 of m arrived 0.010000 s into the simulated run and was due 25.00 ms later",
        "window of its batch opened at +7.00 ms and closed at +8.00 ms",
        "dispatched at +7.00 ms to GPU 0, with 1 other request of m, as batch 0",
        "when its window opened",
        "What let it start is the rule window: its window opened, as one more request could not have joined it in time",
        "a batch of 2 takes 7ms, and one of 3 8ms",
        "ran it from +7.00 ms to +14.00 ms",
        "answered at +14.00 ms, 11.00 ms before its deadline",
        "GPU 0 (gpu) meanwhile ran 2 of m from +7.00 ms to +14.00 ms (batch 0)",
    ):
        assert part in text


@pytest.mark.parametrize(
    ("policy", "rule", "text"),
    [
        ("adaptive", "packing", "fewer GPUs were at work than waiting for windows would use"),
        ("deferred", "window", "one more request could not have joined it in time"),
        ("eager", "eager", "the policy starts whatever is queued"),
        ("latest", "latest", "its window was about to close"),
        ("timeout", "timeout", "its first request had waited the part of its SLO that the policy says"),
    ],
)
def test_the_rule_that_let_a_batch_start_is_named(policy: str, rule: str, text: str, tmp_path: Path) -> None:
    run = simulated(tmp_path / "run", 0, policy=policy)
    assert run.batches.collect()["rule"].to_list() == [rule]
    result = CliRunner().invoke(symphony, ["explain", str(run.folder), "--request", "0"])
    assert f"What let it start is the rule {rule}: " in result.stdout
    assert text in result.stdout


def without_rules(run: Run) -> Run:
    """As an earlier release recorded it."""
    part = Path(str(run.folder)) / "batches-000001.parquet"
    pq.write_table(pq.read_table(part).drop_columns("rule"), part)
    return open_run(str(run.folder))


def test_a_run_of_before_rules_is_explained_without_them(tmp_path: Path) -> None:
    old = without_rules(simulated(tmp_path / "run", 0, policy="eager"))
    assert old.batches.collect()["rule"].to_list() == [None]
    found = explain(old, 0)
    assert found["batch"]["rule"] is None
    text = "\n".join(found["sentences"])
    assert "What let it start" not in text
    assert "for the policy eager starts early" in text
    assert problems(str(old.folder)) == []
    assert len(digest(str(old.folder))) == 64


def test_a_batch_that_leaves_late_in_its_window_says_that_the_gpu_was_busy(tmp_path: Path) -> None:
    slos = np.array([25_000_000, 11_500_000])  # the GPU is busy from 18 to 24; the second's window is 23.5 to 24.5
    run = simulated(tmp_path / "run", 0, 19, policy="deferred", slos_ns=slos)
    text = "\n".join(explain(run, 1)["sentences"])
    assert "It left 0.50 ms after the opening, inside the window, because the only GPU was busy until then" in text


def test_a_batch_that_leaves_before_its_window_says_that_the_policy_is_eager(tmp_path: Path) -> None:
    run = simulated(tmp_path / "run", 0, 1, policy="eager")  # the first runs until 6; the window opens at 26 - l(2)
    early = "the rule eager: the policy starts whatever is queued.\nThat was 13.00 ms before the opening"
    assert f"{early}, as soon as a GPU was free: the only GPU was busy from" in "\n".join(explain(run, 1)["sentences"])


def test_a_request_dropped_behind_a_busy_gpu_says_so(tmp_path: Path) -> None:
    slos = np.array([25, 8], np.int64) * MS  # the GPU is free at 6, the second would be done at 12, and is due at 9
    run = simulated(tmp_path / "run", 0, 1, policy="eager", slos_ns=slos)
    found = explain(run, 1)
    assert (found["outcome"], found["cause"], found["batch"]) == ("dropped", "all-busy", None)
    assert "all GPUs busy from window opening to closing" in "\n".join(found["sentences"])
    assert [b["batch"] for b in found["busy"]] == [0]


def test_a_request_with_less_than_l1_left_had_no_time(tmp_path: Path) -> None:
    run = simulated(tmp_path / "run", 0, slos_ns=np.array([5 * MS]))
    assert causes(run, "dropped")["cause"].to_list() == ["no-time"]


def test_causes_add_up_to_the_outcomes_of_a_crowded_run(tmp_path: Path) -> None:
    for policy, options in (("deferred", {}), ("adaptive", {"noise": 0.3, "reply_ns": MS})):
        run = crowd(tmp_path / policy, policy=policy, **options)
        for outcome in CAUSES:
            rows = top(run, outcome)
            assert sum(row["requests"] for row in rows) == getattr(run.summary(), outcome)
            assert sum(row["share"] for row in rows) == pytest.approx(1 if rows else 0)
            assert all(sum(row["models"].values()) == row["requests"] for row in rows)
        # Adaptive gives an idle GPU to the larger of two batches that cannot both be in time.
        assert top(run, "dropped")[0]["cause"] in ("all-busy", "not-taken")[: 2 if policy == "adaptive" else 1]


def test_each_request_of_a_crowded_run_can_be_explained(tmp_path: Path) -> None:
    run = crowd(tmp_path / "run", noise=0.3)
    whole = pl.concat([causes(run, outcome) for outcome in CAUSES])
    for request in whole["id"].to_list()[::100]:
        assert explain(run, request)["cause"] == whole.filter(pl.col("id") == request)["cause"][0]


def test_idle_gpus_are_those_ready_without_a_batch(tmp_path: Path) -> None:
    steps = idleness(simulated(tmp_path / "run", 0, 1, gpus=2, policy="eager"))  # from 0 to 6, and from 1 to 7
    assert steps.times.tolist() == [0, 1 * MS, 6 * MS, 7 * MS]
    assert steps.idle.tolist() == [1, 0, 1, 2]
    assert steps.ready.tolist() == [2, 2, 2, 2]


def test_a_gpu_number_that_comes_back_is_ready_again(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "run", {})
    events = ((0, 0, "ready"), (0, 1, "ready"), (10, 0, "drain"), (20, 0, "leave"), (30, 0, "ready"), (40, 1, "leave"))
    for time, gpu, event in events:
        recorder.record_gpu_event(time_ns=time, gpu=gpu, event=event, rank=gpu, gpu_class="a", worker="w", host="h")
    code = recorder.add_model("m")
    times = {"dispatch_ns": [2, 32], "start_ns": [2, 32], "end_ns": [15, -1], "planned_start_ns": [2, 32]}
    times |= {"planned_end_ns": [15, 99], "window_open_ns": [1, 31], "window_close_ns": [3, 33]}
    batches = {"batch": [0, 1], "model": [code, code], "gpu": [0, 1], "size": [1, 1], "outcome": [0, 2], **times}
    recorder.record_batches({name: np.array(values) for name, values in batches.items()})
    recorder.close()
    run = open_run(tmp_path / "run")
    assert presence_intervals(run).select("gpu", "ready_ns", "until_ns", "leave_ns").rows() == [
        (0, 0, 10, 20),
        (0, 30, None, None),
        (1, 0, 40, 40),
    ]
    steps = idleness(run)  # GPU 0 is busy from 2 until it drains at 10; GPU 1 from 32 until it is lost at 40
    assert steps.times.tolist() == [0, 2, 10, 30, 32, 40]
    assert steps.ready.tolist() == [2, 2, 1, 2, 2, 1]
    assert steps.idle.tolist() == [2, 1, 1, 2, 1, 1]


def test_the_command_tells_one_request_or_the_causes(tmp_path: Path) -> None:
    crowd(tmp_path / "run")
    runner = CliRunner()
    told = runner.invoke(symphony, ["explain", str(tmp_path / "run"), "--why", "dropped", "--json"])
    found = json.loads(told.output)
    assert found["label"] == "simulated"
    example = str(found["rows"][0]["example"])
    one = runner.invoke(symphony, ["explain", str(tmp_path / "run"), "--request", example, "--json"])
    assert json.loads(one.output)["cause"] == found["rows"][0]["cause"]
    assert "was dropped" in runner.invoke(symphony, ["explain", str(tmp_path / "run"), "--request", example]).output
    assert "all GPUs busy" in runner.invoke(symphony, ["explain", str(tmp_path / "run"), "--why", "dropped"]).output
    assert "either --request ID or --why" in runner.invoke(symphony, ["explain", str(tmp_path / "run")]).output


def test_of_many_gpus_its_own_is_told_first_and_the_rest_are_counted(tmp_path: Path) -> None:
    run = simulated(tmp_path / "run", *range(20), gpus=12, policy="eager")  # 6 ms each: GPUs 0 to 5 are busy
    sentences = explain(run, 8)["sentences"]
    of_gpus = [text for text in sentences if text.startswith("GPU ")]
    assert len(of_gpus) == 8
    assert of_gpus[0].startswith("GPU 2 (gpu) meanwhile ran 1 of m from")
    assert sentences[-1] == "Of the 4 other GPUs 4 were idle all the while, the others ran batches."


def test_an_unknown_request_is_refused_with_the_ids_there_are(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no request 7: its ids run from 0 to 1"):
        explain(simulated(tmp_path / "run", 0, 1), 7)
