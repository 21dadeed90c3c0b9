from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from symphony_dask.client.model import Model
from symphony_dask.client.serving import Serving
from tests.helpers.cluster import Cluster, wait_until
from tests.helpers.models import Gate
from workloads.analysis.verify import verify


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """Two GPU workers, and batches that leave as soon as a GPU is free: no test waits for a window to open."""
    with Cluster(2, settings={"DASK_SYMPHONY__POLICY": "eager"}) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def serving(cluster: Cluster) -> Iterator[Serving]:
    with Serving(cluster.client()) as serving:
        wait_until(lambda: len(serving.status()["workers"]) == 2, "two workers on the lane", 60)
        yield serving


@pytest.fixture(autouse=True)
def recorded_runs_can_be_verified(request: pytest.FixtureRequest) -> Iterator[None]:
    """Every live run that a test records into its ``tmp_path`` is led once more through the engine."""
    folder = request.getfixturevalue("tmp_path") if "tmp_path" in request.fixturenames else None
    yield
    for events in folder.rglob("events-000001.parquet") if folder is not None else ():
        if json.loads((events.parent / "run.json").read_text()).get("closed"):
            assert verify(events.parent).differing == 0


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    gate = Gate(tmp_path)
    yield gate
    gate.open()


@pytest.fixture
def deploy(serving: Serving, request: pytest.FixtureRequest) -> Iterator[Callable[..., Model]]:
    """``serving.deploy`` under the test's name, undone after the test."""
    deployed: list[str] = []

    def deploy(model: Any, *, slo: str = "60s", **options: Any) -> Model:
        name = f"{request.node.name}-{len(deployed)}"
        made = serving.deploy(name, model, slo=slo, **options)
        deployed.append(name)
        return made

    yield deploy
    for name in deployed:
        if name in serving.status()["models"]:
            serving.undeploy(name)
