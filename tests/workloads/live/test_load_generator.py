"""The load generator against a real scheduler and real workers."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from distributed import Client

from symphony_dask.backends import Emulated
from symphony_dask.client.model import Model
from symphony_dask.client.serving import Serving
from symphony_dask.errors import BadInput
from symphony_dask.trace import Outcome
from symphony_dask.units import NS_PER_MS
from tests.helpers.cluster import Cluster
from workloads.live import load_generator


@pytest.fixture(scope="module")
def serving() -> Iterator[Serving]:
    with Cluster(2) as cluster, Client(cluster.address) as client, Serving(client) as serving:
        yield serving


@pytest.fixture(scope="module")
def models(serving: Serving) -> list[Model]:
    serving.set_policy("eager")
    return [serving.deploy(name, Emulated(0.1, 1.0), slo="2s") for name in ("a", "b")]


def test_each_request_is_offered_once_and_answered_to_the_process_that_sent_it(
    serving: Serving, models: list[Model]
) -> None:
    n = 1_000
    arrivals = np.arange(n, dtype=np.int64) * NS_PER_MS
    choices = (np.arange(n) % 2).astype(np.int32)
    loaded = load_generator.offer(serving, models, arrivals, choices, samples=["x", bytes(1_000)], processes=2)
    assert loaded.answered.all()
    assert (loaded.done > loaded.submitted).all()
    assert (loaded.submitted >= loaded.due - load_generator.TOGETHER_NS).all()
    counts = loaded.to_dict()
    kinds = ("ok", "late", "dropped", "rejected", "failed", "cancelled")
    assert sum(counts[kind] for kind in kinds) == counts["requests"] == n
    served = serving.status()["models"]
    assert [served[name]["outcomes"]["ok"] + served[name]["outcomes"]["late"] for name in ("a", "b")] == [500, 500]


def test_large_payloads_go_to_the_workers_and_are_answered_too(serving: Serving, models: list[Model]) -> None:
    arrivals = np.arange(200, dtype=np.int64) * NS_PER_MS
    choices = (np.arange(200) % 2).astype(np.int32)
    loaded = load_generator.offer(serving, models, arrivals, choices, samples=[bytes(150_000), "small"])
    assert loaded.answered.all()


def test_lateness_counts_against_the_server(serving: Serving, models: list[Model]) -> None:
    arrivals = np.zeros(10, np.int64)
    loaded = load_generator.offer(serving, models, arrivals, np.zeros(10, np.int32))
    assert (loaded.latency_ms >= loaded.lateness_ms).all()


def test_requests_that_cannot_be_served_in_time_end_as_dropped(serving: Serving) -> None:
    slow = serving.deploy("slow", Emulated(0.0, 200.0), slo="250ms", max_batch=1)
    loaded = load_generator.offer(serving, [slow], np.zeros(50, np.int64), np.zeros(50, np.int32))
    assert (loaded.outcome == Outcome.DROPPED).sum() >= 40
    assert not (loaded.outcome == load_generator.NO_ANSWER).any()
    serving.undeploy("slow")


def test_a_closed_loop_keeps_so_many_requests_under_way(serving: Serving, models: list[Model]) -> None:
    loaded = load_generator.keep_under_way(serving, models[0], 8, 0.5)
    assert loaded.answered.all()
    events = np.concatenate([loaded.submitted, loaded.done])
    steps = np.concatenate([np.ones(len(loaded.submitted)), -np.ones(len(loaded.done))])
    under_way = np.cumsum(steps[np.lexsort((steps, events))])
    assert under_way.max() == 8


def test_nothing_to_offer_is_refused(serving: Serving, models: list[Model]) -> None:
    with pytest.raises(BadInput, match="0 requests"):
        load_generator.offer(serving, models, np.zeros(0, np.int64), np.zeros(0, np.int32))
