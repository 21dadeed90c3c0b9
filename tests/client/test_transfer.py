"""Large payloads and answers pass between client and worker; the scheduler carries them only where it must."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask.config
import numpy as np
import pytest

from symphony_dask.client.model import Model
from symphony_dask.client.serving import Serving
from symphony_dask.client.transfer import Direct
from symphony_dask.errors import BadInput, PayloadLost
from symphony_dask.wire import codec
from symphony_dask.wire.connection import Connection, Message
from symphony_dask.wire.hello import Welcome
from symphony_dask.wire.messages import Data
from tests.helpers import models
from tests.helpers.cluster import Cluster, wait_until
from tests.helpers.lane.raw_client import RawClient, with_raw_client
from tests.helpers.serving import EAGER, QUICK, Deploy, outcomes

LIMIT_S = 60
LARGE = 150_000


def arrays(n: int) -> list[Any]:
    """Different arrays of ``LARGE`` bytes."""
    return [np.arange(i, i + LARGE // 8, dtype=np.int64) for i in range(n)]


def lane_bytes(serving: Serving) -> int:
    """What has passed through the scheduler's lane, both ways."""
    return sum(serving.status()["lane"].values())


def links(serving: Serving) -> list[Connection[int]]:
    """The client's connections to workers."""
    assert serving._lane._direct is not None
    return [link.connection for link in serving._lane._direct._open.values() if link.connection is not None]


@pytest.fixture
def unreachable() -> Iterator[Serving]:
    """A cluster of one worker that clients cannot reach."""
    with Cluster(1, settings=EAGER) as cluster, Serving(cluster.client()) as serving:
        wait_until(lambda: serving.status()["workers"], "a worker on the lane", 60)
        serving.client.run(models.close_inbox)
        yield serving


# What comes back, and which way


def test_large_arrays_and_their_answers_pass_the_scheduler_by(serving: Serving, deploy: Deploy) -> None:
    model = deploy(models.double, profile=QUICK, max_batch=8)
    samples, before = arrays(100), lane_bytes(serving)
    futures = model.map(samples)
    for sample, future in zip(samples, futures, strict=True):
        np.testing.assert_array_equal(future.result(LIMIT_S), sample * 2)
    assert lane_bytes(serving) - before < LARGE
    assert outcomes(serving, model) == {"ok": 100}
    assert len(links(serving)) == 2
    assert serving._lane._direct is not None
    assert not serving._lane._direct._kept


def test_large_bytes_come_back_right(serving: Serving, deploy: Deploy) -> None:
    model = deploy(models.reverse, profile=QUICK, max_batch=8)
    samples, before = [bytes([i, 255 - i]) * (LARGE // 2) for i in range(50)], lane_bytes(serving)
    assert [f.result(LIMIT_S) for f in model.map(samples)] == [s[::-1] for s in samples]
    assert lane_bytes(serving) - before < LARGE


def test_large_tensors_come_back_right(deploy: Deploy) -> None:
    torch = pytest.importorskip("torch")
    model = deploy(models.double, profile=QUICK)
    samples = [torch.arange(i, i + 40_000, dtype=torch.float32) for i in range(10)]
    for sample, future in zip(samples, model.map(samples), strict=True):
        assert torch.equal(future.result(LIMIT_S), sample * 2)


def test_large_and_small_samples_and_a_failing_one_share_a_batch(serving: Serving, deploy: Deploy) -> None:
    model = deploy(models.total, profile=QUICK)
    samples = [np.ones(n) for n in (1, 20_000, 2, 30_000, 3)]
    futures = [*model.map(samples), model.submit(b"has no sum" * 2_000)]
    assert [f.result(LIMIT_S) for f in futures[:-1]] == [1.0, 20_000.0, 2.0, 30_000.0, 3.0]
    assert "has no attribute 'reshape'" in str(futures[-1].exception(LIMIT_S))
    assert outcomes(serving, model) == {"ok": 5, "failed": 1}


def test_a_small_request_with_a_large_answer_gets_it_past_the_scheduler_from_the_second_on(cluster: Cluster) -> None:
    with Serving(cluster.client()) as other:
        model = other.deploy("megabyte", models.megabyte, slo="60s", profile=QUICK)
        try:
            while len(links(other)) < 2:
                assert {len(f.result(LIMIT_S)) for f in model.map([b"a"] * 16)} == {1_000_000}
            before = lane_bytes(other)
            assert [f.result(LIMIT_S) for f in model.map([b"x", b"y"] * 5)] == [b"x" * 1_000_000, b"y" * 1_000_000] * 5
            assert lane_bytes(other) - before < 1_000_000
        finally:
            other.undeploy("megabyte")


def test_two_clients_share_batches_of_large_payloads(cluster: Cluster, serving: Serving, deploy: Deploy) -> None:
    model = deploy(models.double, profile=QUICK)
    with Serving(cluster.client()) as other:
        theirs = Model(model.name, model._id, model.slo_ns, {}, None, other._lane)
        pairs = [(model.submit(x), theirs.submit(-x)) for x in arrays(40)]
        for x, (mine, other_one) in zip(arrays(40), pairs, strict=True):
            np.testing.assert_array_equal(mine.result(LIMIT_S), 2 * x)
            np.testing.assert_array_equal(other_one.result(LIMIT_S), -2 * x)


# The relay


def test_payloads_are_relayed_where_workers_cannot_be_reached(unreachable: Serving) -> None:
    model = unreachable.deploy("m", models.double, slo="60s", profile=QUICK)
    samples, before = arrays(30), lane_bytes(unreachable)
    for sample, future in zip(samples, model.map(samples), strict=True):
        np.testing.assert_array_equal(future.result(LIMIT_S), sample * 2)
    assert lane_bytes(unreachable) - before > 4 * 30 * LARGE
    assert outcomes(unreachable, model) == {"ok": 30}
    assert not links(unreachable)
    assert unreachable._lane._direct is not None
    assert not unreachable._lane._direct.keeps(LARGE)  # from here on they go with SUBMIT, without a round trip more


def test_without_a_relay_they_end_as_payload_lost(unreachable: Serving) -> None:
    with dask.config.set({"symphony.lane.relay": "never"}), Serving(unreachable.client) as other:
        model = other.deploy("m", models.double, slo="60s", profile=QUICK)
        with pytest.raises(PayloadLost, match="did not reach worker tcp://127"):
            model.submit(np.zeros(LARGE)).result(LIMIT_S)
        assert model.submit(np.ones(1)).result(LIMIT_S).tolist() == [2.0]
        assert outcomes(other, model) == {"failed": 1, "ok": 1}


def test_a_link_that_breaks_under_way_loses_nothing(serving: Serving, deploy: Deploy, gate: models.Gate) -> None:
    model = deploy(gate.model(), profile=QUICK, max_batch=2)
    futures = model.map(arrays(20))
    assert serving._lane._direct is not None
    held = serving._lane._direct._kept
    # How many requests each has depends on how many came before the first left.
    wait_until(lambda: len({h.batch for h in held.copy().values() if h.link >= 0}) == 4, "two batches at both workers")
    for connection in links(serving):
        serving.client.loop.add_callback(connection.close)
    wait_until(lambda: not links(serving), "the loss of the links")
    gate.open()
    for sample, future in zip(arrays(20), futures, strict=True):
        np.testing.assert_array_equal(future.result(LIMIT_S), sample * 2)


def test_the_relay_can_be_asked_for(cluster: Cluster, deploy: Deploy) -> None:
    model = deploy(models.double, profile=QUICK)
    with dask.config.set({"symphony.lane.relay": "always"}), Serving(cluster.client()) as other:
        theirs = Model(model.name, model._id, model.slo_ns, {}, None, other._lane)
        before = lane_bytes(other)
        np.testing.assert_array_equal(theirs.submit(arrays(1)[0]).result(LIMIT_S), arrays(1)[0] * 2)
        assert lane_bytes(other) - before > 4 * LARGE
        assert not links(other)


def test_another_setting_of_the_relay_is_refused(cluster: Cluster) -> None:
    with (
        dask.config.set({"symphony.lane.relay": "sometimes"}),
        pytest.raises(BadInput, match="'sometimes': give one of auto, always, never"),
    ):
        Serving(cluster.client())


def direct_of(sent: list[tuple[Message, bytes]], broken: list[int]) -> Direct:
    """The direct path of client 3, whose request 1 is pending: what it relays, and the requests it ends."""
    lane: Connection[None] = Connection(lambda *frame: None, lambda *lost: None, None)
    lane.send = lambda message, *blobs: sent.append((message, b"".join(blobs)))  # type: ignore[method-assign]
    return Direct(
        lane, Welcome(connection=3, inline_bytes=10), "token", ssl_context=None, relay="auto", pending={1},
        on_answer=lambda *answer: None, on_broken=lambda request, text: broken.append(request),
    )  # fmt: skip


def test_an_answer_that_was_under_way_on_a_link_that_broke_ends_its_request() -> None:
    async def main() -> None:
        broken: list[int] = []
        direct = direct_of([], broken)
        direct.hold(1, b"payload")
        direct.outcome(1, 5, "ok")
        assert broken == [1]
        assert not direct._kept

    asyncio.run(main())


def test_a_worker_that_accepts_and_says_nothing_is_given_up_soon() -> None:
    async def main() -> None:
        sent: list[tuple[Message, bytes]] = []
        silent = await asyncio.start_server(lambda *streams: None, "127.0.0.1", 0)
        direct = direct_of(sent, [])
        assert direct.keeps(11)
        assert not direct.keeps(10)
        direct.hold(1, b"payload")
        direct.place(7, "127.0.0.1", silent.sockets[0].getsockname()[1], [1, 2])
        async with asyncio.timeout(10):
            while not sent:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        ((data, blob),) = sent
        assert isinstance(data, Data)
        assert (data.batch, data.client, data.ids.tolist(), data.sizes.tolist()) == (7, 3, [1, 2], [7, -1])
        assert blob == b"payload"
        direct.close()
        silent.close()

    asyncio.run(main())


# What breaks


def test_requests_of_a_killed_worker_bring_their_payloads_to_another(tmp_path: Path) -> None:
    gate = models.Gate(tmp_path)
    with Cluster(2, settings=EAGER) as cluster, Serving(cluster.client()) as serving:
        wait_until(lambda: len(serving.status()["workers"]) == 2, "two workers on the lane", 60)
        model = serving.deploy("gated", gate.model(), slo="60s", profile=QUICK, max_batch=4)
        futures = model.map(arrays(40))
        wait_until(lambda: all(w["in_flight"] for w in serving.status()["workers"].values()), "batches at both workers")
        wait_until(lambda: len(links(serving)) == 2, "links to both")
        cluster.workers[0].kill()
        gate.open()
        for sample, future in zip(arrays(40), futures, strict=True):
            np.testing.assert_array_equal(future.result(LIMIT_S), sample * 2)
        assert outcomes(serving, model) == {"ok": 40}


def test_a_client_that_does_not_read_is_cut_off_before_it_fills_the_schedulers_memory() -> None:
    with Cluster(1, settings=EAGER) as cluster, Serving(cluster.client()) as serving:
        # It has a second to read on: at 80 MB/s, not at what this machine can do, for the same to hold everywhere.
        paced = lambda batch: (time.sleep(0.1), models.megabyte(batch))[1]  # noqa: E731
        model = serving.deploy("megabyte", paced, slo="60s", profile="0.1,100", max_batch=8)
        status = Path(f"/proc/{cluster.scheduler.pid}/status")

        def peak_bytes() -> int:
            return next(int(line.split()[1]) * 1024 for line in status.read_text().splitlines() if "VmHWM" in line)

        before = peak_bytes()

        async def main(raw: RawClient) -> None:
            assert raw.connection._transport is not None
            raw.connection._transport.pause_reading()
            raw.submit(model, 600, payload=codec.encode(b"x"))
            await asyncio.to_thread(
                wait_until, lambda: sum(outcomes(serving, model).values()) == 600, "the end of all requests"
            )

        with_raw_client(serving, main)
        assert outcomes(serving, model)["cancelled"] > 200
        assert peak_bytes() - before < 400_000_000
        assert len(model.submit(b"y").result(LIMIT_S)) == 1_000_000
