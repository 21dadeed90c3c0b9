"""The examples of docs/trace-format.md run, and its tables are those of the schema."""

import contextlib
import io
import re
from pathlib import Path

import polars as pl
import pyarrow as pa
import pytest

from symphony_dask.engine.events import OPS
from symphony_dask.engine.start_rules import START_RULES
from symphony_dask.trace import GPU_EVENTS, SCHEMA_VERSION, SCHEMAS, BatchOutcome, Outcome
from symphony_dask.trace.schema import names
from tests.helpers.runs.tables import record_example

PAGE = (Path(__file__).parents[2] / "docs/trace-format.md").read_text(encoding="utf-8")


def example(language):
    reading = PAGE[PAGE.index("## Reading") :]
    return re.search(rf"```{language}\n(.*?)```", reading, re.DOTALL)[1]


def test_the_polars_example_tells_the_figures_of_each_model(tmp_path, monkeypatch):
    record_example(tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    found = {}
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(example("python"), found)
    rows = sorted(found["per_model"].collect().rows())
    assert rows == [("a", 5, 0.6, pytest.approx(39.6)), ("b", 3, 0.0, 30.0)]
    assert "attainment" in printed.getvalue()


def test_the_duckdb_example_tells_the_same_without_this_package(tmp_path, monkeypatch):
    duckdb = pytest.importorskip("duckdb", reason="needs duckdb, of the extra test")
    record_example(tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    rows = sorted(duckdb.sql(example("sql")).fetchall())
    assert rows == [("a", 5, 0.6, pytest.approx(39.6)), ("b", 3, 0.0, 30.0)]


@pytest.mark.parametrize("table", SCHEMAS)
def test_every_column_of_a_table_is_described_with_its_type_and_whether_it_may_be_null(table):
    section = re.search(rf"\n## {table}\n(.*?)(\n## |\Z)", PAGE, re.DOTALL)[1]
    described = re.findall(r"^\| `(\w+)` \| (int32|int64|string|binary) \| (.+?) \|", section, re.MULTILINE)
    wanted = [(f.name, "string" if pa.types.is_dictionary(f.type) else str(f.type), f.nullable) for f in SCHEMAS[table]]
    assert [(name, kind, null != "never") for name, kind, null in described] == wanted


def test_every_label_and_the_version_are_described():
    for label in [*names(Outcome), *names(BatchOutcome), *GPU_EVENTS, *OPS, *START_RULES[1:]]:
        assert f"`{label}`" in PAGE
    assert f"schema version {SCHEMA_VERSION}" in PAGE


def test_the_example_frames_are_plain_polars(tmp_path):
    record_example(tmp_path)
    frame = pl.read_parquet(tmp_path / "requests-000001.parquet")
    assert frame["model"].cast(pl.String).unique().sort().to_list() == ["a", "b"]
