"""A fleet of real worker processes with emulated GPUs follows the load, and no request that was accepted is lost."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from autoscale.fleet.controller import Controller, Decision
from autoscale.fleet.fleet import Launch
from symphony_dask.backends import Emulated
from symphony_dask.client.serving import Serving
from symphony_dask.errors import NoGPUWorker
from symphony_dask.trace import open_run
from tests.helpers import models
from tests.helpers.aws.fleet_load import LOCAL, Load, live, outcomes
from tests.helpers.cluster import Cluster, wait_until
from tests.helpers.models import Gate
from workloads.analysis.verify import verify

LIMIT_S = 60

#: So many requests a second one GPU serves: 8 ms each in batches of 16 and more.
GPU_HZ = 115


@pytest.fixture(scope="module")
def empty_cluster() -> Iterator[Cluster]:
    """A scheduler without workers, which dispatches at once."""
    with Cluster(0, settings={"DASK_SYMPHONY__POLICY": "eager"}) as cluster:
        yield cluster


@pytest.fixture
def alone(empty_cluster: Cluster) -> Iterator[Serving]:
    with Serving(empty_cluster.client()) as serving:
        yield serving
        serving.stop_recording()
        for name in serving.status()["models"]:
            serving.undeploy(name)


def states(serving: Serving) -> list[str]:
    """Of each slot, whether its worker is up."""
    return [slot["state"] for worker in serving.status()["workers"].values() for slot in worker.get("health", ())]


def slots(serving: Serving) -> dict[str, int]:
    """Slots that take batches, by worker name."""
    workers = serving.status()["workers"].values()
    return {w["name"]: w["serving"] for w in workers if w.get("serving") and not w["draining"]}


# Drains


def test_a_drained_worker_ends_its_batches_and_gets_no_others(
    empty_cluster: Cluster, alone: Serving, tmp_path: Path, gate: Gate
) -> None:
    with live(empty_cluster, tmp_path / "fleet") as fleet:
        fleet.reach(2)
        model = alone.deploy("gated", gate.model(models.double), slo="60s", profile="0.1,0.5", max_batch=1)
        alone.record(str(tmp_path / "run"))
        futures = [model.submit(np.array([float(i)])) for i in range(4)]
        status = alone.status
        wait_until(lambda: sum(w["in_flight"] for w in status()["workers"].values()) == 4, "four batches", LIMIT_S)
        drained, other = sorted(i.id for i in fleet.fleet.list() if i.live)
        assert alone.drain([drained], why="for the test") == {drained: 2}
        futures += [model.submit(np.array([float(i)])) for i in range(4, 8)]
        assert alone.retire([drained], timeout="1s") == {drained: "draining"}  # it has work
        gate.open()
        assert [f.result(LIMIT_S).tolist() for f in futures] == [[2.0 * i] for i in range(8)]
        alone.deploy("second", Emulated(0.1, 0.5), slo="60s")  # which has workers looked at again
        assert slots(alone) == {other: 1}
        assert alone.retire([drained]) == {drained: "retired"}
        assert not alone.undrain([drained])
        wait_until(
            lambda: len(fleet.fleet.list()) == 2 and not fleet.fleet.list()[0].live, "its process to end", LIMIT_S
        )
        folder = alone.stop_recording()
    run = open_run(folder)
    batches = run.batches.collect()
    assert batches["outcome"].cast(pl.String).to_list() == ["done"] * 8
    events = run.gpus.collect().filter(pl.col("event") != "ready")
    assert events["event"].cast(pl.String).to_list()[:2] == ["drain", "leave"]
    drain_ns = events["time_ns"][0]
    gone = events["gpu"][0]
    assert batches.filter((pl.col("gpu") == gone) & (pl.col("dispatch_ns") > drain_ns)).height == 0
    assert verify(folder).differing == 0


def test_the_last_worker_serves_what_is_queued_before_it_goes(
    empty_cluster: Cluster, alone: Serving, tmp_path: Path, gate: Gate
) -> None:
    with live(empty_cluster, tmp_path / "fleet") as fleet:
        fleet.reach(1)
        model = alone.deploy("gated", gate.model(models.double), slo="60s", profile="0.1,0.5", max_batch=1)
        futures = [model.submit(np.array([float(i)])) for i in range(20)]
        wait_until(lambda: alone.status()["models"]["gated"]["queued"] == 18, "a queue", LIMIT_S)
        (last,) = (i.id for i in fleet.fleet.list() if i.live)
        alone.drain([last])
        assert alone.retire([last], timeout="1s") == {last: "draining"}
        with pytest.raises(NoGPUWorker):
            model.submit(np.array([1.0])).result(LIMIT_S)
        gate.open()
        assert outcomes(futures) == {"ok": 20}
        wait_until(lambda: alone.retire([last], timeout="5s") == {last: "retired"}, "its retirement", LIMIT_S)


def test_a_worker_that_is_drained_before_it_joins_takes_nothing_until_it_is_taken_back(
    empty_cluster: Cluster, alone: Serving, tmp_path: Path
) -> None:
    with live(empty_cluster, tmp_path / "fleet") as fleet:
        (offer,) = fleet.fleet.offers()
        made = fleet.fleet.launch(Launch(0, 1, offer))
        alone.drain([made.id], may_join_later=True)
        wait_until(lambda: states(alone) == ["ready"], "the worker to be up", LIMIT_S)
        assert slots(alone) == {}
        assert list(alone.undrain([made.id])) == [made.id]
        wait_until(lambda: slots(alone) == {made.id: 1}, "its slot", LIMIT_S)


def test_tasks_of_models_in_graphs_avoid_a_drained_worker_and_their_results_move(
    empty_cluster: Cluster, alone: Serving, tmp_path: Path
) -> None:
    with live(empty_cluster, tmp_path / "fleet") as fleet:
        fleet.reach(2)
        model = alone.deploy("graph", models.double, slo="60s", profile="0.1,0.5")
        before = alone.client.map(model, [np.array([float(i)]) for i in range(20)])
        alone.client.gather(before)
        drained, other = sorted(i.id for i in fleet.fleet.list() if i.live)
        alone.drain([drained])
        after = alone.client.map(model, [np.array([float(i)]) for i in range(20, 40)])
        alone.client.gather(after)
        names = {address: w["name"] for address, w in alone.status()["workers"].items()}
        held_by = alone.client.who_has(after)
        assert {names[address] for holders in held_by.values() for address in holders} == {other}
        assert alone.retire([drained]) == {drained: "retired"}
        answers = alone.client.gather(before + after)
        assert [a.tolist() for a in answers] == [[2.0 * i] for i in range(40)]


def drains_under_load(cluster: Cluster, serving: Serving, tmp_path: Path, drains: int) -> dict[str, Any]:
    """Scale between one and four GPUs under a steady load until so many workers were drained."""
    with live(cluster, tmp_path / "fleet") as fleet:
        fleet.reach(1)
        model = serving.deploy("load", Emulated(2.0, 4.0), slo="5s")
        serving.record(str(tmp_path / "run"))
        with Load(model, 150.0) as load:
            while sum(a.startswith("terminate") for a in fleet.actions) < drains:
                fleet.reach(4)
                fleet.reach(1)
        found = {"outcomes": outcomes(load.futures), "terminated": sum(a.startswith("term") for a in fleet.actions)}
        run = open_run(serving.stop_recording())
    gpus = run.gpus.collect()["event"].cast(pl.String).to_list()
    return {**found, "drained": gpus.count("drain"), "verified": verify(run)}


@pytest.mark.slow
def test_no_request_fails_through_drains_under_load(empty_cluster: Cluster, alone: Serving, tmp_path: Path) -> None:
    found = drains_under_load(empty_cluster, alone, tmp_path, 3)
    assert set(found["outcomes"]) == {"ok"}
    assert found["terminated"] == found["drained"] == 3
    assert found["verified"].differing == 0


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_no_request_fails_through_a_hundred_drains_under_load(
    empty_cluster: Cluster, alone: Serving, tmp_path: Path
) -> None:
    found = drains_under_load(empty_cluster, alone, tmp_path, 100)
    print(found)
    assert set(found["outcomes"]) <= {"ok", "late"}
    assert found["drained"] >= 100
    assert found["verified"].differing == 0


# Following the load


class ByRate:
    """GPUs for the requests of the last second and a half more, the most of the last three seconds; zero for none."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving
        self._counts: list[tuple[float, int]] = []
        self._wanted: list[tuple[float, int]] = []

    def __call__(self, ready: int, booting: int, draining: int) -> Decision:
        now = time.monotonic()
        came = sum(sum(m["outcomes"].values()) + m["queued"] for m in self._serving.status()["models"].values())
        self._counts = [c for c in self._counts if c[0] > now - 1.2] + [(now, came)]
        if len(self._counts) < 2:
            return Decision(ready + booting, "no rate yet", {})
        (begin_s, begin), (end_s, end) = self._counts[0], self._counts[-1]
        rate_hz = (end - begin) / max(end_s - begin_s, 0.2)
        gpus = math.ceil(rate_hz * 1.3 / GPU_HZ)
        self._wanted = [w for w in self._wanted if w[0] > now - 3.0] + [(now, gpus)]
        return Decision(max(n for _, n in self._wanted), f"{rate_hz:.0f} requests a second", {"rate_hz": rate_hz})


@pytest.mark.slow
def test_workers_follow_load_steps_to_zero_and_back_and_no_accepted_request_fails(
    empty_cluster: Cluster, alone: Serving, tmp_path: Path
) -> None:
    seen: list[tuple[int, int]] = []
    with live(empty_cluster, tmp_path / "fleet") as fleet:
        fleet.reach(1)
        model = alone.deploy("steps", Emulated(8.0, 8.0), slo="20s")
        controller = Controller(
            LOCAL,
            fleet.fleet,
            fleet.scheduler,
            ByRate(alone),
            interval_s=0.3,
            on_step=lambda step, decision: seen.append((decision.gpus, step.gpus("joined"))),
        )
        thread = threading.Thread(target=controller.run)
        serving_gpus = lambda: sum(slots(alone).values())  # noqa: E731
        try:
            with Load(model, 70.0) as load:
                wait_until(lambda: len(load.futures) > 20, "load")
                thread.start()
                wait_until(lambda: (1, 1) in seen[-3:], "one GPU at the load of one", LIMIT_S)
                load.rate_hz = 280.0
                wait_until(lambda: serving_gpus() == 4, "four GPUs at four times the load", LIMIT_S)
                load.rate_hz = 70.0
                wait_until(lambda: serving_gpus() == 1, "one GPU again", LIMIT_S)
                load.rate_hz = 0.0
                wait_until(lambda: not [i for i in fleet.fleet.list() if i.live], "none", LIMIT_S)
                before = list(load.futures)
                assert outcomes(before) == {"ok": len(before)}
                # What comes now is refused, and counts as wanted: it brings a GPU back.
                load.rate_hz = 20.0
                wait_until(lambda: serving_gpus() >= 1, "a GPU again", LIMIT_S)
                served = len(load.futures)
                wait_until(lambda: len(load.futures) > served + 20, "requests to it", LIMIT_S)
            after = outcomes(load.futures[len(before) :])
            assert set(after) == {"NoGPUWorker", "ok"}
            assert outcomes(load.futures[served:]) == {"ok": len(load.futures) - served}
        finally:
            controller.stopped = True
            thread.join()
    assert "steps" in alone.status()["models"]


def test_a_deployment_that_waits_for_a_first_gpu_brings_one(
    empty_cluster: Cluster, alone: Serving, tmp_path: Path
) -> None:
    with live(empty_cluster, tmp_path / "fleet") as fleet:

        def decide(ready: int, booting: int, draining: int) -> Decision:
            return Decision(ready, "what there is", {})

        controller = Controller(LOCAL, fleet.fleet, fleet.scheduler, decide, 0.2)
        thread = threading.Thread(target=controller.run)
        thread.start()
        try:
            model = alone.deploy("first", models.double, slo="60s", profile="0.1,0.5", timeout="60s")
            assert model.submit(np.array([3.0])).result(LIMIT_S).tolist() == [6.0]
        finally:
            controller.stopped = True
            thread.join()
