import json
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import polars as pl
import pyarrow as pa
import pytest

from symphony_dask.engine.start_rules import START_RULES, UNKNOWN
from symphony_dask.errors import BadInput
from symphony_dask.trace import BatchOutcome, Outcome, Recorder, open_run
from symphony_dask.trace import folder as run_folder
from symphony_dask.trace.validate import problems
from tests.helpers.runs.tables import columns, wait_until

NEVER_S = 3600.0
SOON_S = 0.005


def run_json(folder: Path) -> dict:
    return json.loads((folder / "run.json").read_text())


def test_every_recorded_request_column_is_read_back_with_its_nulls(tmp_path):
    with Recorder(tmp_path, {}) as recorder:
        bert, gpt = recorder.add_model("bert"), recorder.add_model("gpt")
        recorder.record_requests(
            columns(
                "requests",
                id=[7, 8],
                client=[1, 2],
                model=[gpt, bert],
                arrival_ns=[0, 10],
                deadline_ns=[50, 60],
                dispatch_ns=[20, -1],
                start_ns=[21, -1],
                end_ns=[30, -1],
                reply_ns=[33, 70],
                outcome=[Outcome.OK, Outcome.DROPPED],
                batch=[0, -1],
                gpu=[3, -1],
                bytes=[600, 0],
            )
        )
    assert open_run(tmp_path).requests.collect().rows() == [
        (7, 1, "gpt", 0, 50, 20, 21, 30, 33, "ok", 0, 3, 600),
        (8, 2, "bert", 10, 60, None, None, None, 70, "dropped", None, None, 0),
    ]


def test_every_recorded_batch_column_is_read_back_with_its_nulls(tmp_path):
    with Recorder(tmp_path, {}) as recorder:
        recorder.record_batches(
            columns(
                "batches",
                batch=[0, 1],
                model=[recorder.add_model("bert")] * 2,
                gpu=[0, 1],
                size=[8, 4],
                dispatch_ns=[1, 2],
                window_open_ns=[3, 4],
                window_close_ns=[5, 6],
                planned_start_ns=[7, 8],
                planned_end_ns=[9, 10],
                start_ns=[11, -1],
                end_ns=[13, -1],
                outcome=[BatchOutcome.DONE, BatchOutcome.LOST],
                rule=[START_RULES.index("packing"), UNKNOWN],
            )
        )
    assert open_run(tmp_path).batches.collect().rows() == [
        (0, "bert", 0, 8, 1, 3, 5, 7, 9, 11, 13, "done", "packing"),
        (1, "bert", 1, 4, 2, 4, 6, 8, 10, None, None, "lost", None),
    ]


def test_batches_may_be_recorded_without_their_rules(tmp_path):
    batches = columns("batches", batch=[0, 1], model=[0, 0], outcome=[BatchOutcome.DONE] * 2)
    with Recorder(tmp_path, {}) as recorder:
        recorder.add_model("bert")
        recorder.record_batches({name: values for name, values in batches.items() if name != "rule"})
    assert open_run(tmp_path).batches.collect()["rule"].to_list() == [None, None]


def test_gpu_events_and_scaling_ticks_are_read_back(tmp_path):
    with Recorder(tmp_path, {}) as recorder:
        recorder.record_gpu_event(
            time_ns=5, gpu=0, event="join", rank=2, gpu_class="T4", worker="tcp://10.0.0.2:1", host="a"
        )
        recorder.record_gpu_event(time_ns=9, gpu=0, event="leave")
        recorder.record_scaling(time_ns=6, inputs={"rate_hz": 2.5}, decision={"gpus": 3})
    run = open_run(tmp_path)
    assert run.gpus.collect().rows() == [
        (5, 0, "join", 2, "T4", "tcp://10.0.0.2:1", "a"),
        (9, 0, "leave", None, None, None, None),
    ]
    assert run.scaling.collect().rows() == [(6, '{"rate_hz": 2.5}', '{"gpus": 3}')]


def test_a_model_keeps_its_code(tmp_path):
    with Recorder(tmp_path, {}) as recorder:
        assert [recorder.add_model(name) for name in ("a", "b", "a")] == [0, 1, 0]
        assert recorder.models == ["a", "b"]


def test_a_model_added_between_two_parts_has_its_name_in_both_parts(tmp_path):
    with Recorder(tmp_path, {}, interval_s=SOON_S) as recorder:
        recorder.record_requests(columns("requests", id=[0], model=[recorder.add_model("a")]))
        wait_until(lambda: len(run_folder.parts(tmp_path, "requests")) == 1)
        recorder.record_requests(columns("requests", id=[1, 2], model=[recorder.add_model("b"), 0]))
    assert open_run(tmp_path).requests.select("id", "model").collect().rows() == [(0, "a"), (1, "b"), (2, "a")]


def test_run_json_describes_the_run_from_its_start(tmp_path):
    with Recorder(tmp_path, {"policy": "deferred", "models": {"a": {"slo_ns": 5}}}, interval_s=NEVER_S):
        info = run_json(tmp_path)
    assert info["schema_version"] == 1
    assert info["started_at"].endswith("+00:00")
    assert info["clock"] == "monotonic"
    assert set(info["software"]) == {"python", "symphony-dask", "dask", "distributed", "numpy", "numba"}
    assert (info["policy"], info["models"]) == ("deferred", {"a": {"slo_ns": 5}})
    assert (info["closed"], info["counts"], info["lost_rows"]) == (False, None, 0)


def test_updated_info_is_written_while_the_run_goes_on(tmp_path):
    with Recorder(tmp_path, {"policy": "eager"}, interval_s=SOON_S) as recorder:
        recorder.update_info(models={"a": {}})
        wait_until(lambda: run_json(tmp_path).get("models") == {"a": {}})
        assert run_json(tmp_path)["policy"] == "eager"
        assert run_json(tmp_path)["closed"] is False


def test_close_flushes_and_writes_the_final_counts_once(tmp_path):
    recorder = Recorder(tmp_path, {}, interval_s=NEVER_S)
    recorder.add_model("a")
    recorder.record_requests(columns("requests", id=[0, 1, 2]))
    recorder.record_gpu_event(time_ns=0, gpu=0, event="ready")
    recorder.close()
    recorder.close()
    info = run_json(tmp_path)
    assert info["closed"] is True
    assert info["counts"] == {"requests": 3, "batches": 0, "gpus": 1, "events": 0, "scaling": 0}
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "gpus-000001.parquet",
        "requests-000001.parquet",
        "run.json",
    ]


def test_rows_recorded_after_close_count_as_lost(tmp_path):
    recorder = Recorder(tmp_path, {})
    recorder.close()
    recorder.record_requests(columns("requests", id=[0, 1]))
    assert recorder.lost_rows == 2


def test_reading_while_writing_sees_whole_parts_in_order(tmp_path):
    seen = []
    with Recorder(tmp_path, {}, interval_s=0.001) as recorder:
        recorder.add_model("a")
        for first in range(0, 2000, 10):
            recorder.record_requests(columns("requests", id=list(range(first, first + 10))))
            if first % 100 == 0:
                ids = open_run(tmp_path).requests.collect()["id"].to_list()
                assert ids == list(range(len(ids)))
                seen.append(len(ids))
        wait_until(lambda: open_run(tmp_path).requests.select(pl.len()).collect().item() == 2000)
    assert seen == sorted(seen)
    assert all(n % 10 == 0 for n in seen)


def test_a_killed_process_leaves_only_readable_parts(tmp_path):
    folder = tmp_path / "run"
    program = (
        "import sys, time\n"
        "from symphony_dask.trace import Recorder\n"
        "from tests.helpers.runs.tables import columns\n"
        "recorder = Recorder(sys.argv[1], {}, interval_s=0.001)\n"
        "recorder.add_model('a')\n"
        "for first in range(0, 10**9, 50):\n"
        "    now = [time.monotonic_ns()] * 50\n"
        "    ids = list(range(first, first + 50))\n"
        "    recorder.record_requests(columns('requests', id=ids, arrival_ns=now, deadline_ns=now))\n"
        "    time.sleep(0.0005)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program, str(folder)], cwd=Path(__file__).parents[2])
    try:
        wait_until(lambda: len(run_folder.parts(folder, "requests")) >= 5 or process.poll() is not None)
    finally:
        killed_ns = time.monotonic_ns()
        process.kill()
        assert process.wait() == -signal.SIGKILL
    run = open_run(folder)
    ids = run.requests.collect()["id"].to_list()
    assert len(ids) >= 250
    assert killed_ns - run.requests.collect()["arrival_ns"].max() < 3 * 10**9
    assert problems(folder) == []
    assert ids == list(range(len(ids)))
    assert run.info["closed"] is False


def test_a_disk_error_is_counted_and_logged_once_and_later_rows_are_written(tmp_path, monkeypatch, caplog):
    def full(*args, **options):
        raise OSError(28, "No space left on device")

    with Recorder(tmp_path, {}, interval_s=SOON_S) as recorder:
        recorder.add_model("a")
        with monkeypatch.context() as disk:
            disk.setattr(run_folder.pq, "write_table", full)
            recorder.record_requests(columns("requests", id=[0, 1, 2]))
            wait_until(lambda: recorder.lost_rows == 3)
            recorder.record_requests(columns("requests", id=[3, 4]))
            wait_until(lambda: recorder.lost_rows == 5)
            assert "No space left" in str(recorder.error)
            wait_until(lambda: run_json(tmp_path)["lost_rows"] == 5)
        recorder.record_requests(columns("requests", id=[5]))
    assert open_run(tmp_path).requests.collect()["id"].to_list() == [5]
    assert run_json(tmp_path)["lost_rows"] == 5
    assert run_json(tmp_path)["counts"]["requests"] == 1
    assert len(caplog.records) == 1
    assert not list(tmp_path.glob("*.tmp"))


def test_close_does_not_raise_when_run_json_cannot_be_written(tmp_path, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    recorder = Recorder(tmp_path, {}, interval_s=NEVER_S)
    monkeypatch.setattr(run_folder, "write_info", full)
    recorder.close()
    assert isinstance(recorder.error, OSError)
    assert run_json(tmp_path)["closed"] is False


def test_rows_that_arrow_refuses_are_lost_and_the_next_are_written(tmp_path):
    with Recorder(tmp_path, {}, interval_s=SOON_S) as recorder:
        recorder.add_model("a")
        recorder.record_requests(columns("requests", id=[0], model=[9]))
        wait_until(lambda: recorder.lost_rows == 1)
        assert isinstance(recorder.error, pa.ArrowIndexError)
        recorder.record_requests(
            columns("requests", id=[1], model=[0]) | {"bytes": columns("requests", id=[1, 2])["id"]}
        )
        wait_until(lambda: recorder.lost_rows == 2)
        recorder.record_requests(columns("requests", id=[2]))
    assert open_run(tmp_path).requests.collect()["id"].to_list() == [2]


def test_the_oldest_rows_go_when_the_disk_hangs_and_the_buffer_is_full(tmp_path, monkeypatch):
    write_part, hanging, released = run_folder.write_part, threading.Event(), threading.Event()

    def hang(*args):
        hanging.set()
        assert released.wait(60)
        write_part(*args)

    monkeypatch.setattr(run_folder, "write_part", hang)
    with Recorder(tmp_path, {}, interval_s=SOON_S, max_buffered_rows=4) as recorder:
        recorder.add_model("a")
        recorder.record_requests(columns("requests", id=[0, 1]))
        assert hanging.wait(60)
        for first in (2, 4, 6):
            recorder.record_requests(columns("requests", id=[first, first + 1]))
        assert recorder.lost_rows == 2
        released.set()
    assert open_run(tmp_path).requests.collect()["id"].to_list() == [0, 1, 4, 5, 6, 7]
    assert run_json(tmp_path)["lost_rows"] == 2


def test_a_folder_that_holds_a_run_is_refused_with_the_remedy(tmp_path):
    Recorder(tmp_path, {}).close()
    with pytest.raises(BadInput, match="give a new folder"):
        Recorder(tmp_path, {})


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="give a writable folder"):
        Recorder(tmp_path / "file" / "run", {})


def test_a_url_of_another_scheme_is_refused_with_the_remedy():
    with pytest.raises(BadInput, match=r"'gs://bucket/run' has a scheme .* give a local path or s3://BUCKET/FOLDER"):
        Recorder("gs://bucket/run", {})


@pytest.mark.parametrize("value", [object(), float("nan")])
def test_info_that_is_not_plain_is_refused(tmp_path, value):
    with pytest.raises(BadInput, match="use plain finite values"):
        Recorder(tmp_path, {"config": value})


def test_missing_and_unknown_columns_are_refused_by_name(tmp_path):
    given = columns("requests", id=[0])
    given["colour"] = given.pop("bytes")
    with (
        Recorder(tmp_path, {}) as recorder,
        pytest.raises(BadInput, match=r"missing \['bytes'\], unknown \['colour'\]"),
    ):
        recorder.record_requests(given)


def test_an_unknown_gpu_event_is_refused(tmp_path):
    with Recorder(tmp_path, {}) as recorder, pytest.raises(BadInput, match="use one of join, ready, drain, leave"):
        recorder.record_gpu_event(time_ns=0, gpu=0, event="explode")
