from __future__ import annotations

import asyncio

import numpy as np

from symphony_dask.engine.latency_profile import LatencyProfile
from symphony_dask.trace import Outcome
from symphony_dask.wire.messages import Cancel
from symphony_dask.wire.records import (
    make_column,
)
from tests.helpers.lane.bench import Bench, on_bench, place_nothing
from tests.helpers.lane.server import until


def test_each_request_gets_its_own_answer() -> None:
    async def main(bench: Bench) -> None:
        client = await bench.connect()
        payloads = [bytes([i]) * i for i in range(30)]
        bench.submit(client, list(range(30)), payloads)
        assert await bench.answered(*range(30)) == payloads
        assert sum(bench.batches) == 30
        assert max(bench.batches) == 8
        bench.dispatcher.engine.validate()

    on_bench(main)


def test_counts_add_up_when_requests_are_cancelled_in_flight_and_their_worker_is_lost() -> None:
    async def main(bench: Bench) -> None:
        answer, bench.frame = bench.frame, lambda *frame: None  # type: ignore[method-assign,assignment]
        bench.dispatcher.drop_worker("w")
        await bench.connect("mute")
        bench.frame = answer  # type: ignore[method-assign]
        client = await bench.connect()
        bench.submit(client, [1, 2], [b"a", b"b"])
        await until(lambda: bench.dispatcher.in_flight("mute"))
        client.send(Cancel(make_column([1])))
        await until(lambda: np.count_nonzero(bench.dispatcher._requests.client >= 0) == 1)
        bench.dispatcher.drop_worker("mute")
        await bench.connect("w")
        assert await bench.answered(2) == [b"b"]
        outcomes = bench.dispatcher.status()["models"]["m"]["outcomes"]
        assert {k: v for k, v in outcomes.items() if v} == {"ok": 1, "cancelled": 1}
        bench.dispatcher.engine.validate()

    on_bench(main)


def test_requests_of_a_client_that_leaves_are_cancelled() -> None:
    async def main(bench: Bench) -> None:
        place_nothing(bench.dispatcher)
        client = await bench.connect()
        bench.submit(client, [1, 2, 3], [b"a", b"b", b"c"])
        await until(lambda: bench.dispatcher.status()["models"]["m"]["queued"] == 3)
        client.close()
        await until(lambda: bench.dispatcher.status()["models"]["m"]["queued"] == 0)
        assert bench.dispatcher.status()["models"]["m"]["outcomes"]["cancelled"] == 3
        bench.dispatcher.engine.validate()

    on_bench(main)


def test_a_request_of_higher_priority_takes_the_room_of_one_of_a_full_queue_which_is_answered_at_once() -> None:
    async def main(bench: Bench) -> None:
        made = bench.dispatcher
        made.add_model(
            made.new_model_id(), "narrow", 10_000_000_000, {"cpu": LatencyProfile(0.0, 0.1, 8)}, queue_limit=2
        )
        place_nothing(made)
        client = await bench.connect()
        bench.submit(client, [1, 2], [b"a", b"b"], model=1)
        await until(lambda: made.status()["models"]["narrow"]["queued"] == 2)
        bench.submit(client, [3], [b"c"], model=1, priority=1)
        assert await bench.answered(2) == [b""]
        assert made.status()["models"]["narrow"]["outcomes"]["rejected"] == 1
        await bench.connect("v")
        assert await bench.answered(1, 3) == [b"a", b"c"]
        made.engine.validate()

    on_bench(main)


def test_requests_left_without_a_gpu_end_at_their_deadline() -> None:
    async def main(bench: Bench) -> None:
        made = bench.dispatcher
        made.add_model(made.new_model_id(), "short", 50_000_000, {"cpu": LatencyProfile(0.0, 0.1, 8)})
        place_nothing(made)
        client = await bench.connect()
        bench.submit(client, [1], [b"a"], model=1)
        await until(lambda: made.status()["models"]["short"]["queued"] == 1)
        made.drop_worker("w")
        assert await bench.answered(1) == [b""]
        assert made.status()["models"]["short"]["outcomes"]["dropped"] == 1

    on_bench(main)


def test_delays_for_which_all_is_refused_are_soon_thought_to_be_over() -> None:
    async def main(bench: Bench) -> None:
        made = bench.dispatcher
        made.add_model(made.new_model_id(), "tight", 30_000_000, {"cpu": LatencyProfile(1.0, 20.0, 8)})
        client = await bench.connect()
        worker = made.workers["w"].peer
        worker.reply.mean_ns, worker.reply.deviation_ns = 5e9, 0.0  # no 9 ms are left of the SLO
        worker.control.mean_ns = 5e9
        made._follow_latency()
        counts = made.models[1].counts
        loop, end = asyncio.get_running_loop(), asyncio.get_running_loop().time() + 10
        while not counts[Outcome.OK] + counts[Outcome.LATE] and loop.time() < end:
            bench.submit(client, [1], [b"a"], model=1)
            bench.answers.clear()
            await bench.answered(1)
        assert counts[Outcome.OK] + counts[Outcome.LATE] > 0
        assert counts[Outcome.DROPPED] > 0

    on_bench(main)


def test_where_another_worker_serves_a_drained_one_gets_no_batch_and_may_come_back() -> None:
    async def main(bench: Bench) -> None:
        made = bench.dispatcher
        other = await bench.connect("v")
        await until(lambda: len(made.workers) == 2)
        made.drain_workers(["w", "gone"])
        assert (made.is_draining("w"), made.is_closing("w")) == (True, False)
        other.close()
        await until(lambda: len(made.workers) == 1)
        client = await bench.connect()
        bench.submit(client, [1], [b"a"])
        assert await bench.answered(1) == [b""]  # refused: nobody else is there
        assert made.undrain_worker("w")
        made.add_slots(made.workers["w"])
        bench.submit(client, [2], [b"b"])
        assert await bench.answered(2) == [b"b"]
        assert not made.undrain_worker("w")
        made.engine.validate()

    on_bench(main)


def test_the_last_worker_takes_what_is_queued_and_nothing_new_and_then_drains() -> None:
    async def main(bench: Bench) -> None:
        made = bench.dispatcher
        answer, bench.frame = bench.frame, lambda *frame: None  # type: ignore[method-assign,assignment]
        mute = await bench.connect("v")
        made.drop_worker("w")
        bench.frame = answer  # type: ignore[method-assign]
        client = await bench.connect()
        for i, there in enumerate((1, 2, 2)):  # two batches are at the worker, the third is queued
            bench.submit(client, [i], [b"a"])
            await until(lambda n=there: made.in_flight("v") == n)  # type: ignore[misc]
        await until(lambda: made.status()["models"]["m"]["queued"] == 1)
        made.drain_workers(["v"])
        assert made.is_closing("v")
        bench.submit(client, [9], [b"z"])
        assert await bench.answered(9) == [b""]
        made.drop_worker("v")  # the three are queued again
        mute.close()
        await bench.connect("u")
        assert await bench.answered(0, 1, 2) == [b"a"] * 3
        made.engine.validate()

    on_bench(main)


def test_a_request_whose_workers_keep_dying_ends_after_the_third() -> None:
    async def main(bench: Bench) -> None:
        made = bench.dispatcher
        answer, bench.frame = bench.frame, lambda *frame: None  # type: ignore[method-assign,assignment]
        made.drop_worker("w")
        mute = [await bench.connect(f"{i}") for i in range(3)]
        bench.frame = answer  # type: ignore[method-assign]
        client = await bench.connect()
        bench.submit(client, [1], [b"a"])
        for _ in mute:
            await until(lambda: any(made.in_flight(str(i)) for i in range(3)))
            made.drop_worker(next(str(i) for i in range(3) if made.in_flight(str(i))))
        assert await bench.answered(1) == [b""]
        assert made.status()["models"]["m"]["outcomes"]["failed"] == 1
        made.engine.validate()

    on_bench(main)
