"""Signals, metrics, the scaling table, and requests that wait for a GPU, on clusters of processes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from autoscale.policies.signals import Signals
from symphony_dask.client.serving import Serving
from symphony_dask.dispatcher.load_signals import GpuFacts, ModelFacts, Sampler
from symphony_dask.errors import BadInput, NoGPUWorker
from symphony_dask.observe.metrics import expose
from tests.helpers.cluster import Cluster, wait_until

PROFILE = "1,5"


def test_signals_tell_the_load_of_models_and_the_use_of_gpus(serving: Serving, deploy: Any) -> None:
    model = deploy(lambda batch: batch, profile=PROFILE, slo="1s")
    for future in model.map([np.array([float(i)]) for i in range(50)]):
        future.result(30)

    def seen() -> Any:
        signals = Signals.from_reply(serving.signals())
        found = next(m for m in signals.models if m.name == model.name)
        return (signals, found) if found.rate_hz[60.0] > 0 else None

    signals, found = wait_until(seen, "a sample with the requests")
    assert found.slo_ns == 1_000_000_000
    assert found.bad_hz == found.queued == 0
    assert list(found.gpu_seconds_per_request) == ["cpu"]
    assert 0.001 < found.gpu_seconds_per_request["cpu"] <= 0.006
    assert sorted(gpu.rank for gpu in signals.gpus) == [0, 1]
    assert {gpu.worker for gpu in signals.gpus} == set(serving.status()["workers"])
    assert not any(gpu.draining for gpu in signals.gpus)


def test_requests_that_are_refused_are_arrivals_and_bad(deploy: Any, serving: Serving) -> None:
    model = deploy(lambda batch: batch, profile="0,100", slo="10s", queue_limit=1)
    futures = model.map([np.array([float(i)]) for i in range(500)])
    outcomes = [future.exception(30) for future in futures]
    refused = sum(error is not None for error in outcomes)
    assert refused > 0

    def seen() -> Any:
        found = next(m for m in Signals.from_reply(serving.signals()).models if m.name == model.name)
        return found if found.bad_hz > 0 else None

    assert wait_until(seen, "a sample with the refused ones").rate_hz[60.0] > 0


def test_scaling_ticks_are_recorded(serving: Serving, tmp_path: Path) -> None:
    assert serving.record_scaling({"demand": 2.5}, {"gpus": 3}) is False
    serving.record(str(tmp_path / "run"))
    assert serving.record_scaling({"demand": 2.5}, {"gpus": 3, "why": "load"}) is True
    serving.stop_recording()
    row = pl.read_parquet(tmp_path / "run" / "scaling-000001.parquet").row(0, named=True)
    assert json.loads(row["inputs"]) == {"demand": 2.5}
    assert json.loads(row["decision"]) == {"gpus": 3, "why": "load"}
    assert row["time_ns"] >= 0


def test_scaling_ticks_must_be_plain(serving: Serving, tmp_path: Path) -> None:
    serving.record(str(tmp_path / "run"))
    with pytest.raises(BadInput, match="plain JSON"):
        serving.record_scaling({"demand": {1, 2}}, {})
    serving.stop_recording()


def test_a_request_that_comes_while_there_is_no_gpu_waits_for_one_where_that_is_set() -> None:
    settings = {"DASK_SYMPHONY__WAIT_FOR_GPU": "5min"}
    with Cluster(1, settings=settings) as cluster, Serving(cluster.client()) as serving:
        model = serving.deploy("m", lambda batch: batch, slo="5s", profile=PROFILE)
        cluster.workers[0].kill()
        wait_until(lambda: not serving.status()["workers"], "the worker to be gone")
        future = model.submit(np.array([1.0]))
        wait_until(lambda: serving.signals()["models"][0]["queued"] == 1, "the request to wait")
        cluster.add_worker()
        assert future.result(60) == np.array([1.0])
        assert serving.status()["models"]["m"]["outcomes"]["ok"] == 1


def test_a_request_that_waits_too_long_for_a_gpu_is_refused() -> None:
    settings = {"DASK_SYMPHONY__WAIT_FOR_GPU": "500ms"}
    with Cluster(1, settings=settings) as cluster, Serving(cluster.client()) as serving:
        model = serving.deploy("m", lambda batch: batch, slo="5s", profile=PROFILE)
        cluster.workers[0].kill()
        wait_until(lambda: not serving.status()["workers"], "the worker to be gone")
        with pytest.raises(NoGPUWorker):
            model.submit(np.array([1.0])).result(30)


def test_metrics_are_exposed_and_taken_back() -> None:
    prometheus = pytest.importorskip("prometheus_client", reason="needs prometheus_client, of the extra test")
    sampler = Sampler()
    for second in range(3):
        sampler.add(second, ["m"], [10.0 * second], [0], [4], ["g"], [0.5 * second])
    table = np.array([0, 6_000_000, 7_000_000, 8_000_000])
    models = {"m": ModelFacts("resnet", 50_000_000, 1, {"T4": table})}
    gpus = {"g": GpuFacts(0, 0, "T4", "tcp://w", False)}
    take_back = expose(lambda: sampler.reply(models, gpus))
    text = prometheus.generate_latest().decode()
    take_back()
    for line in (
        'symphony_model_arrival_rate_hz{model="resnet",window_seconds="10"} 10.0',
        'symphony_model_ongoing_requests{model="resnet",window_seconds="60"} 4.0',
        'symphony_model_queued_requests{model="resnet"} 1.0',
        'symphony_model_bad_rate_hz{model="resnet"} 0.0',
        'symphony_gpu_busy_ratio{gpu="0",gpu_class="T4",rank="0",worker="tcp://w"} 0.5',
    ):
        assert line in text.splitlines()
    assert "symphony_model" not in prometheus.generate_latest().decode()
