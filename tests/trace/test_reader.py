import json

import polars as pl
import pyarrow.parquet as pq
import pytest

from symphony_dask.errors import BadInput
from symphony_dask.trace import Recorder, Summary, open_run
from tests.helpers.runs.tables import record_example

MS = 1_000_000


def test_a_summary_has_the_figures_of_the_whole_run(tmp_path):
    summary = record_example(tmp_path).summary()
    assert summary == Summary(
        requests=8,
        ok=3,
        late=1,
        dropped=1,
        rejected=1,
        failed=1,
        cancelled=1,
        span_s=0.5,
        offered_hz=16.0,
        attainment=0.375,
        goodput_hz=6.0,
        p50_ms=25.0,  # of 10, 20, 30, 40
        p99_ms=pytest.approx(39.7),
        mean_batch=1.25,
        busy_gpus=pytest.approx(0.1),  # 6 + 20 + 24 ms of 500 ms
        gpus_used=2,
    )


@pytest.mark.parametrize("models", ["b", ["b"], iter(["b", "unheard-of"])])
def test_a_summary_of_some_models_counts_only_them(tmp_path, models):
    summary = record_example(tmp_path).summary(models)
    assert (summary.requests, summary.ok, summary.late, summary.dropped, summary.failed) == (3, 0, 1, 1, 1)
    assert (summary.span_s, summary.offered_hz, summary.attainment) == (0.4, 7.5, 0.0)
    assert (summary.p50_ms, summary.p99_ms, summary.mean_batch) == (30.0, 30.0, 1.0)
    assert (summary.busy_gpus, summary.gpus_used) == (pytest.approx(0.05), 1)


def test_the_span_reaches_to_the_last_reply(tmp_path):
    run = record_example(tmp_path)
    assert run.summary("a").span_s == 0.5  # last arrival of a at 480 ms, last reply at 500 ms


def test_an_empty_run_has_no_rates(tmp_path):
    with Recorder(tmp_path, {}):
        summary = open_run(tmp_path).summary()
    assert (summary.requests, summary.ok, summary.span_s, summary.gpus_used) == (0, 0, 0.0, 0)
    assert {summary.offered_hz, summary.attainment, summary.p50_ms, summary.mean_batch, summary.busy_gpus} == {None}


def test_a_summary_is_json(tmp_path):
    figures = record_example(tmp_path).summary().to_dict()
    assert json.loads(json.dumps(figures)) == figures
    assert list(figures)[:2] == ["requests", "ok"]


@pytest.mark.parametrize("table", ["requests", "batches"])
def test_a_table_without_parts_is_empty_with_the_types_of_one_with_parts(tmp_path, table):
    full = getattr(record_example(tmp_path / "full"), table).collect()
    Recorder(tmp_path / "empty", {}).close()
    empty = getattr(open_run(tmp_path / "empty"), table).collect()
    assert empty.is_empty()
    assert empty.schema == full.schema
    assert full.schema["model"] == pl.String


def test_parts_that_are_being_written_are_not_read(tmp_path):
    run = record_example(tmp_path)
    (tmp_path / "requests-000002.parquet.tmp").write_bytes(b"PAR1")
    assert run.requests.collect().height == 8


def test_the_millionth_part_comes_after_the_one_before_it(tmp_path):
    run = record_example(tmp_path)
    part = (tmp_path / "requests-000001.parquet").rename(tmp_path / "requests-1000000.parquet")
    pl.read_parquet(part).head(1).with_columns(id=pl.lit(99, pl.Int64)).write_parquet(
        tmp_path / "requests-999999.parquet"
    )
    assert run.requests.collect()["id"].to_list() == [99, 0, 1, 2, 3, 4, 5, 6, 7]


def test_a_newer_schema_is_refused_with_the_remedy(tmp_path):
    (tmp_path / "run.json").write_text('{"schema_version": 2}')
    with pytest.raises(BadInput, match=r"schema version 2.*reads up to 1.*upgrade symphony-dask"):
        open_run(tmp_path)


def test_an_older_schema_than_is_read_is_refused_with_the_remedy(tmp_path):
    (tmp_path / "run.json").write_text('{"schema_version": 0}')
    with pytest.raises(BadInput, match=r"schema version 0.*none before 1.*record or import it again"):
        open_run(tmp_path)


def test_footers_are_small(tmp_path):
    record_example(tmp_path)
    for part in tmp_path.glob("*.parquet"):
        assert pq.read_metadata(part).serialized_size < 4096


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(BadInput, match=r"give the folder that holds run\.json"):
        open_run(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema_version": null}'])
def test_a_run_json_of_something_else_is_refused(tmp_path, text):
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(BadInput, match="give a folder of a run"):
        open_run(tmp_path)
