from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from symphony_dask.client.model import Model
from symphony_dask.client.serving import Serving
from tests.helpers.cluster import Cluster, wait_until
from tests.helpers.models import Gate
from workloads.analysis.verify import verify

# Tests run side by side, and torch's threads, one a core in each process, would spin against one another.
os.environ.setdefault("OMP_NUM_THREADS", "1")

#: Of plain ``pytest``: one more than there are cores, as tests also wait for processes that they started. Each has a
#: cluster of its own and may load torch: some 2 GB.
PROCESSES = min(8, (os.cpu_count() or 1) + 1)


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Run the whole suite in several processes, a file in one of them; what is named on the command line, in this one.

    ``-n`` and ``--dist`` of pytest-xdist overrule it, ``-n 0`` runs everything here.
    """
    plain = config.args_source is pytest.Config.ArgsSource.TESTPATHS and not hasattr(config, "workerinput")
    if plain and config.pluginmanager.hasplugin("xdist") and config.option.numprocesses is None:
        config.option.numprocesses = PROCESSES
        config.option.dist = "loadfile"


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
        assert deployed(serving) == set()


def deployed(serving: Serving) -> set[str]:
    """The models and pipelines of its cluster, whoever deployed them."""
    return {*serving.status()["models"], *serving.pipelines()}


@pytest.fixture(autouse=True)
def nothing_stays_deployed(request: pytest.FixtureRequest) -> Iterator[None]:
    """A test leaves the shared cluster as it found it: what stayed there would take a part in the next test."""
    if not {"cluster", "serving"} & {*request.fixturenames}:
        yield
        return
    serving = request.getfixturevalue("serving")
    before = deployed(serving)
    yield
    left = deployed(serving) - before
    for name in left:
        serving.undeploy(name, force=True)
    assert left == set()


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
