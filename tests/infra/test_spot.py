"""The spot watcher against a metadata service and a scheduler in this process."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from typing import Any

import pytest
from distributed import Scheduler, Worker

from infra.worker import spot
from symphony_dask import Serving
from tests.helpers.aws.imds import Instance
from tests.helpers.cluster import Cluster, wait_until

NOTICE = json.dumps({"action": "terminate", "time": "2026-11-25T12:00:00Z"})


class Drained:
    """Stands for the plugin's RPC: fails ``failures`` times, then notes who is drained."""

    def __init__(self, failures: int = 0) -> None:
        self.failures = failures
        self.workers: list[str] = []

    async def drain(self, workers: list[str], why: str) -> dict[str, Any]:
        if self.failures:
            self.failures -= 1
            raise RuntimeError("not now")
        self.workers = list(workers)
        return {"ok": dict.fromkeys(workers, 0)}


async def watched(metadata: Instance, drained: Drained) -> list[str]:
    """The worker's address; ``spot.watch`` ran until it had the notice and had told the scheduler."""
    async with Scheduler(host="127.0.0.1", port=0, dashboard_address=":0") as scheduler:
        scheduler.handlers["symphony_drain"] = drained.drain
        async with Worker(scheduler.address, host="127.0.0.1", name="i-0abc-0", dashboard=False) as worker:
            watching = asyncio.ensure_future(spot.watch(scheduler.address, "127.0.0.1", 0.01))
            # It looks some times and finds nothing.
            done, _ = await asyncio.wait({watching}, timeout=0.2)
            assert not done
            assert drained.workers == []
            metadata.values["spot/instance-action"] = NOTICE
            told = await asyncio.wait_for(watching, 20)
            assert told == [worker.address]
            return told


def test_a_notice_drains_the_workers_of_the_instance(metadata: Instance) -> None:
    drained = Drained()
    told = asyncio.run(watched(metadata, drained))
    assert drained.workers == told
    assert metadata.refused == 0


def test_a_scheduler_that_fails_is_asked_again(metadata: Instance) -> None:
    drained = Drained(failures=2)
    told = asyncio.run(watched(metadata, drained))
    assert drained.workers == told


def test_metadata_that_cannot_be_read_are_read_again(metadata: Instance, monkeypatch: pytest.MonkeyPatch) -> None:
    real, failures = spot.imds.spot_notice, [OSError("timed out"), OSError("timed out")]

    def fails_twice() -> Any:
        if failures:
            raise failures.pop()
        return real()

    monkeypatch.setattr(spot.imds, "spot_notice", fails_twice)
    asyncio.run(watched(metadata, drained := Drained()))
    assert drained.workers


def test_the_program_drains_a_worker_of_a_real_scheduler(metadata: Instance) -> None:
    with Cluster(1) as cluster, Serving(cluster.client()) as serving:
        wait_until(lambda: serving.status()["workers"], "the worker is on the lane", 60)
        (worker,) = serving.status()["workers"]
        metadata.values["spot/instance-action"] = NOTICE
        command = [sys.executable, "-m", "infra.worker.spot", "--scheduler", cluster.address]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        assert f"draining: {worker}" in done.stderr
        assert serving.status()["drains"][worker]["why"] == "spot notice"
