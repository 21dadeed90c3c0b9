"""Commands that a signal ends: one line, the exit status of shells, and nothing partial that looks whole."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from symphony_dask.cli.partial_files import Terminated, farewell, interruptible, whole_file, write_whole
from symphony_dask.errors import BadInput
from symphony_dask.trace import open_run
from tests.helpers.cluster import Cluster, wait_until
from workloads.cli.analysis.report import report
from workloads.cli.simulate import simulate
from workloads.cli.trace.group import trace
from workloads.simulation import record as records
from workloads.traces.transform import synth


def started(*arguments: str) -> subprocess.Popen[str]:
    """A command in a process group of its own, as a shell starts it."""
    command = [sys.executable, "-m", "dask", "symphony", *arguments]
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, process_group=0)


def ended(process: subprocess.Popen[str], number: int) -> tuple[int, list[str]]:
    """Exit status after the signal, to the group as a terminal sends it, and the lines on standard error."""
    os.killpg(process.pid, number)
    _, errors = process.communicate(timeout=100)
    return process.returncode, [line for line in errors.splitlines() if line.strip()]


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_trace_that_is_cut_short_says_so_itself_and_by_every_reader(
    tmp_path: Path, number: signal.Signals, status: int
) -> None:
    out = tmp_path / "out"
    process = started("trace", "synth", str(out), "--requests", "900000000", "--rate", "1000")
    wait_until(lambda: (out / "requests-000001.parquet").exists(), "a first part", 100)
    returned, lines = ended(process, number)
    assert (returned, len(lines)) == (status, 1)
    assert lines[0].startswith(f"interrupted by {number.name}: {out} holds ")
    assert lines[0].endswith("000,000 requests and is partial, and its run.json says so")
    why = "it is not closed: it is still written, or its writer was stopped"
    assert open_run(out).partial == why
    for command in ("info", "validate"):
        told = CliRunner().invoke(trace, [command, str(out), "--json"])
        assert told.exit_code == 0, told.output
        assert json.loads(told.stdout)["partial"] == why
        assert f"{out} is partial: {why}" in told.stderr


def test_what_had_written_nothing_leaves_nothing(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import click, time\n"
            "from symphony_dask.cli.command import command\n"
            "from symphony_dask.trace import TraceWriter\n"
            "@click.command()\n"
            "@command\n"
            "def waits():\n"
            f"    with TraceWriter({str(out)!r}):\n"
            "        print('under way', flush=True)\n"
            "        time.sleep(100)\n"
            "waits()",
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.terminate()
        assert process.communicate(timeout=60)[1] == "interrupted by SIGTERM: nothing was written\n"
    assert (process.returncode, out.exists()) == (143, False)


def test_a_replay_that_is_cut_short_leaves_a_run_that_says_so(tmp_path: Path) -> None:
    synth(tmp_path / "trace", requests=6000, rate_hz=20.0, models=2)
    run = tmp_path / "run"
    with Cluster(1, settings={"DASK_SYMPHONY__POLICY": "eager"}) as cluster:
        where = ("--scheduler", cluster.address, "--folder", str(run))
        process = started("replay", str(tmp_path / "trace"), *where, "--model", "m=1,5@500ms")
        wait_until(lambda: list(run.glob("requests-*.parquet")), "recorded requests", 200)
        assert open_run(run).partial is not None
        assert ended(process, signal.SIGINT) == (
            130,
            [f"interrupted by SIGINT: the run in {run} is partial, and its run.json says so"],
        )
        info = open_run(run).info
        assert (info["closed"], info["complete"]) == (True, False)
        assert open_run(run).partial == "what it records was interrupted"
        done = CliRunner().invoke(report, [str(run), "--out", str(tmp_path / "page.html"), "--json"])
    assert json.loads(done.stdout)["runs"][0]["partial"] == "what it records was interrupted"
    assert "what it records was interrupted" in (tmp_path / "page.html").read_text()


def test_a_simulated_run_that_is_cut_short_is_not_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synth(tmp_path / "trace", requests=20, rate_hz=20.0)
    write = records.run_folder.write_part

    def write_some(folder: Any, table: str, number: int, rows: Any) -> None:
        if table == "gpus":
            raise KeyboardInterrupt
        write(folder, table, number, rows)

    monkeypatch.setattr(records.run_folder, "write_part", write_some)
    run = tmp_path / "run"
    told = CliRunner().invoke(simulate, [str(tmp_path / "trace"), "--gpus", "1", "--folder", str(run)])
    assert told.exit_code == 130
    assert told.stderr == f"interrupted by SIGINT: the run in {run} is partial, and its run.json says so\n"
    assert open_run(run).partial is not None


def test_processes_that_work_in_parallel_end_at_once(tmp_path: Path) -> None:
    program = (
        "import click, time\n"
        "from symphony_dask.cli.command import command\n"
        "from workloads.simulation.process_pool import run_all\n"
        "@click.command()\n"
        "@command\n"
        "def works():\n"
        "    show = lambda *done: print(*done, flush=True)\n"
        "    run_all(time.sleep, [500, 500, 0.1], [2, 2, 3], processes=2, on_progress=show)\n"
        "if __name__ == '__main__':\n"
        "    works()\n"
    )
    file = tmp_path / "works.py"
    file.write_text(program)
    process = subprocess.Popen(
        [sys.executable, str(file)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, process_group=0
    )
    assert process.stdout is not None
    lines = [process.stdout.readline(), process.stdout.readline()]
    assert lines == ["0.0 7.0\n", "3.0 7.0\n"]  # a first one is done, so two sleep
    assert ended(process, signal.SIGINT) == (130, ["interrupted by SIGINT: nothing was written"])


def test_a_file_is_there_whole_or_as_it_was_before(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    write_whole(page, "old")

    def write_half() -> None:
        with whole_file(page) as beside:
            beside.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as interrupted:
        write_half()
    assert (page.read_text(), list(tmp_path.iterdir())) == ("old", [page])
    assert farewell(interrupted.value) == (f"interrupted by SIGINT: {page} was not written", 130)
    with pytest.raises(BadInput, match=r"no/such/page.html' cannot be written \(No such file or directory\)"):
        write_whole(tmp_path / "no/such/page.html", "new")


def test_sigterm_is_as_before_once_the_command_is_over() -> None:
    with pytest.raises(Terminated), interruptible():
        os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
