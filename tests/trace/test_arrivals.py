import polars as pl
import pytest

from symphony_dask.errors import BadInput
from symphony_dask.trace import Outcome, Recorder, open_run, read_trace, write_trace
from tests.helpers.runs.tables import columns


def test_missing_columns_are_filled_in_order_of_arrival(tmp_path):
    write_trace(tmp_path, pl.DataFrame({"model": ["b", "a"], "arrival_ns": [20, 10]}))
    assert read_trace(tmp_path).rows() == [
        (0, 0, "a", 10, 10, None, None, None, None, None, None, None, 0),
        (1, 0, "b", 20, 20, None, None, None, None, None, None, None, 0),
    ]


def test_given_columns_are_kept(tmp_path):
    frame = pl.DataFrame(
        {"model": ["a", "b"], "arrival_ns": [5, 5], "id": [9, 3], "deadline_ns": [8, None], "bytes": 7, "client": 2}
    )
    write_trace(tmp_path, frame)
    assert read_trace(tmp_path).select("id", "client", "model", "deadline_ns", "bytes").rows() == [
        (3, 2, "b", 5, 7),
        (9, 2, "a", 8, 7),
    ]


def test_the_same_trace_gives_the_same_bytes_twice(tmp_path):
    frame = pl.DataFrame({"model": ["b", "a", "b"], "arrival_ns": [3, 1, 2]})
    for name in ("one", "two"):
        write_trace(tmp_path / name, frame, {"source": "a trace", "started_at": "2024-05-10T00:00:00+00:00"})
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert files == ["requests-000001.parquet", "run.json"]
    for name in files:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_an_imported_trace_is_a_closed_run_that_was_not_served(tmp_path):
    write_trace(tmp_path, pl.DataFrame({"model": ["a"] * 3, "arrival_ns": [0, 10**9, 2 * 10**9]}), {"source": "x"})
    run = open_run(tmp_path)
    assert (run.info["started_at"], run.info["closed"], run.info["source"]) == (None, True, "x")
    assert run.info["counts"] == {"requests": 3, "batches": 0, "gpus": 0, "events": 0, "scaling": 0}
    summary = run.summary()
    assert (summary.requests, summary.offered_hz, summary.attainment, summary.p50_ms) == (3, 1.5, None, None)


def test_an_empty_trace_is_written_and_read(tmp_path):
    write_trace(tmp_path, pl.DataFrame({"model": [], "arrival_ns": []}))
    assert read_trace(tmp_path).is_empty()


def test_a_served_run_is_written_again_without_its_serving(tmp_path):
    with Recorder(tmp_path / "served", {}) as recorder:
        recorder.add_model("a")
        ended = {"arrival_ns": [30, 20], "reply_ns": [35, 50], "outcome": [Outcome.OK, Outcome.LATE], "gpu": [0, 1]}
        recorder.record_requests(columns("requests", id=[1, 0], deadline_ns=[40, 40], **ended))
    served = read_trace(tmp_path / "served")
    assert served["outcome"].to_list() == ["late", "ok"]
    write_trace(tmp_path / "again", served)
    again = read_trace(tmp_path / "again")
    kept = ["id", "client", "model", "arrival_ns", "deadline_ns", "bytes"]
    assert again.select(kept).equals(served.select(kept))
    assert again.select(pl.exclude(kept)).null_count().row(0) == (2,) * 7


def test_a_single_parquet_file_is_completed(tmp_path):
    path = tmp_path / "arrivals.parquet"
    frame = pl.DataFrame(
        {"arrival_ns": [2, 1], "model": ["x", "y"]}, schema={"arrival_ns": pl.UInt32, "model": pl.Categorical}
    )
    frame.write_parquet(path)
    assert read_trace(path).select("id", "model", "arrival_ns", "bytes").rows() == [(0, "y", 1, 0), (1, "x", 2, 0)]


def test_a_part_of_a_run_is_read_as_the_run_is(tmp_path):
    write_trace(tmp_path, pl.DataFrame({"model": ["b", "a"], "arrival_ns": [20, 10]}))
    assert read_trace(tmp_path / "requests-000001.parquet").equals(read_trace(tmp_path))


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        ({"model": ["a"]}, r"lacks \['arrival_ns'\]"),
        ({"model": ["a"], "arrival_ns": [1], "deadline": [2]}, r"unknown columns \['deadline'\]"),
        ({"model": ["a"], "arrival_ns": [0.5]}, "arrival_ns of the frame is Float64"),
        ({"model": ["a"], "arrival_ns": [-1]}, "below 0"),
        ({"model": [None], "arrival_ns": [1]}, "without model"),
        ({"model": ["a", "a"], "arrival_ns": [1, 2], "id": [1, None]}, "id in some rows only"),
        ({"model": ["a"], "arrival_ns": [1], "client": [2**40]}, "cannot be used"),
    ],
)
def test_a_frame_that_is_no_trace_is_refused_and_nothing_is_written(tmp_path, frame, message):
    with pytest.raises(BadInput, match=message):
        write_trace(tmp_path / "run", pl.DataFrame(frame))
    assert not (tmp_path / "run").exists()


def test_a_trace_is_not_written_over_a_run(tmp_path):
    frame = pl.DataFrame({"model": ["a"], "arrival_ns": [1]})
    write_trace(tmp_path, frame)
    with pytest.raises(BadInput, match="already holds a run"):
        write_trace(tmp_path, frame)


def test_a_file_that_is_not_parquet_is_refused(tmp_path):
    (tmp_path / "trace.csv").write_text("model,arrival_ns\n")
    with pytest.raises(BadInput, match="give a run folder or a Parquet file"):
        read_trace(tmp_path / "trace.csv")
