"""Recorded runs, replayed through the engine decision for decision."""

from __future__ import annotations

import concurrent.futures
import json
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest

from symphony_dask.backends import Emulated
from symphony_dask.client.serving import Serving
from symphony_dask.engine.journal import Replayer
from symphony_dask.engine.start_rules import START_RULES
from symphony_dask.engine.state import BATCH
from symphony_dask.errors import BadInput
from symphony_dask.trace import open_run
from symphony_dask.wire.records import SUBMIT_ROW
from tests.helpers import models
from tests.helpers.cluster import Cluster, wait_until
from workloads.analysis.verify import verify

LIMIT_S = 60


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that begins with requests under way, and sees about all that an engine can: see the test."""
    folder = tmp_path_factory.mktemp("verify") / "run"
    with Cluster(2, settings={"DASK_SYMPHONY__MAX_REQUESTS": "256"}) as cluster, Serving(cluster.client()) as serving:
        wait_until(lambda: len(serving.status()["workers"]) == 2, "two workers on the lane", LIMIT_S)
        first = serving.deploy("first", Emulated(1.0, 5.0), slo="200ms", max_batch=8, queue_limit=100)
        futures = first.map(range(60))
        serving.record(str(folder))
        futures += [first.submit(i, priority=i % 3) for i in range(200)]
        for future in futures[100:140]:
            future.cancel()
        second = serving.deploy("second", partial(models.double), slo="100ms", profile="0.1,2.0", max_batch=16)
        for policy in ("deferred", "eager", "timeout(0.3)", "adaptive"):
            serving.set_policy(policy)
            futures += second.map([np.array([float(i)]) for i in range(40)])
            concurrent.futures.wait(futures[-20:], LIMIT_S)
        cluster.add_worker()
        wait_until(lambda: sum(w["serving"] for w in serving.status()["workers"].values()) == 3, "a third GPU", LIMIT_S)
        futures += first.map(range(60))
        cluster.workers[0].kill()
        wait_until(lambda: len(serving.status()["workers"]) == 2, "the loss of a worker", LIMIT_S)
        futures += second.map([np.array([float(i)]) for i in range(100)])
        serving.undeploy("first")
        assert not concurrent.futures.wait(futures, LIMIT_S).not_done
        serving.stop_recording()
    return folder


def test_every_decision_is_made_again(recorded: Path) -> None:
    ops = set(open_run(recorded).events.collect()["op"].to_list())
    assert ops >= {
        "state", "policy", "slack", "control", "add_model", "remove_model", "add_gpu", "remove_gpu", "wire", "admit",
        "cancel", "completed", "step",
    }  # fmt: skip
    found = verify(recorded)
    assert found.differing == 0
    batches = open_run(recorded).batches.filter(pl.col("dispatch_ns") >= 0).collect().height
    assert found.decisions >= batches > 10


def rewritten(recorded: Path, folder: Path, frame: pl.DataFrame) -> Path:
    """The run with other events."""
    folder.mkdir()
    info = json.loads((recorded / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(info | {"closed": False}))  # which no test run has to be like
    schema = pq.read_schema(recorded / "events-000001.parquet")
    pq.write_table(frame.to_arrow().cast(schema), folder / "events-000001.parquet")
    return folder


def test_replayed_batches_start_by_the_rules_that_were_recorded(recorded: Path) -> None:
    run = open_run(recorded)
    zero = run.info["engine_clock_ns"]
    first, *events = run.events.select("time_ns", "op", "a", "b", "c", "d", "data").collect().rows(named=True)
    replayer = Replayer(first["data"], SUBMIT_ROW)
    rules = {}
    for event in events:
        found = replayer.apply(**event | {"now": zero + event.pop("time_ns")})
        for row in np.frombuffer((found or b"")[: replayer.last[0] * BATCH.itemsize if found else 0], BATCH):
            rules[int(row["batch"])] = START_RULES[replayer.engine.rule(int(row["gpu"]), int(row["batch"]))]
    of_run = dict(run.batches.select("batch", "rule").collect().iter_rows())
    assert of_run == of_run | rules
    assert {"eager", "full"} < set(rules.values())


def test_the_first_decision_that_differs_is_told(recorded: Path, tmp_path: Path) -> None:
    events = open_run(recorded).events.collect()
    admits = events.filter(pl.col("op") == "admit")["event"]
    # As if there had been no GPU when the first frame of requests came.
    serving = pl.when(pl.col("event") == admits[0]).then(0).otherwise(pl.col("c"))
    found = verify(rewritten(recorded, tmp_path / "refused", events.with_columns(serving.alias("c"))))
    assert found.differing == 1
    assert found.first is not None
    assert found.first.event > admits[0]
    assert found.first.recorded != found.first.replayed


def test_a_run_that_lost_events_cannot_be_verified(recorded: Path, tmp_path: Path) -> None:
    events = open_run(recorded).events.collect()
    with pytest.raises(BadInput, match="lacks events 7 to 8"):
        verify(rewritten(recorded, tmp_path / "gap", events.filter(~pl.col("event").is_in([7, 8]))))
    with pytest.raises(BadInput, match="lacks events 0 to 0"):
        verify(rewritten(recorded, tmp_path / "tail", events.slice(1)))


def test_a_run_without_events_says_where_they_come_from(recorded: Path, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text((recorded / "run.json").read_text())
    with pytest.raises(BadInput, match="has no events: only runs recorded on a live cluster"):
        verify(tmp_path)
