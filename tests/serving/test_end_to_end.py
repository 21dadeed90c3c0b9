"""The two promises of the project: batched answers are the unbatched ones, and a lost worker loses nobody's request."""

from __future__ import annotations

import concurrent.futures
from collections import Counter
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from symphony_dask.client.serving import Serving
from symphony_dask.errors import RequestError
from symphony_dask.trace import open_run
from tests.helpers import models
from tests.helpers.cluster import Cluster, wait_until

torch = pytest.importorskip("torch")

N = 2000


def test_two_thousand_batched_answers_equal_the_unbatched_ones(tmp_path: Path) -> None:
    module = models.convolution()
    samples = np.random.default_rng(0).normal(size=(N, 3, 8, 8)).astype(np.float32)
    with torch.inference_mode():
        expected = [module(torch.from_numpy(sample)[None])[0] for sample in samples]

    with Cluster(2) as cluster, Serving(cluster.client()) as serving:
        wait_until(lambda: len(serving.status()["workers"]) == 2, "two workers on the lane", 60)
        model = serving.deploy("convolution", module, slo="5s", example=samples[0], max_batch=64)
        folder = serving.record(str(tmp_path / "run"))
        futures = model.map(samples)
        answers = [future.result(60) for future in futures]
        serving.stop_recording()

    for answer, right in zip(answers, expected, strict=True):
        torch.testing.assert_close(torch.from_numpy(answer), right)
    run = open_run(folder)
    summary = run.summary()
    assert summary.requests == N
    assert summary.ok + summary.late == N
    assert summary.mean_batch is not None
    assert summary.mean_batch > 4
    assert summary.gpus_used == 2
    requests, batches = run.requests.collect(), run.batches.collect()
    assert sorted(requests["id"]) == list(range(N))
    assert batches["size"].sum() == N
    assert batches["rule"].null_count() == 0
    assert "packing" in batches["rule"]  # the first batch found idle GPUs
    in_batches = requests.group_by("batch").len().join(batches, on="batch")
    assert in_batches.height == batches.height
    assert in_batches.filter(pl.col("len") != pl.col("size")).is_empty()
    for earlier, later in (("arrival_ns", "dispatch_ns"), ("dispatch_ns", "start_ns"), ("end_ns", "reply_ns")):
        assert requests.filter(pl.col(earlier) > pl.col(later)).is_empty()


def test_a_killed_worker_leaves_no_future_hanging_and_the_other_serves_on(tmp_path: Path) -> None:
    with Cluster(2) as cluster, Serving(cluster.client()) as serving:
        wait_until(lambda: len(serving.status()["workers"]) == 2, "two workers on the lane", 60)
        model = serving.deploy("slow", models.slow_double, slo="4s", profile="1.0,14.0", max_batch=8)
        folder = serving.record(str(tmp_path / "run"))
        futures = model.map([np.array([float(i)]) for i in range(N)])
        killed = cluster.workers[0]
        wait_until(lambda: all(w["in_flight"] for w in serving.status()["workers"].values()), "batches at both workers")
        assert not all(f.done() for f in futures)
        killed.kill()
        assert concurrent.futures.wait(futures, timeout=60).not_done == set()
        ended = Counter(type(f.exception()) for f in futures)
        for i, future in enumerate(futures):
            if future.exception() is None:
                assert future.result().tolist() == [2.0 * i]
        assert all(kind is type(None) or issubclass(kind, RequestError) for kind in ended)
        assert ended[type(None)] > 0
        assert sum(ended.values()) == N

        wait_until(lambda: len(serving.status()["workers"]) == 1, "the loss of the worker")
        assert model.submit(np.array([21.0])).result(60).tolist() == [42.0]
        serving.stop_recording()

    run = open_run(folder)
    counts = dict(run.requests.collect()["outcome"].cast(pl.String).value_counts().iter_rows())
    assert sum(counts.values()) == N + 1
    assert counts["ok"] + counts.get("late", 0) == ended[type(None)] + 1
    assert "lost" in run.batches.collect()["outcome"].cast(pl.String).to_list()
