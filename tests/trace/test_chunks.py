import numpy as np
import polars as pl
import pytest

from symphony_dask.errors import BadInput
from symphony_dask.trace import Names, Recorder, TraceWriter, arrival_chunks, count_requests, open_run, read_trace
from symphony_dask.trace import folder as run_folder
from symphony_dask.trace.ordered import concatenated, in_order
from symphony_dask.trace.validate import problems
from tests.helpers.runs.tables import columns


def chunked(rows, size):
    n = len(rows["arrival_ns"])
    return [{name: values[at : at + size] for name, values in rows.items()} for at in range(0, n, size)]


@pytest.mark.parametrize(("run_rows", "batch_rows"), [(10**6, 100), (1000, 64), (300, 7), (100, 1000)])
def test_rows_in_any_order_come_back_by_arrival_then_id(run_rows, batch_rows):
    rng = np.random.default_rng(5)
    rows = {"arrival_ns": rng.integers(0, 400, 5000), "id": rng.permutation(5000), "bytes": np.arange(5000)}
    found = list(in_order(chunked(rows, 90), run_rows=run_rows, batch_rows=batch_rows))
    order = np.lexsort((rows["id"], rows["arrival_ns"]))
    together = concatenated(found)
    assert all((together[name] == rows[name][order]).all() for name in rows)


def test_no_rows_in_order_are_no_chunks():
    assert list(in_order([])) == []


def test_a_trace_is_written_in_parts_that_do_not_depend_on_the_chunks(tmp_path):
    rows = {"arrival_ns": np.arange(1000) * 7, "model": np.arange(1000, dtype=np.int32) % 3}
    for name, size in (("one", 1000), ("many", 17)):
        with TraceWriter(tmp_path / name, part_rows=300) as writer:
            for chunk in chunked(rows, size):
                writer.write(chunk, ["a", "b", "c"])
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert files == [f"requests-00000{n}.parquet" for n in (1, 2, 3, 4)] + ["run.json"]
    for name in files:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "many" / name).read_bytes()
    assert read_trace(tmp_path / "one").select("id", "model", "arrival_ns").row(-1) == (999, "a", 6993)


def falling():
    yield {"arrival_ns": np.array([9]), "model": np.zeros(1, np.int32)}
    yield {"arrival_ns": np.array([8]), "model": np.zeros(1, np.int32)}


def write_all(folder, chunks, part_rows):
    with TraceWriter(folder, part_rows=part_rows) as writer:
        for rows in chunks:
            writer.write(rows, ["a"])


def test_a_trace_whose_arrivals_fall_is_refused_and_stays_open_if_a_part_was_written(tmp_path):
    with pytest.raises(BadInput, match="arrivals fall after 9 ns"):
        write_all(tmp_path / "part", falling(), 1)
    assert run_folder.read_info(tmp_path / "part")["closed"] is False
    assert read_trace(tmp_path / "part")["arrival_ns"].to_list() == [9]
    with pytest.raises(BadInput, match="arrivals fall after 9 ns"):
        write_all(tmp_path / "none", falling(), 10)
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("part_rows", [100, 7])
def test_chunks_of_a_trace_are_what_read_trace_gives(tmp_path, part_rows):
    with TraceWriter(tmp_path, part_rows=part_rows) as writer:
        arrivals = np.arange(60) // 4
        writer.write({"arrival_ns": arrivals, "model": np.arange(60, dtype=np.int32)[::-1] % 5}, list("abcde"))
    assert_chunks_are_read_trace(tmp_path)
    assert count_requests(tmp_path) == 60


def test_chunks_of_a_recorded_run_are_sorted_by_arrival(tmp_path):
    with Recorder(tmp_path, {}, interval_s=3600) as recorder:
        recorder.add_model("a")
        recorder.add_model("b")
        ended = {"arrival_ns": [30, 20, 20], "deadline_ns": [35, 50, 21], "model": [0, 1, 1]}
        recorder.record_requests(columns("requests", id=[1, 4, 0], **ended))
        recorder._write_pending()
        recorder.record_requests(columns("requests", id=[2], arrival_ns=[25], deadline_ns=[25]))
    assert_chunks_are_read_trace(tmp_path)
    names = Names()
    rows = concatenated(list(arrival_chunks(tmp_path, names, ["id", "model"])))
    assert (rows["id"].tolist(), rows["model"].tolist(), names.names) == ([0, 4, 2, 1], [1, 1, 0, 0], ["a", "b"])


def test_what_arrived_before_a_recording_began_is_recorded_and_not_among_its_arrivals(tmp_path):
    with Recorder(tmp_path, {}, interval_s=3600) as recorder:
        recorder.add_model("a")
        ended = {"arrival_ns": [-7, 5], "deadline_ns": [3, 15], "reply_ns": [2, 9], "outcome": [0, 0]}
        recorder.record_requests(columns("requests", id=[1, 2], **ended))
    assert problems(tmp_path) == []
    assert open_run(tmp_path).requests.collect()["id"].to_list() == [1, 2]
    assert read_trace(tmp_path)["id"].to_list() == [2]
    assert_chunks_are_read_trace(tmp_path)


def test_chunks_of_a_foreign_parquet_file_are_completed(tmp_path):
    frame = pl.DataFrame(
        {"arrival_ns": [2, 1, 3], "model": ["x", "y", "x"], "deadline_ns": [5, None, None], "bytes": [1, None, 3]},
        schema_overrides={"arrival_ns": pl.UInt32, "model": pl.Categorical},
    )
    frame.write_parquet(tmp_path / "trace.parquet", row_group_size=2)
    assert_chunks_are_read_trace(tmp_path / "trace.parquet", ids=False)


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        ({"model": ["a"]}, "has no column arrival_ns: it has 'model'"),
        ({"model": ["a"], "arrival_ns": [0.5]}, "arrival_ns of .* is double"),
        ({"model": ["a"], "arrival_ns": [-1]}, "below 0"),
        ({"model": [None, "a"], "arrival_ns": [1, 1]}, "model is null"),
        ({"model": ["a"], "arrival_ns": [1], "client": [2**40]}, "column client"),
    ],
)
def test_a_file_that_is_no_trace_has_no_chunks(tmp_path, frame, message):
    pl.DataFrame(frame).write_parquet(tmp_path / "trace.parquet")
    with pytest.raises(BadInput, match=message):
        list(arrival_chunks(tmp_path / "trace.parquet", Names()))


def test_names_have_codes_in_order_of_appearance_whatever_the_dictionaries(tmp_path):
    names = Names()
    assert names.encode(pl.Series(["b", "a", "b"]).to_arrow()).tolist() == [0, 1, 0]
    assert names.encode(pl.Series(["c", "a"], dtype=pl.Enum(["unused", "a", "c"])).to_arrow()).tolist() == [2, 1]
    assert names.names == ["b", "a", "c"]


def assert_chunks_are_read_trace(path, ids=True):
    names = Names()
    rows = concatenated(list(arrival_chunks(path, names)))
    frame = pl.DataFrame({**rows, "model": [names.names[code] for code in rows["model"]]})
    wanted = read_trace(path).select(frame.columns)
    assert frame.drop([] if ids else ["id"]).equals(wanted.drop([] if ids else ["id"]))
