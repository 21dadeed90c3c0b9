"""The watchdog: its rules, and the program with a real Dask cluster, and metadata and a shutdown that are not."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.worker.watchdog import Watch
from tests.helpers.aws.imds import Instance
from tests.helpers.cluster import Cluster, wait_until

MINUTE_NS = 60_000_000_000


def watch() -> Watch:
    return Watch(unreachable_ns=5 * MINUTE_NS, absent_ns=15 * MINUTE_NS, answered_ns=0, present_ns=0)


def test_a_scheduler_that_never_answers_ends_the_instance() -> None:
    dog = watch()
    assert dog.observe(5 * MINUTE_NS - 1, None) is None
    assert dog.observe(5 * MINUTE_NS, None) == "the scheduler has not answered for 300s"


def test_an_answer_starts_the_count_anew() -> None:
    dog = watch()
    assert dog.observe(4 * MINUTE_NS, 1) is None
    assert dog.observe(8 * MINUTE_NS, None) is None
    assert dog.observe(9 * MINUTE_NS, None) == "the scheduler has not answered for 300s"


def test_a_worker_that_never_joins_ends_the_instance() -> None:
    dog = watch()
    for minute in range(15):
        assert dog.observe(minute * MINUTE_NS, 0) is None
    reason = "the scheduler has had no worker of this instance since the start for 900s"
    assert dog.observe(15 * MINUTE_NS, 0) == reason


def test_a_worker_that_left_ends_the_instance() -> None:
    dog = watch()
    assert dog.observe(100 * MINUTE_NS, 1) is None
    assert dog.observe(114 * MINUTE_NS, 0) is None
    reason = "the scheduler has had no worker of this instance any more for 900s"
    assert dog.observe(115 * MINUTE_NS, 0) == reason


class Program:
    """The watchdog as a process; ``joined`` and ``shut_down`` are files that its commands make."""

    def __init__(self, folder: Path, scheduler: str, *options: str) -> None:
        self.joined, self.shut_down = folder / "joined", folder / "shut-down"
        command = [sys.executable, "-m", "infra.worker.watchdog", "--scheduler", scheduler, "--every", "50ms", *options]
        commands = ["--on-join", f"touch {self.joined}", "--shutdown", f"touch {self.shut_down}"]
        environment = {**os.environ, "DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT": "500ms"}
        self.process = subprocess.Popen([*command, *commands], stderr=subprocess.PIPE, text=True, env=environment)

    def end(self) -> str:
        """What it wrote, once it has ended by itself."""
        _, wrote = self.process.communicate(timeout=60)
        assert self.process.returncode == 0, wrote
        return wrote


@pytest.fixture
def programs() -> Iterator[list[Program]]:
    started: list[Program] = []
    yield started
    for program in started:
        program.process.kill()
        program.process.wait()


def test_nobody_listens_where_the_scheduler_should_be(
    metadata: Instance, programs: list[Program], tmp_path: Path
) -> None:
    programs.append(program := Program(tmp_path, "tcp://127.0.0.1:9", "--unreachable", "300ms"))
    assert "shutting down: the scheduler has not answered for" in program.end()
    assert program.shut_down.exists()
    assert not program.joined.exists()
    assert metadata.refused == 0


def test_no_worker_of_the_instance_registers(metadata: Instance, programs: list[Program], tmp_path: Path) -> None:
    # The scheduler has a worker, but on another host, whose address begins as this one's does.
    metadata.values["local-ipv4"] = "127.0.0"
    with Cluster(1, preload=False) as cluster:
        cluster.client().wait_for_workers(1, timeout=30)
        programs.append(program := Program(tmp_path, cluster.address, "--absent", "500ms"))
        assert "no worker of this instance since the start" in program.end()
    assert not program.joined.exists()


def test_a_worker_joins_and_is_retired(metadata: Instance, programs: list[Program], tmp_path: Path) -> None:
    with Cluster(1, preload=False) as cluster:
        programs.append(program := Program(tmp_path, cluster.address, "--absent", "20s", "--unreachable", "60s"))
        wait_until(program.joined.exists, "the worker was seen", 30)
        assert not program.shut_down.exists()
        program.process.kill()
        programs.append(again := Program(tmp_path, cluster.address, "--absent", "500ms"))
        again.joined.unlink()
        wait_until(again.joined.exists, "the worker was seen again", 30)
        client = cluster.client()
        client.retire_workers(list(client.scheduler_info()["workers"]))
        assert "no worker of this instance any more" in again.end()
    assert again.shut_down.exists()


def test_the_scheduler_dies(metadata: Instance, programs: list[Program], tmp_path: Path) -> None:
    with Cluster(1, preload=False) as cluster:
        programs.append(program := Program(tmp_path, cluster.address, "--unreachable", "1s", "--absent", "60s"))
        wait_until(program.joined.exists, "the worker was seen", 30)
        cluster.scheduler.kill()
        assert "the scheduler has not answered" in program.end()
    assert program.shut_down.exists()
