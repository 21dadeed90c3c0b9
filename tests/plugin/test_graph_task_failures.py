"""Held tasks whose workers, lanes or samples are lost or late."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from distributed import KilledWorker

from symphony_dask.client.serving import ModelRef, Serving
from symphony_dask.errors import (
    NoGPUWorker,
)
from symphony_dask.trace import open_run
from tests.helpers import models
from tests.helpers.cluster import Cluster, wait_until
from tests.helpers.graph_tasks import CHECKED, expect, sample, threads_of
from tests.helpers.models import Gate
from tests.helpers.serving import LIMIT_S, QUICK, in_flight, outcomes


def test_a_killed_worker_costs_no_result(tmp_path: Path) -> None:
    gate = Gate(tmp_path)
    with Cluster(2, settings=CHECKED) as cluster, Serving(cluster.client()) as serving:
        client = serving.client
        wait_until(lambda: len(serving.status()["workers"]) == 2, "two workers on the lane", 60)
        model = serving.deploy("gated", gate.model(), slo="60s", profile=QUICK, max_batch=8)
        folder = serving.record(str(tmp_path / "run"))
        futures = client.map(model, client.map(sample, range(100)))
        wait_until(lambda: in_flight(serving) == 4, "two batches at each worker")
        cluster.workers[0].kill()
        wait_until(lambda: len(serving.status()["workers"]) == 1, "the loss of the worker")
        gate.open()
        assert [a[0] for a in client.gather(futures)] == [2.0 * i for i in range(100)]
        wait_until(lambda: in_flight(serving) == 0, "the last answer")
        ended = outcomes(serving, model)
        serving.stop_recording()
        rows = open_run(folder).requests.collect()
        assert sum(ended.values()) == rows.height >= 100
        assert ended["ok"] >= 100

        # And results that were in the memory of a lost worker are computed again.
        cluster.add_worker()
        wait_until(lambda: len(serving.status()["workers"]) == 2, "another worker", 60)
        wait_until(lambda: all(w.get("serving") for w in serving.status()["workers"].values()), "which serves")
        cluster.workers[1].kill()
        wait_until(lambda: len(client.scheduler_info()["workers"]) == 1, "the loss of the other")
        assert [a[0] for a in client.gather(futures)] == [2.0 * i for i in range(100)]
        cluster.workers[2].kill()
        wait_until(lambda: not serving.status()["workers"], "the loss of the last")
        lost = client.submit(ModelRef("gated"), sample(1), pure=False)
        assert isinstance(lost.exception(LIMIT_S), NoGPUWorker)


def test_a_sample_that_takes_long_to_fetch_gets_into_a_later_batch() -> None:
    def hurry(dask_worker: Any) -> None:
        from symphony_dask.plugin import task_rendezvous

        task_rendezvous.GATHER_S = 0.05

    with Cluster(1, settings=CHECKED) as cluster, Serving(cluster.client()) as serving:
        client = serving.client
        wait_until(lambda: len(serving.status()["workers"]) == 1, "a worker on the lane", 60)
        cluster.add_worker(gpu=False)
        wait_until(lambda: len(client.scheduler_info()["workers"]) == 2, "a worker without GPU", 60)
        model = serving.deploy("values", models.values, slo="60s", profile=QUICK)
        client.run(hurry)
        (far,) = client.scheduler_info()["workers"].keys() - serving.status()["workers"].keys()
        samples = client.map(models.SlowToLoad, [{"value": float(i)} for i in range(3)], workers=[far])
        assert client.gather(client.map(model, samples)) == [0.0, 1.0, 2.0]
        wait_until(lambda: outcomes(serving, model)["ok"] == 3, "three answers")


def test_tasks_whose_workers_were_lost_too_often_err_as_any_task(tmp_path: Path) -> None:
    gate = Gate(tmp_path)
    settings = {**CHECKED, "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "0"}
    with Cluster(2, settings=settings) as cluster, Serving(cluster.client()) as serving:
        client = serving.client
        wait_until(lambda: len(serving.status()["workers"]) == 2, "two workers on the lane", 60)
        model = serving.deploy("gated", gate.model(), slo="60s", profile=QUICK, max_batch=8)
        futures = client.map(model, [sample(i) for i in range(50)])
        wait_until(lambda: in_flight(serving) == 4, "two batches at each worker")
        cluster.workers[0].kill()
        wait_until(lambda: len(serving.status()["workers"]) == 1, "the loss of the worker")
        gate.open()
        wait_until(lambda: all(f.done() for f in futures), "the end of all tasks")
        lost = [f for f in futures if f.status == "error"]
        assert {type(f.exception()) for f in lost} == {KilledWorker}
        assert 0 < len(lost) <= 16
        expect(serving, model, {"ok": 50 - len(lost), "cancelled": len(lost)})


def test_a_worker_whose_lane_breaks_costs_no_result(tmp_path: Path) -> None:
    gate = Gate(tmp_path)
    with Cluster(2, settings=CHECKED) as cluster, Serving(cluster.client()) as serving:
        client = serving.client
        wait_until(lambda: len(serving.status()["workers"]) == 2, "two workers on the lane", 60)
        model = serving.deploy("gated", gate.model(), slo="60s", profile=QUICK, max_batch=8)
        futures = client.map(model, [sample(i) for i in range(50)])
        wait_until(lambda: in_flight(serving) == 4, "two batches at each worker")
        client.run(models.break_lane, workers=[next(iter(client.scheduler_info()["workers"]))])
        gate.open()
        assert [a[0] for a in client.gather(futures)] == [2.0 * i for i in range(50)]
        wait_until(lambda: threads_of(client) == {(1, 0)}, "workers with their own threads only")
