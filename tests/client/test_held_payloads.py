"""Payloads that a client holds, of clients that die, say nothing or say what is wrong."""

from __future__ import annotations

import asyncio
import concurrent.futures

import numpy as np

from symphony_dask.client.serving import Serving
from symphony_dask.wire import codec
from symphony_dask.wire.messages import Cancel, Data
from symphony_dask.wire.records import make_column
from tests.helpers import models
from tests.helpers.cluster import wait_until
from tests.helpers.lane.raw_client import RawClient, with_raw_client
from tests.helpers.lane.server import until
from tests.helpers.serving import LIMIT_S, QUICK, Deploy, outcomes

LARGE = 150_000


def test_a_client_that_dies_before_its_payload_came_leaves_the_slot_to_others(serving: Serving, deploy: Deploy) -> None:
    model = deploy(models.double, profile=QUICK, max_batch=1)

    async def main(raw: RawClient) -> None:
        raw.submit(model, 4, held_bytes=LARGE)
        await until(lambda: len(raw.placed) == 4)
        raw.connection.close()

    with_raw_client(serving, main)
    wait_until(lambda: outcomes(serving, model) == {"cancelled": 4}, "the end of its requests")
    futures = model.map([np.arange(i, i + LARGE // 8, dtype=np.int64) for i in range(10)])
    assert concurrent.futures.wait(futures, LIMIT_S).not_done == set()
    assert outcomes(serving, model) == {"ok": 10, "cancelled": 4}


def test_a_payload_that_never_comes_ends_its_request_alone(serving: Serving, deploy: Deploy) -> None:
    model = deploy(models.double, profile=QUICK, max_batch=8)

    async def main(raw: RawClient) -> None:
        raw.submit(model, 2, held_bytes=LARGE, slo_ns=100_000_000)
        await until(lambda: raw.placed)
        answer = await asyncio.to_thread(lambda: model.submit(np.ones(2)).result(LIMIT_S))
        assert answer.tolist() == [2.0, 2.0]
        await until(lambda: len(raw.ended) == 2)
        assert "did not reach worker" in raw.errors[0]

    with_raw_client(serving, main)
    assert outcomes(serving, model) == {"ok": 1, "failed": 2}


def test_the_time_that_a_payload_takes_is_allowed_for_in_the_control_latency(serving: Serving, deploy: Deploy) -> None:
    model = deploy(models.double, profile=QUICK)
    sample = codec.encode(np.ones(2))

    def control() -> dict[str, int]:
        return {address: worker["control_ns"] for address, worker in serving.status()["workers"].items()}

    async def main(raw: RawClient) -> None:
        before = await asyncio.to_thread(control)
        raw.submit(model, 1, held_bytes=len(sample))
        await until(lambda: raw.placed)
        await asyncio.sleep(0.3)  # what is measured
        raw.bring(len(sample), sample)
        await until(lambda: raw.ended)
        after = await asyncio.to_thread(control)
        assert any(after[address] > before[address] for address in after)

    with_raw_client(serving, main)
    assert outcomes(serving, model) == {"ok": 1}


def test_a_payload_of_another_size_than_said_does_not_run(serving: Serving, deploy: Deploy) -> None:
    model = deploy(models.double, profile=QUICK)

    async def main(raw: RawClient) -> None:
        raw.submit(model, 1, held_bytes=LARGE)
        await until(lambda: raw.placed)
        raw.bring(3, b"abc")
        await until(lambda: raw.ended)

    with_raw_client(serving, main)
    assert outcomes(serving, model) == {"failed": 1}
    assert len(serving.status()["workers"]) == 2


def test_a_client_that_sends_malformed_data_is_cut_off_and_not_the_worker(serving: Serving, deploy: Deploy) -> None:
    model = deploy(models.double, profile=QUICK)

    async def main(raw: RawClient) -> None:
        raw.submit(model, 1, held_bytes=LARGE)
        await until(lambda: raw.placed)
        raw.bring(4, b"abc")
        await until(lambda: raw.lost)

    with_raw_client(serving, main)
    wait_until(lambda: outcomes(serving, model) == {"cancelled": 1}, "the end of its request")
    assert model.submit(np.ones(1)).result(LIMIT_S).tolist() == [2.0]
    assert [w["serving"] for w in serving.status()["workers"].values()] == [1, 1]


def test_a_large_request_cancelled_before_it_is_fetched_is_counted_as_cancelled(
    serving: Serving, deploy: Deploy
) -> None:
    model = deploy(models.double, profile=QUICK)

    async def main(raw: RawClient) -> None:
        raw.submit(model, 2, held_bytes=4)
        await until(lambda: raw.placed)
        raw.connection.send(Cancel(make_column([0, 1])))
        for place in raw.placed:
            raw.connection.send(Data(place.batch, 0, place.ids, make_column([-1] * len(place.ids))))
        await asyncio.to_thread(
            wait_until, lambda: sum(outcomes(serving, model).values()) == 2, "the outcomes of both requests"
        )

    with_raw_client(serving, main)
    assert outcomes(serving, model) == {"cancelled": 2}
