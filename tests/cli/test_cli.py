"""The command line, through its own entry point."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from click.testing import CliRunner

from symphony_dask.cli.main import symphony
from symphony_dask.trace import open_run


def run(*arguments: str) -> Any:
    result = CliRunner().invoke(symphony, list(arguments))
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def refusal(*arguments: str) -> str:
    result = CliRunner().invoke(symphony, list(arguments))
    assert result.exit_code == 1
    return result.output


def test_every_command_is_listed_with_its_help() -> None:
    result = CliRunner().invoke(symphony, ["--help"])
    assert result.exit_code == 0
    for name in ("bench", "bound", "demo", "gateway", "profile", "replay", "status", "trace"):
        assert f"  {name} " in result.output


def test_dask_symphony_is_the_same_group() -> None:
    out = subprocess.run(
        [sys.executable, "-m", "dask", "symphony", "--help"], capture_output=True, text=True, check=True
    )
    assert "  demo " in out.stdout


def test_importing_the_package_and_asking_for_help_load_nothing_heavy() -> None:
    program = (
        "import sys, symphony_dask\n"
        "from click.testing import CliRunner\n"
        "from symphony_dask.cli.main import symphony\n"
        "CliRunner().invoke(symphony, ['--help'])\n"
        "print([m for m in ('distributed', 'numba', 'numpy', 'polars', 'pyarrow', 'torch') if m in sys.modules])\n"
    )
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_the_bound_of_eight_gpus_is_the_published_one() -> None:
    found = run("bound", "--profile", "1.053,5.072", "--slo", "25ms", "--models", "1", "--gpus", "8", "--json")
    assert round(found["bound_hz"]) == 5875


def test_bad_input_is_refused_with_the_value_and_the_remedy() -> None:
    assert "profile '1.053' cannot be read" in refusal("bound", "--profile", "1.053", "--slo", "25ms", "--gpus", "8")
    assert "slo '25 parsecs' cannot be read" in refusal(
        "bound", "--profile", "1,5", "--slo", "25 parsecs", "--gpus", "8"
    )
    assert "model 'nowhere:x' cannot be found" in refusal("profile", "nowhere:x", "--example", "float32:3")


def test_a_trace_is_imported_and_described(tmp_path: Path) -> None:
    source = tmp_path / "azure.csv"
    source.write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2023-11-16 18:17:03.0000000,10,1\n"
        "2023-11-16 18:17:04.5000000,20,2\n"
        "yesterday,20,2\n"
        "2023-11-16 18:17:05.0000000,30,3\n"
    )
    target = str(tmp_path / "trace")
    found = run("trace", "import", "azure-llm", str(source), target, "--json")
    assert found == {"requests": 3, "span_s": 2.0, "models": 1, "mean_hz": 1.5, "peak_hz": 1.0, "bad_rows": 1}
    assert run("trace", "info", target, "--json") == found
    assert "--strict" not in refusal("trace", "import", "azure-llm", str(source), str(tmp_path / "other"), "--strict")


def test_a_profile_is_measured_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "my_models.py").write_text("def double(batch):\n    return batch * 2\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    found = run("profile", "my_models:double", "--example", "float32:3,4", "--max-batch", "4", "--json")
    assert [size for size, _ in found["table"]] == [1, 2, 4]
    assert found["label"] == "measured"


def test_several_inputs_are_profiled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "my_sums.py").write_text(
        "def total(batch):\n    return batch['x'] + batch['y']\n\n\n"
        "def columns(samples):\n    return {name: sum(s[name].sum() for s in samples) for name in 'xy'}\n\n\n"
        "def each(samples):\n    return [x.sum() + y for x, y in samples]\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    given = ["--max-batch", "1", "--json"]
    named = ["--example", "x=float32:3", "--example", "y=int64"]
    assert refusal("profile", "my_sums:each", *named, "--example", "int64", *given[:2]).startswith(
        "Error: examples 'x="
    )
    assert len(run("profile", "my_sums:each", "--example", "float32:3", "--example", "int64", *given)["table"]) == 1
    assert "returned one" in refusal("profile", "my_sums:total", *named, "--collate", "my_sums:columns", *given[:2])
    assert "collate 'my_sums:nothing' cannot be found" in refusal(
        "profile", "my_sums:total", *named, "--collate", "my_sums:nothing"
    )


@pytest.mark.slow
def test_the_demo_serves_the_trace_under_both_policies_and_deferred_needs_fewer_gpus(tmp_path: Path) -> None:
    found = run("demo", "--folder", str(tmp_path), "--json")
    for policy in ("eager", "deferred"):
        recorded = open_run(found[policy]["run"])
        assert recorded.requests.select(pl.len()).collect().item() == found[policy]["client"]["requests"]
        assert found[policy]["attainment"] > 0.95
        assert found[policy]["wrong_answers"] == 0
    assert found["deferred"]["busy_gpus"] < 0.6 * found["eager"]["busy_gpus"]


@pytest.mark.slow
def test_the_torch_demo_gives_the_networks_own_answers(tmp_path: Path) -> None:
    found = run("demo", "--torch", "--folder", str(tmp_path), "--json")
    assert all(found[policy]["wrong_answers"] == 0 for policy in ("eager", "deferred"))
    assert all(found[policy]["client"]["ok"] > 0 for policy in ("eager", "deferred"))


@pytest.mark.slow
def test_the_lane_carries_ten_times_what_plain_dask_does() -> None:
    found = run("bench", "live", "--seconds", "2", "--json")
    assert found["ratio"] >= 10
