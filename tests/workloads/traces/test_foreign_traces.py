"""Parquet files of others as traces, and the one that ships: every command that reads traces takes or refuses them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from symphony_dask.errors import BadInput
from symphony_dask.trace import read_trace
from workloads import data
from workloads.cli.analysis.plan import plan
from workloads.cli.analysis.whatif import whatif
from workloads.cli.autoscale_simulate import simulate as autoscale_simulate
from workloads.cli.simulate import simulate
from workloads.cli.trace.group import trace
from workloads.simulation.workload import read_workload
from workloads.traces.transform import cut, synth

BUNDLED = str(Path(data.__file__).with_name(data.AZURE_LLM_FILE))


@pytest.mark.parametrize(
    ("command", "arguments", "key"),
    [
        (trace, ["info", BUNDLED], "requests"),
        (simulate, [BUNDLED, "--gpus", "1"], "requests"),
        (plan, [BUNDLED, "--profile", "1.053,5.072"], "requests"),
        (whatif, [BUNDLED, "--gpus", "1"], None),
        (autoscale_simulate, [BUNDLED], "requests"),
    ],
)
def test_the_trace_that_ships_is_taken_by(command: Any, arguments: list[str], key: str | None) -> None:
    result = CliRunner().invoke(command, [*arguments, "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert (found if key is not None else found["rows"][-1])["requests"] == 8819


def test_a_file_without_models_is_of_one_that_is_named_after_it() -> None:
    assert [model.name for model in read_workload(BUNDLED).models] == ["azure_llm_2023_code"]
    assert read_trace(BUNDLED)["model"].unique().to_list() == ["azure_llm_2023_code"]


def table(**columns: Any) -> Any:
    return pa.table({"arrival_ns": [1, 2], **columns})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (table(model=[["a"], ["b"]]), "column model of .* is list<.*: it must be text"),
        (table(model=[b"a", b"\xff"]), "column model of .* is binary: it must be text"),
        (table(model=[True, False]), "column model of .* is bool: it must be text"),
        (table(model=["a", None]), "has rows (whose model is null|without model)"),
        (table(model=["it's", "x\ny"]), "model name in .* 'x.ny': it has characters that cannot be printed"),
        (pa.table({"time": [1]}), "has no column arrival_ns: it has 'time'; symphony trace import parquet can name"),
        (pa.table({"arrival_ns": [1.5]}), "column arrival_ns of .* is double: it must be an integer"),
        (pa.table({"arrival_ns": pa.array([1], pa.timestamp("ns"))}), "is timestamp.ns.: it must be an integer"),
        (pa.table({"arrival_ns": pa.array([2**64 - 1], pa.uint64())}), "18446744073709551615"),
        (pa.table({"arrival_ns": [2**63 - 1]}), "column arrival_ns of .* has 9223372036854775807: the most is 2..62"),
        (table(deadline_ns=[-(2**63), 5]), "column deadline_ns of .* has -9223372036854775808"),
        (pa.table({"arrival_ns": [-1]}), "arrival_ns is below 0"),
        (pa.table({"arrival_ns": pa.nulls(2)}), "arrival_ns is null"),
        (pa.table({"arrival_ns": pa.array([], pa.int64())}), "holds no requests"),
        (pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["arrival_ns"] * 2), "has 2 columns arrival_ns"),
    ],
)
def test_a_parquet_file_that_is_no_trace_is_refused_in_one_line(tmp_path: Path, given: Any, message: str) -> None:
    pq.write_table(given, tmp_path / "t.parquet")
    with pytest.raises(BadInput, match=message) as raised:
        read_workload(tmp_path / "t.parquet")
    assert len(str(raised.value).splitlines()) == 1
    told = CliRunner().invoke(trace, ["info", str(tmp_path / "t.parquet")])
    assert isinstance(told.exception, SystemExit | None)
    assert "Traceback" not in told.output


def test_a_trace_shorter_than_a_boot_tells_no_saving_and_says_why(tmp_path: Path) -> None:
    """As the demo's run: "GPU-hours 0.0, saving -120.0%"."""
    synth(tmp_path / "long", requests=2000, rate_hz=50.0, slo_ns=60_000_000)
    cut(tmp_path / "long", tmp_path / "short", end_ns=30_000_000_000)
    found = CliRunner().invoke(autoscale_simulate, [str(tmp_path / "short"), "--json"])
    row = json.loads(found.stdout)
    assert row["saving"] is None
    assert row["why_no_saving"] == (
        "the trace lasts 30s, less than a GPU takes to boot (120s) and to be let go again (300s)"
    )
    shown = CliRunner().invoke(autoscale_simulate, [str(tmp_path / "short"), "--markdown"]).stdout
    assert "| load_proportional |  | 0.00833 | – |" in shown
    assert "no saving can be told: the trace lasts 30s" in shown
    told = CliRunner().invoke(
        autoscale_simulate, [str(tmp_path / "short"), "--boot", "5s", "--set", "scale_in_window_s=10", "--json"]
    )
    assert json.loads(told.stdout)["saving"] is not None
