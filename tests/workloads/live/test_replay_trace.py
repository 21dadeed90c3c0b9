"""A trace replayed live and simulated, and a run replayed again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from symphony_dask.client.serving import Serving
from symphony_dask.errors import BadInput
from symphony_dask.trace import open_run, write_trace
from tests.helpers.cluster import Cluster
from workloads.live.replay_trace import replay_live, replay_simulated

N = 200
MODELS = ("quick=0.1,1.0@1s", "slow=0.2,3.0@1s")


@pytest.fixture
def trace(tmp_path: Path) -> str:
    rng = np.random.default_rng(0)
    arrivals = np.sort(rng.integers(0, 2 * 10**9, N))
    names = np.array(["a", "b", "c"])[rng.integers(0, 3, N)]
    write_trace(tmp_path / "trace", pl.DataFrame({"model": names, "arrival_ns": arrivals, "bytes": [5000] * N}), {})
    return str(tmp_path / "trace")


def counts(found: dict[str, Any]) -> int:
    return sum(found[outcome] for outcome in ("ok", "late", "dropped", "rejected", "failed", "cancelled"))


def test_a_trace_is_replayed_live_and_the_run_again_and_simulated(
    cluster: Cluster, serving: Serving, trace: str, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"speed": 4.0, "payload": "trace", "model_text": MODELS}
    found = replay_live(trace, cluster.address, folder=str(tmp_path / "live"), **options)
    assert (found["requests"], counts(found), found["label"]) == (N, N, "live, emulated GPUs")
    assert found["ok"] > 0.9 * N
    run = open_run(found["run"])
    requests = run.requests.collect()
    assert requests.height == N
    assert set(requests["model"]) == {"quick", "slow"}
    assert requests["bytes"].min() > 5000
    assert serving.status()["policy"] == "eager"
    assert not {"quick", "slow"} & set(serving.status()["models"])

    again = replay_live(found["run"], cluster.address, speed=2.0, slo="2s", folder=str(tmp_path / "again"))
    assert (again["requests"], counts(again)) == (N, N)
    slos = {m["name"]: m["slo_ns"] for m in open_run(again["run"]).info["models"] if m["name"] in ("quick", "slow")}
    assert slos == {"quick": 2 * 10**9, "slow": 2 * 10**9}

    simulated = replay_simulated(found["run"], folder=str(tmp_path / "simulated"))
    assert (simulated["requests"], simulated["policy"], simulated["label"]) == (N, "eager", "simulated")
    assert simulated["gpus"] == run.gpus.select(pl.col("gpu").n_unique()).collect().item()
    more = replay_simulated(found["run"], policy="deferred", gpus=1, folder=str(tmp_path / "more"))
    assert open_run(more["run"]).info["policy"] == "deferred"
    assert more["mean_batch"] > simulated["mean_batch"]


def test_a_replay_leaves_the_recording_of_others_alone(
    cluster: Cluster, serving: Serving, trace: str, tmp_path: Path
) -> None:
    serving.record(str(tmp_path / "other"))
    try:
        with pytest.raises(BadInput, match="a recording is under way"):
            replay_live(trace, cluster.address, model_text=MODELS, folder=str(tmp_path / "mine"))
        assert serving.status()["recording"] == str(tmp_path / "other")
        assert not {"quick", "slow"} & set(serving.status()["models"])
    finally:
        serving.stop_recording()


@pytest.mark.parametrize(
    ("options", "text"),
    [({"gpus": 2}, "--gpus 2 is for --simulate"), ({"payload": "many"}, "payload 'many': give a number of bytes")],
)
def test_what_a_live_replay_cannot_do_is_refused(trace: str, options: dict[str, Any], text: str) -> None:
    with pytest.raises(BadInput, match=text):
        replay_live(trace, "tcp://nowhere:1", **options)


def test_a_simulated_replay_has_no_payload(trace: str) -> None:
    with pytest.raises(BadInput, match="--payload is for a live replay"):
        replay_simulated(trace, payload="10")
