"""One simulation gives one set of tables, byte for byte; run.json beside them names the software that wrote them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from click.testing import CliRunner

from symphony_dask.cli.main import symphony
from symphony_dask.trace import open_run, write_trace
from tests.helpers.runs.mixed_fleet import CASES, write_all
from workloads.traces.digest import digest, file_hashes

MS = 1_000_000
ROOT = Path(__file__).parents[3]
TABLES = ("requests", "batches", "gpus")


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """The same runs by compiled code, by compiled code once more, and by plain Python."""
    folders = tuple(tmp_path_factory.mktemp(name) for name in ("compiled", "again", "plain"))
    for folder in folders[:2]:
        write_all(folder)
    command = [sys.executable, "-m", "tests.helpers.runs.mixed_fleet", str(folders[2])]
    subprocess.run(command, env={**os.environ, "NUMBA_DISABLE_JIT": "1"}, cwd=ROOT, check=True)
    return folders[0], folders[1], folders[2]


@pytest.mark.parametrize(("policy", "noise"), CASES)
@pytest.mark.parametrize("other", [1, 2], ids=["again", "plain Python"])
def test_tables_are_equal_byte_for_byte(
    recorded: tuple[Path, Path, Path], policy: str, noise: float, other: int
) -> None:
    for table in TABLES:
        name = f"{policy}-{noise}/{table}-000001.parquet"
        assert (recorded[0] / name).read_bytes() == (recorded[other] / name).read_bytes()


def test_different_simulations_have_different_digests(recorded: tuple[Path, Path, Path]) -> None:
    assert len({digest(recorded[0] / f"{policy}-{noise}") for policy, noise in CASES}) == len(CASES)


def test_the_digest_is_of_rows_and_not_of_files(tmp_path: Path) -> None:
    frame = pl.DataFrame({"model": ["b", "a", "b", "a"], "arrival_ns": [0, 1, 2, 3]})
    for name in ("one", "two"):
        write_trace(tmp_path / name, frame)
    rows = open_run(tmp_path / "one").requests.collect()
    rows[:1].write_parquet(tmp_path / "two" / "requests-000001.parquet")
    rows[1:].write_parquet(tmp_path / "two" / "requests-000002.parquet")
    assert len(file_hashes(tmp_path / "one")) == 1
    assert len(file_hashes(tmp_path / "two")) == 2
    assert digest(tmp_path / "one") == digest(tmp_path / "two")


@pytest.mark.parametrize(
    ("column", "value"), [("arrival_ns", 1), ("model", "b"), ("deadline_ns", 8), ("end_ns", None), ("id", 7)]
)
def test_the_digest_tells_any_value_from_another(tmp_path: Path, column: str, value: Any) -> None:
    row = {"model": "a", "arrival_ns": 0, "deadline_ns": 9, "id": 0, "client": 0, "bytes": 0, "end_ns": 0}
    schema = pl.DataFrame(open_run_of(tmp_path / "a", row)).schema
    changed = pl.DataFrame([{**open_run_of(tmp_path / "b", row)[0], column: value}], schema=schema)
    changed.write_parquet(tmp_path / "b" / "requests-000001.parquet")
    unchanged = pl.DataFrame(open_run_of(tmp_path / "c", row), schema=schema)
    unchanged.write_parquet(tmp_path / "c" / "requests-000001.parquet")
    assert digest(tmp_path / "b") != digest(tmp_path / "c")


def open_run_of(folder: Path, row: dict[str, Any]) -> list[dict[str, Any]]:
    write_trace(folder, pl.DataFrame([row]))
    return [{**open_run(folder).requests.collect().row(0, named=True), "end_ns": 0}]


def test_the_command_prints_digest_and_hashes_of_what_it_recorded(tmp_path: Path) -> None:
    write_trace(tmp_path / "trace", pl.DataFrame({"model": ["m"] * 3, "arrival_ns": [0, MS, 90 * MS]}))
    found = []
    for name in "ab":
        folder = str(tmp_path / name)
        options = ["--gpus", "1", "--policy", "deferred", "--noise", "0.1", "--seed", "3", "--folder", folder, "--json"]
        result = CliRunner().invoke(symphony, ["simulate", str(tmp_path / "trace"), *options])
        assert result.exit_code == 0, result.output
        found.append(json.loads(result.stdout))
    assert found[0]["digest"] == found[1]["digest"] == digest(tmp_path / "a")
    assert sorted(found[0]["sha256"]) == [f"{table}-000001.parquet" for table in sorted(TABLES)]
    assert found[0]["sha256"] == found[1]["sha256"]
