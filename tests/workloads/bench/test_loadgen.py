"""``symphony bench loadgen``, small, and what is read of LoadGen's log."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from symphony_dask.errors import BadInput
from tests.helpers.command_line import printed, refusal
from workloads.bench.loadgen import bench_loadgen, read_results


def log(folder: Path, **entries: Any) -> Path:
    """LoadGen's detailed log with these entries."""
    file = folder / "mlperf_log_detail.txt"
    lines = [f":::MLLOG {json.dumps({'key': key, 'value': value})}\n" for key, value in entries.items()]
    file.write_text("".join(["something else\n", *lines]))
    return file


def test_results_are_read_from_the_detailed_log(tmp_path: Path) -> None:
    found = read_results(log(tmp_path, result_validity="VALID", result_query_count=500))
    assert found == {"result_validity": "VALID", "result_query_count": 500}


def test_a_run_without_a_result_is_refused_with_what_loadgen_says(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"LoadGen gave no result \(too few samples\): run it for longer"):
        read_results(log(tmp_path, error_runtime="too few samples"))


def test_where_loadgen_is_missing_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlperf_loadgen", None)
    said = refusal("bench", "loadgen")
    assert "pip install 'symphony-dask[loadgen]'" in said
    assert len(said.splitlines()) == 1


def test_what_cannot_be_measured_is_refused() -> None:
    with pytest.raises(BadInput, match="gpus=0"):
        bench_loadgen(gpus=0)
    with pytest.raises(BadInput, match="rates=none"):
        bench_loadgen(())


@pytest.mark.slow
def test_loadgen_judges_a_run_of_the_server_scenario() -> None:
    pytest.importorskip("mlperf_loadgen", reason="needs mlcommons-loadgen, of the extra loadgen")
    arguments = ("--rate", "100", "--slo", "500ms", "--runs", "1", "--seconds", "3", "--json")
    found = printed("bench", "loadgen", *arguments)
    (row,) = found["rows"]
    assert row["requests"] >= 300
    assert sum(row["outcomes"].values()) == row["requests"]
    # LoadGen counts from when a request was scheduled to arrive, the client from submit.
    assert 5.0 < row["p50_ms"] <= row["loadgen_p50_ms"]
    assert found["valid"] == row["valid"]
    assert found["label"].startswith("emulated")
