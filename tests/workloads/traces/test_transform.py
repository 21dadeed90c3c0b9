from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from click.testing import CliRunner

from symphony_dask.cli.main import symphony
from symphony_dask.errors import BadInput
from symphony_dask.trace import Recorder, count_requests, open_run, read_trace, write_trace
from symphony_dask.trace import folder as run_folder
from symphony_dask.trace.validate import problems
from tests.helpers.runs.tables import columns, wait_until
from workloads.traces import transform
from workloads.traces.info import info, trace_info
from workloads.traces.transform import cut, mix, scale, synth

S = 1_000_000_000


def example(folder: Path) -> Path:
    frame = {"model": ["a", "b", "a", "b"], "arrival_ns": [0, 1 * S, 4 * S, 6 * S], "bytes": [1, 2, 3, 4]}
    write_trace(folder, pl.DataFrame({**frame, "deadline_ns": [t + 7 for t in frame["arrival_ns"]]}))  # type: ignore[operator]
    return folder


def rows(path: Path) -> list[Any]:
    return read_trace(path).select("id", "model", "arrival_ns", "deadline_ns", "bytes").rows()


def test_scaling_time_keeps_gaps_in_proportion_and_slos_as_they_are(tmp_path: Path) -> None:
    facts = scale(example(tmp_path / "a"), tmp_path / "b", 4)
    assert rows(tmp_path / "b") == [
        (0, "a", 0, 7, 1),
        (1, "b", S // 4, S // 4 + 7, 2),
        (2, "a", S, S + 7, 3),
        (3, "b", 3 * S // 2, 3 * S // 2 + 7, 4),
    ]
    assert (facts["requests"], facts["span_s"]) == (4, 1.5)


def squared_cv(path: Path) -> float:
    gaps = np.diff(read_trace(path)["arrival_ns"].to_numpy())
    return float(gaps.var() / gaps.mean() ** 2)


def test_scaling_time_keeps_burstiness_and_thinning_takes_some_away(tmp_path: Path) -> None:
    synth(tmp_path / "a", requests=40_000, rate_hz=1000, shape=0.1, seed=2)
    scale(tmp_path / "a", tmp_path / "time", 0.25)
    facts = scale(tmp_path / "a", tmp_path / "thin", 0.25, method="thin", seed=1)
    assert squared_cv(tmp_path / "a") == pytest.approx(10, rel=0.1)
    assert squared_cv(tmp_path / "time") == pytest.approx(squared_cv(tmp_path / "a"), rel=1e-6)
    assert squared_cv(tmp_path / "thin") == pytest.approx(0.25 * 10 + 0.75, rel=0.15)
    assert facts["requests"] == pytest.approx(10_000, abs=350)


def test_a_window_and_models_are_cut_with_ids_kept(tmp_path: Path) -> None:
    example(tmp_path / "a")
    cut(tmp_path / "a", tmp_path / "b", start_ns=1 * S, end_ns=6 * S)
    assert rows(tmp_path / "b") == [(1, "b", 0, 7, 2), (2, "a", 3 * S, 3 * S + 7, 3)]
    cut(tmp_path / "a", tmp_path / "c", models=["b", "unheard-of"])
    assert [row[:3] for row in rows(tmp_path / "c")] == [(1, "b", S), (3, "b", 6 * S)]


def test_traces_are_mixed_in_order_of_arrival(tmp_path: Path) -> None:
    example(tmp_path / "a")
    write_trace(tmp_path / "b", pl.DataFrame({"model": ["b", "c"], "arrival_ns": [S, 5 * S]}))
    mix([tmp_path / "a", tmp_path / "b"], tmp_path / "one")
    found = [row[:3] for row in rows(tmp_path / "one")]
    assert found == [(0, "a", 0), (1, "b", S), (2, "b", S), (3, "a", 4 * S), (4, "c", 5 * S), (5, "b", 6 * S)]
    facts = mix([tmp_path / "a", tmp_path / "b"], tmp_path / "two", separate=True)
    assert [row[1] for row in rows(tmp_path / "two")] == ["1/a", "1/b", "2/b", "1/a", "2/c", "1/b"]
    assert facts["models"] == 4


def test_a_recorded_run_is_scaled_in_order_of_arrival(tmp_path: Path) -> None:
    with Recorder(tmp_path / "run", {}) as recorder:
        recorder.add_model("a")
        ended = {"arrival_ns": [30, 20], "deadline_ns": [60, 60], "reply_ns": [35, 50], "outcome": [0, 0]}
        recorder.record_requests(columns("requests", id=[1, 0], **ended))
    scale(tmp_path / "run", tmp_path / "trace", 2)
    assert rows(tmp_path / "trace") == [(0, "a", 10, 50, 0), (1, "a", 15, 45, 0)]
    assert read_trace(tmp_path / "trace")["outcome"].null_count() == 2


def test_a_synthetic_trace_has_rate_models_and_slo_and_the_same_bytes_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"rate_hz": 500.0, "models": 4, "popularity": "zipf", "slo_ns": 25, "seed": 3}
    facts = synth(tmp_path / "a", requests=20_000, **options)
    assert facts["mean_hz"] == pytest.approx(500, rel=0.03)
    assert (facts["requests"], facts["models"]) == (20_000, 4)
    frame = read_trace(tmp_path / "a")
    assert (frame["deadline_ns"] - frame["arrival_ns"]).unique().to_list() == [25]
    assert frame["model"].value_counts(sort=True)["model"].to_list() == [f"model-{m}" for m in range(4)]
    monkeypatch.setattr(transform, "_CHUNK_ROWS", 999)
    assert synth(tmp_path / "b", requests=20_000, **options) == facts
    parts = [(tmp_path / name / "requests-000001.parquet").read_bytes() for name in "ab"]
    assert parts[0] == parts[1]


def test_facts_of_a_trace_in_chunks_are_those_of_its_frame(tmp_path: Path) -> None:
    synth(tmp_path / "a", requests=5000, rate_hz=100, shape=0.2, models=3)
    assert trace_info(tmp_path / "a") == info(read_trace(tmp_path / "a"))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda a, b: scale(a, b, 0), "factor 0: it must be positive"),
        (lambda a, b: scale(a, b, 2, method="thin"), "at most 1 to thin"),
        (lambda a, b: scale(a, b, 1, method="copies"), "method 'copies' is unknown: use one of time, thin"),
        (lambda a, b: cut(a, b, start_ns=3, end_ns=2), "window from 3 to 2 ns is empty"),
        (lambda a, b: cut(a, b, models=["c"]), "no request is left"),
        (lambda a, b: synth(b, requests=0, rate_hz=1), "requests=0"),
        (lambda a, b: synth(b, requests=1, rate_hz=1, models=0), "at least 1"),
        (lambda a, b: synth(b, requests=10**9, rate_hz=1e-9), "beyond a century"),
        (lambda a, b: mix([a, b], b / "c"), "not a run folder"),
    ],
)
def test_what_cannot_be_done_is_refused_and_leaves_no_folder(tmp_path: Path, call: Any, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        call(example(tmp_path / "a"), tmp_path / "b")
    assert not (tmp_path / "b" / "run.json").exists()


def test_a_trace_and_a_recorded_run_are_valid(tmp_path: Path) -> None:
    assert problems(example(tmp_path / "a")) == []
    test_a_recorded_run_is_scaled_in_order_of_arrival(tmp_path)
    assert problems(tmp_path / "run") == []


def test_every_problem_of_a_folder_is_named(tmp_path: Path) -> None:
    part = example(tmp_path) / "requests-000001.parquet"
    frame = read_trace(tmp_path)
    unserved = {"client": pl.Int32, "gpu": pl.Int32}
    frame[::-1].with_columns(pl.col(name).cast(kind) for name, kind in unserved.items()).write_parquet(part)
    again = frame[:1].with_columns(deadline_ns=pl.lit(-1, pl.Int64), outcome=pl.lit("good"))
    again.write_parquet(tmp_path / "requests-000002.parquet")
    frame.drop("bytes").write_parquet(tmp_path / "requests-000003.parquet")
    (tmp_path / "requests-000004.parquet").write_bytes(b"PAR1")
    found = problems(tmp_path)
    assert found[:3] == [
        "requests-000001.parquet: rows of an imported trace are not in order of arrival",
        "requests-000002.parquet: outcome 'good' is unknown: it must be one of ok, late, dropped, rejected, failed, "
        "cancelled",
        "requests-000003.parquet: column bytes is missing",
    ]
    assert found[3].startswith("requests-000004.parquet: it cannot be read")
    assert found[4:] == ["run.json counts 4 requests, and the parts have 5"]


def test_ids_that_occur_twice_are_a_problem(tmp_path: Path) -> None:
    example(tmp_path)
    read_trace(tmp_path)[3:].write_parquet(tmp_path / "requests-000002.parquet")
    assert problems(tmp_path)[0] == "requests: some ids occur twice"


def test_a_killed_writer_leaves_whole_parts_of_a_run_that_is_not_closed(tmp_path: Path) -> None:
    program = (
        "import sys\nfrom workloads.traces.transform import synth\nsynth(sys.argv[1], requests=10**12, rate_hz=10**6)\n"
    )
    folder = tmp_path / "run"
    process = subprocess.Popen([sys.executable, "-c", program, str(folder)], cwd=Path(__file__).parents[3])
    try:
        wait_until(lambda: len(run_folder.parts(folder, "requests")) >= 2 or process.poll() is not None)
    finally:
        process.kill()
        assert process.wait() == -signal.SIGKILL
    assert open_run(folder).info["closed"] is False
    assert problems(folder) == []
    assert count_requests(folder) >= 2_000_000


def run(*args: object) -> Any:
    result = CliRunner().invoke(symphony, ["trace", *map(str, args), "--json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_every_command_prints_the_facts_of_what_it_wrote(tmp_path: Path) -> None:
    (tmp_path / "rates").write_text("3\nx\n5\n")
    keys = ["requests", "span_s", "models", "mean_hz", "peak_hz", "bad_rows"]
    found = run("import", "rate", tmp_path / "rates", tmp_path / "a", "--models", 2)
    assert list(found) == keys
    assert (found["requests"], found["bad_rows"]) == (8, 1)
    assert run("info", tmp_path / "a") == found
    assert run("scale", tmp_path / "a", tmp_path / "b", "--rate", 2)["span_s"] == pytest.approx(found["span_s"] / 2)
    assert run("slice", tmp_path / "a", tmp_path / "c", "--start", "0", "--end", "1s")["requests"] == 3
    assert run("mix", tmp_path / "a", tmp_path / "c", tmp_path / "d")["requests"] == 11
    assert run("synth", tmp_path / "e", "--requests", 9, "--rate", 5, "--slo", "25ms")["requests"] == 9
    assert run("validate", tmp_path / "e") == {"valid": True, "problems": [], "partial": None}


def test_validate_ends_with_1_where_something_is_wrong(tmp_path: Path) -> None:
    (example(tmp_path) / "requests-000001.parquet").unlink()
    result = CliRunner().invoke(symphony, ["trace", "validate", str(tmp_path)])
    assert (result.exit_code, result.stdout) == (1, "run.json counts 4 requests, and the parts have 0\n")


def test_bad_rows_are_shown_beside_the_facts(tmp_path: Path) -> None:
    (tmp_path / "rates").write_text("3\nx\n5\n")
    result = CliRunner().invoke(symphony, ["trace", "import", "rate", str(tmp_path / "rates"), str(tmp_path / "a")])
    assert "line 2: 'x' is not a whole number of at least 0" in result.stderr
    strict = ["trace", "import", "rate", str(tmp_path / "rates"), str(tmp_path / "b"), "--strict"]
    assert CliRunner().invoke(symphony, strict).exit_code == 1
