"""Options of ``deploy`` that say when a batch starts, on a real cluster with an emulated GPU."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from symphony_dask.backends import Emulated
from symphony_dask.client.model import Model
from symphony_dask.client.serving import Serving
from symphony_dask.errors import BadInput
from tests.helpers.cluster import Cluster

#: l(b) = b + 5 ms, and an SLO that a start by the window is told from any other by.
GPU, SLO_S = Emulated(1.0, 5.0), 2.0


def lone_s(model: Model) -> float:
    """How long a request takes that comes alone, the better of two."""
    took = []
    for _ in range(2):
        begin = time.perf_counter()
        model(1.0)
        took.append(time.perf_counter() - begin)
    return min(took)


def test_each_model_starts_batches_as_it_was_deployed(tmp_path: Path) -> None:
    settings = {"DASK_SYMPHONY__POLICY": "adaptive", "DASK_SYMPHONY__STATE": str(tmp_path / "state")}
    with Cluster(1, settings=settings) as cluster:
        with Serving(cluster.client()) as serving:
            serving.wait_ready()

            def deploy(name: str, **options: Any) -> Model:
                found: Model = serving.deploy(name, GPU, slo=f"{SLO_S}s", **options)
                return found

            assert lone_s(deploy("quick")) < SLO_S / 4
            assert SLO_S / 2 < lone_s(deploy("frugal", prefer="gpus")) < SLO_S
            delayed = lone_s(deploy("delayed", prefer="gpus", max_delay="300ms"))
            assert 0.25 < delayed < SLO_S / 2
            assert SLO_S / 2 < lone_s(deploy("paper", policy="deferred")) < SLO_S
            serving.set_policy("deferred")
            assert lone_s(deploy("eager", policy="eager")) < SLO_S / 4
        cluster.restart_scheduler()
        cluster.add_worker()
        with Serving(cluster.client()) as serving:
            serving.set_policy("adaptive")
            serving.wait_ready("frugal")
            assert lone_s(serving.model("quick")) < SLO_S / 4
            assert lone_s(serving.model("frugal")) > SLO_S / 2


def test_what_cannot_be_is_refused_at_once(serving: Serving) -> None:
    for options, text in (
        ({"prefer": "speed"}, "prefer='speed': choose latency or gpus"),
        ({"prefer": ["gpus"]}, "choose latency or gpus"),
        ({"policy": "adaptve"}, "policy 'adaptve' is unknown: .*did you mean 'adaptive'"),
        ({"policy": 3}, "model 'odd': "),
        ({"max_delay": "5 parsecs"}, "max_delay"),
        ({"max_delay": "-5ms"}, "max_delay"),
    ):
        with pytest.raises(BadInput, match=text):
            serving.deploy("odd", GPU, slo="1s", **options)  # type: ignore[arg-type]
