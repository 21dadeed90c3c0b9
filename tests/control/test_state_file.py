"""Deployments survive the scheduler in a state file, which is replaced as a whole."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from symphony_dask.client.serving import Serving
from symphony_dask.control import state_file
from symphony_dask.errors import BadInput, DeploymentError
from tests.helpers import models
from tests.helpers.cluster import Cluster, wait_until

X = np.array([1.0])
QUICK = "0.1,0.5"


def half(x: Any) -> Any:
    return x / 2


def test_a_killed_scheduler_serves_again_what_was_deployed(tmp_path: Path) -> None:
    state = tmp_path / "state" / "symphony"
    settings = {"DASK_SYMPHONY__POLICY": "eager", "DASK_SYMPHONY__STATE": str(state)}
    with Cluster(1, settings=settings) as cluster:
        with Serving(cluster.client()) as serving:
            serving.deploy("sent", lambda batch: batch * 3, slo="60s", profile=QUICK)
            serving.deploy("torch", models.double, slo="60s", example=X, pinned=True)
            serving.deploy("torch", models.constant(7.0), slo="50s", example=X)
            with pytest.raises(DeploymentError):
                serving.deploy("bad", models.load_nothing, slo="60s", profile=QUICK)
            serving.deploy("gone", models.double, slo="60s", profile=QUICK)
            serving.undeploy("gone")
            serving.pipeline("chain", ["sent", half, "sent"], slo="60s")
        assert os.stat(state).st_mode & 0o777 == 0o600
        cluster.restart_scheduler()
        cluster.add_worker()
        with Serving(cluster.client()) as serving:
            wait_until(lambda: any(w.get("serving") for w in serving.status()["workers"].values()), "a worker", 60)
            assert sorted(serving.status()["models"]) == ["sent", "torch"]
            assert serving.model("sent")(X).tolist() == [3.0]
            again = serving.model("torch")
            assert (again(X), again.slo_ns, again.version) == (7.0, 50 * 10**9, "2")
            assert serving.rollback("torch")(X).tolist() == [2.0]
            assert serving.model("chain")(X).tolist() == [4.5]


def test_a_state_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "state"
    path.write_bytes(b"not a state")
    with pytest.raises(BadInput, match=r"symphony.state .* cannot be read .*move it away"):
        state_file.read(str(path))
    assert state_file.read(str(tmp_path / "none")) == ([], 0, {})


def test_writing_the_state_replaces_it_whole_and_leaves_nothing_beside(tmp_path: Path) -> None:
    path = tmp_path / "state"
    state_file.write(str(path), b"one")
    state_file.write(str(path), b"two")
    assert path.read_bytes() == b"two"
    assert list(tmp_path.iterdir()) == [path]
