"""Run folders on S3: a moto server over HTTP, in this process."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from click.testing import CliRunner

from symphony_dask.cli.main import symphony
from symphony_dask.errors import BadInput
from symphony_dask.trace import Names, Recorder, arrival_chunks, open_run, read_trace, write_trace
from symphony_dask.trace import folder as run_folder
from symphony_dask.trace.validate import problems
from tests.helpers.runs.tables import columns, wait_until
from workloads.traces.digest import digest

server = pytest.importorskip("moto.server", reason="needs moto[server], of the extra test")

FRAME = pl.DataFrame({"model": ["b", "a", "b"], "arrival_ns": [0, 5, 9]})


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    moto = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    moto.start()
    host, port = moto.get_host_and_port()
    yield f"http://{host}:{port}"
    moto.stop()


@pytest.fixture
def root(endpoint: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """A folder of its own for each test."""
    environment = {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", "AWS_REGION": "us-east-1"}
    for name, value in {**environment, "AWS_ENDPOINT_URL": endpoint, "AWS_EC2_METADATA_DISABLED": "true"}.items():
        monkeypatch.setenv(name, value)
    from pyarrow.fs import S3FileSystem

    S3FileSystem(endpoint_override=endpoint, allow_bucket_creation=True).create_dir("traces")
    return f"s3://traces/{tmp_path.name}"


def test_a_run_on_s3_is_recorded_and_read_as_a_local_one(root: str, tmp_path: Path) -> None:
    for folder in (f"{root}/run", str(tmp_path / "run")):
        with Recorder(folder, {"policy": "eager"}, interval_s=3600) as recorder:
            recorder.add_model("a")
            for arrival in (20, 10):
                ended = {"arrival_ns": [arrival], "deadline_ns": [50], "reply_ns": [40], "outcome": [0]}
                recorder.record_requests(columns("requests", id=[arrival], **ended))
                recorder._write_pending()
            recorder.record_gpu_event(time_ns=5, gpu=0, event="join")
    run = open_run(f"{root}/run")
    assert (run.info["policy"], run.info["closed"], run.info["counts"]["requests"]) == ("eager", True, 2)
    assert run.requests.collect()["id"].to_list() == [20, 10]
    assert run.requests.filter(pl.col("arrival_ns") > 10).select("id").collect().item() == 20
    assert run.summary() == open_run(tmp_path / "run").summary()
    assert digest(f"{root}/run") == digest(tmp_path / "run")
    assert problems(f"{root}/run") == []
    chunks = list(arrival_chunks(f"{root}/run", Names(), ["id"]))
    assert [chunk["id"].tolist() for chunk in chunks] == [[10, 20]]
    names = [file.name for file in run_folder.place(f"{root}/run").list()]  # type: ignore[union-attr]
    assert sorted(names) == ["gpus-000001.parquet", "requests-000001.parquet", "requests-000002.parquet", "run.json"]


def test_traces_on_s3_are_made_and_looked_at_by_the_commands(root: str) -> None:
    def run(*args: str) -> Any:
        result = CliRunner().invoke(symphony, ["trace", *args, "--json"])
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)

    run("synth", f"{root}/a", "--requests", "50", "--rate", "10")
    run("scale", f"{root}/a", f"{root}/b", "--rate", "2")
    assert run("info", f"{root}/b")["requests"] == 50
    assert run("info", f"{root}/b/requests-000001.parquet")["requests"] == 50
    assert run("validate", f"{root}/b")["valid"] is True
    assert read_trace(f"{root}/a").height == 50


def test_a_folder_on_s3_that_holds_a_run_is_refused(root: str) -> None:
    write_trace(f"{root}/run", FRAME)
    with pytest.raises(BadInput, match=r"'s3://.*/run' already holds a run"):
        write_trace(f"{root}/run", FRAME)


def test_nothing_on_s3_and_a_missing_bucket_are_refused(root: str) -> None:
    with pytest.raises(BadInput, match="is not a run folder"):
        open_run(f"{root}/nothing")
    with pytest.raises(BadInput, match="give a writable folder"):
        write_trace("s3://no-such-bucket/run", FRAME)


@pytest.mark.parametrize("where", ["s3", "local"])
def test_of_writers_that_claim_one_folder_at_once_at_most_one_goes_on(root: str, tmp_path: Path, where: str) -> None:
    folder = run_folder.place(f"{root}/run" if where == "s3" else tmp_path / "run")
    ready, won = threading.Barrier(6), []

    def claim(number: int) -> None:
        ready.wait()
        try:
            run_folder.create(folder)
            won.append(number)
        except BadInput:
            pass

    threads = [threading.Thread(target=claim, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1 if where == "local" else len(won) <= 1
    if not won:
        run_folder.create(folder)  # those that refused each other left nothing behind
    assert run_folder.read_info(folder)["closed"] is False


def test_writers_of_different_folders_do_not_meet(root: str) -> None:
    def write(number: int) -> None:
        write_trace(f"{root}/run-{number}", FRAME)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [read_trace(f"{root}/run-{number}").height for number in range(4)] == [3] * 4


def test_a_killed_process_leaves_only_whole_parts_on_s3(root: str) -> None:
    program = (
        "import sys\n"
        "from symphony_dask.trace import Recorder\n"
        "from tests.helpers.runs.tables import columns\n"
        "recorder = Recorder(sys.argv[1], {}, interval_s=0.001)\n"
        "recorder.add_model('a')\n"
        "for first in range(0, 10**9, 50):\n"
        "    recorder.record_requests(columns('requests', id=list(range(first, first + 50))))\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program, f"{root}/run"], cwd=Path(__file__).parents[2])
    folder = run_folder.place(f"{root}/run")
    try:
        wait_until(lambda: len(run_folder.parts(folder, "requests")) >= 3 or process.poll() is not None)
    finally:
        process.kill()
        assert process.wait() == -signal.SIGKILL
    run = open_run(f"{root}/run")
    assert run.info["closed"] is False
    assert run.requests.collect().height >= 150
    assert problems(f"{root}/run") == []
