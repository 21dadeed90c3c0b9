"""What users see when a lane, a worker, a scheduler or a whole cluster comes and goes."""

from __future__ import annotations

import asyncio
import concurrent.futures
from functools import partial
from typing import Any

import numpy as np
import pytest
from distributed import Client, LocalCluster

from symphony_dask.backends.emulated import Emulated
from symphony_dask.client.model import Model
from symphony_dask.client.serving import Serving
from symphony_dask.errors import (
    ConnectionLost,
    DeploymentError,
    NoGPUWorker,
    RequestError,
    UnknownModel,
)
from tests.helpers import models
from tests.helpers.cluster import Cluster, wait_until
from tests.helpers.models import Gate
from tests.helpers.serving import EAGER, LIMIT_S, PLACES, QUICK, Deploy, outcomes, queued


def serves(serving: Serving) -> bool:
    return any(worker.get("serving") for worker in serving.status()["workers"].values())


def test_closing_the_lane_ends_pending_requests_and_asking_opens_it_again(
    cluster: Cluster, held: tuple[Model, list[Any]], gate: Gate
) -> None:
    model, _ = held
    other = Serving(cluster.client())
    theirs = Model(model.name, model._id, model.slo_ns, {}, None, other._lane)
    future = theirs.submit(np.array([1.0]))
    other.close()
    with pytest.raises(ConnectionLost, match=r"closed by Serving.close\(\)"):
        future.result(LIMIT_S)
    with pytest.raises(ConnectionLost, match=r"make a new Serving\(client\)"):
        theirs.submit(np.array([1.0]))
    other.status()
    again = theirs.submit(np.array([5.0]))
    gate.open()
    assert again.result(LIMIT_S).tolist() == [10.0]
    other.close()


def test_closing_the_dask_client_ends_pending_requests(cluster: Cluster, held: tuple[Model, list[Any]]) -> None:
    model, _ = held

    async def main() -> list[Any]:
        client = await Client(cluster.address, asynchronous=True, set_as_default=False)
        other = await Serving(client)
        theirs = Model(model.name, model._id, model.slo_ns, {}, None, other._lane)
        futures.append(theirs.submit(np.array([1.0])))
        await other.status()
        await client.close()
        return [theirs]

    # The event loop of a synchronous client ends with the last client of the process; this one ends by itself.
    futures: list[Any] = []
    (theirs,) = asyncio.run(main())
    with pytest.raises(ConnectionLost, match="Dask client was closed"):
        futures[0].result(LIMIT_S)
    for _ in range(2):
        with pytest.raises(ConnectionLost):
            theirs.submit(np.array([1.0])).result(LIMIT_S)


def test_a_worker_whose_lane_breaks_comes_back_and_answers(
    serving: Serving, held: tuple[Model, list[Any]], gate: Gate
) -> None:
    model, futures = held
    serving.client.run(models.break_lane)
    wait_until(lambda: queued(serving, model) == PLACES, "every request back in the queue")
    gate.open()
    assert [f.result(LIMIT_S).tolist() for f in futures] == [[2.0 * i] for i in range(PLACES)]
    assert outcomes(serving, model) == {"ok": PLACES}


def test_a_killed_scheduler_ends_pending_requests_as_connection_lost(gate: Gate) -> None:
    with Cluster(1, settings=EAGER) as cluster:
        serving = Serving(cluster.client())
        model = serving.deploy("m", gate.model(), slo="60s", profile=QUICK, timeout="60s")
        futures = model.map([np.array([1.0])] * 10)
        cluster.scheduler.kill()
        assert concurrent.futures.wait(futures, LIMIT_S).not_done == set()
        assert {type(f.exception()) for f in futures} == {ConnectionLost}
        with pytest.raises(ConnectionLost):
            model.submit(np.array([1.0])).result(LIMIT_S)
        serving.close()


def test_serving_installs_itself_once_and_a_deployment_waits_for_a_worker() -> None:
    with Cluster(1, gpu=False, preload=False, settings=EAGER) as cluster:
        clients = [cluster.client(), cluster.client()]
        with concurrent.futures.ThreadPoolExecutor() as pool:
            first, second = pool.map(Serving, clients)
            with pytest.raises(NoGPUWorker, match=r'no worker with a GPU resource.*--resources "GPU=1"'):
                first.deploy("m", Emulated(0.1, 1), slo="60s", timeout="50ms")
            waiting = pool.submit(first.deploy, "m", Emulated(0.1, 1), slo="60s", timeout="60s")
            wait_until(lambda: "m" in second.status()["loading"], "the deployment, seen by the other client")
            cluster.add_worker(gpu=True)
            model = waiting.result(60)
        assert model.submit(b"").result(LIMIT_S) is None


def test_requests_and_deployments_without_a_worker_end_and_the_next_worker_serves() -> None:
    with Cluster(1, settings=EAGER) as cluster:
        serving = Serving(cluster.client())
        model = serving.deploy("m", Emulated(0.1, 1), slo="60s")
        cluster.workers[-1].kill()
        wait_until(lambda: not serving.status()["workers"], "the loss of the worker")
        with pytest.raises(NoGPUWorker, match="no worker serves model 'm'"):
            model.submit(b"").result(LIMIT_S)
        with pytest.raises(NoGPUWorker):
            serving.deploy("n", Emulated(0.1, 1), slo="60s", timeout="50ms")
        cluster.add_worker()
        wait_until(lambda: serves(serving), "another worker", 60)
        assert model.submit(b"").result(LIMIT_S) is None


def test_a_worker_that_dies_while_it_loads_fails_the_deployment() -> None:
    with Cluster(1, settings=EAGER) as cluster:
        serving = Serving(cluster.client())
        model = serving.deploy("m", Emulated(0.1, 1), slo="60s")
        with pytest.raises(DeploymentError, match="came up on no worker"):
            serving.deploy("n", models.die_on_load, slo="60s", profile=QUICK)
        cluster.add_worker()
        wait_until(lambda: serves(serving), "another worker", 60)
        assert model.submit(b"").result(LIMIT_S) is None
        assert list(serving.status()["models"]) == ["m"]


def test_uvloop_serves_small_and_large_payloads() -> None:
    pytest.importorskip("uvloop")
    with Cluster(1, settings={**EAGER, "DASK_DISTRIBUTED__ADMIN__EVENT_LOOP": "uvloop"}) as cluster:
        loop = cluster.client().run_on_scheduler(lambda: type(asyncio.get_running_loop()).__module__)
        assert loop.startswith("uvloop")
        with Serving(cluster.client()) as serving:
            model = serving.deploy("m", partial(models.double), slo="60s", profile=QUICK)
            for size in (1, 100_000):
                futures = model.map([np.full(size, i, np.float64) for i in range(50)])
                for i, future in enumerate(futures):
                    assert (future.result(LIMIT_S) == 2 * i).all()


def test_a_local_cluster_of_processes_serves() -> None:
    with (
        LocalCluster(
            n_workers=1, threads_per_worker=1, processes=True, resources={"GPU": 1}, dashboard_address=None
        ) as local,
        Client(local, set_as_default=False) as client,
        Serving(client) as serving,
    ):
        model = serving.deploy("m", partial(models.double), slo="60s", profile=QUICK)
        serving.set_policy("eager")
        assert model(np.array([2.0])).tolist() == [4.0]
        with pytest.raises(RequestError):
            model.submit("text is not doubled", slo="1us").result(LIMIT_S)


def test_a_cluster_that_serves_is_ready(serving: Serving, deploy: Deploy) -> None:
    assert serving.wait_ready() == 2
    assert serving.wait_ready(deploy(models.double, profile=QUICK).name, gpus=2) == 2


def test_what_a_cluster_lacks_is_named(serving: Serving) -> None:
    with pytest.raises(NoGPUWorker, match=r"2 of 3 GPU slots serve after 0\.01 s"):
        serving.wait_ready(gpus=3, timeout="10ms")
    with pytest.raises(UnknownModel, match=r"model 'nothing' is not deployed after 0\.01 s"):
        serving.wait_ready("nothing", timeout="10ms")
