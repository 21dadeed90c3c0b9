"""Batches that do not come back: the dispatcher with workers that say nothing, and models that hang on real ones."""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import pytest

from symphony_dask.client.model import Model
from symphony_dask.client.serving import Serving
from symphony_dask.clock import now_ns
from symphony_dask.control.placement import FORGET_NS, Loaded, SlotPlace
from symphony_dask.dispatcher.dispatcher import Dispatcher
from symphony_dask.engine.latency_profile import LatencyProfile
from symphony_dask.errors import NoAnswer
from symphony_dask.wire.connection import Connection
from symphony_dask.wire.error_codes import ErrorCode
from symphony_dask.wire.handshake import connect
from symphony_dask.wire.hello import ClientHello, WorkerHello
from symphony_dask.wire.messages import Answer, Aside, Done, Execute, IsAside, Op, Result, Resume, Submit
from symphony_dask.wire.records import DONE_ROW, SUBMIT_ROW, make_column, make_records
from tests.helpers import models
from tests.helpers.cluster import Cluster, wait_until
from tests.helpers.lane.frames import Raw
from tests.helpers.models import Gate

LIMIT_S = 30
MS = 1_000_000


class End:
    """A client or a worker by hand; a worker answers pings, and goes on without a batch if it is asked to."""

    def __init__(self) -> None:
        self.batches: list[tuple[int, int, int, int]] = []  # number, slot, model, size
        self.aside: list[IsAside] = []
        self.goes_on = True
        self.resumed: list[tuple[int, int]] = []
        self.ended: dict[int, tuple[int, str]] = {}
        self.connection: Connection[None]

    async def join(self, made: Dispatcher, worker: str = "") -> End:
        """As a client, or as the worker of an address."""
        hello: ClientHello | WorkerHello = ClientHello(token=made.token)
        if worker:
            hello = WorkerHello(token=made.token, worker=worker, host="h", slots=1, gpu_class="cpu")
        frame = self.frame
        self.connection, _ = await connect("127.0.0.1", made.port, hello, frame, lambda *lost: None, peer=None)
        return self

    def frame(self, connection: Connection[None], op: int, fields: list[Any], blob: memoryview) -> None:
        if op == Op.EXECUTE:
            batch = Execute.decode(fields, blob)
            self.batches.append((batch.batch, batch.slot, batch.model_id, len(batch.rows)))
        elif op == Op.ASIDE:
            aside = Aside.decode(fields, blob)
            self.aside.append(IsAside(aside.slot, aside.batch))
            if self.goes_on:
                connection.send(self.aside[-1])
        elif op == Op.RESUME:
            self.resumed.append(tuple(Resume.decode(fields, blob)))
        elif op == Op.RESULT:
            result = Result.decode(fields, blob)
            for i, (request, _, _, outcome) in enumerate(result.rows.tolist()):
                failure = result.failures.get(i)
                how = ("ok", "late")[outcome] if failure is None else ErrorCode(failure.code).name
                self.ended[request] = (now_ns(), how)

    def submit(self, *ids: int, model: int = 0, slos: Any = 0) -> int:
        self.connection.send(Submit(make_records(SUBMIT_ROW, len(ids), id=ids, model=model, slo=slos)))
        return now_ns()

    def done(self, batch: int) -> None:
        size = next(size for number, _, _, size in self.batches if number == batch)
        rows = make_records(DONE_ROW, size, link=-1)
        self.connection.send(Done(batch, 0, 0, MS, MS, rows, {}, make_column([]), (0, MS, 0)))


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


def on_stage(main: Callable[[Dispatcher, End, End, list[Any]], Awaitable[None]]) -> None:
    """``main`` gets a dispatcher with the models 0 and 1 of SLO 300 ms and l(b) = 1 ms, a worker of one slot, a client,
    and what is said of slots that go on without a batch.
    """

    async def wrapped() -> None:
        said: list[Any] = []
        made = Dispatcher(
            policy="eager",
            max_requests=64,
            on_worker=lambda c: made.add_slots(c),
            on_aside=lambda connection, slot, model, why: said.append(("aside", slot, model)),
            on_back=lambda connection, slot, model: said.append(("back", slot, model)),
        )
        await made.start("127.0.0.1")
        try:
            for name in ("m", "n"):
                made.add_model(made.new_model_id(), name, 300 * MS, {"cpu": LatencyProfile(0.0, 1.0, 8)})
            worker = await End().join(made, "w")
            await main(made, worker, await End().join(made), said)
            made.engine.validate()
        finally:
            await made.stop()

    asyncio.run(wrapped())


def outcomes(made: Dispatcher, model: str) -> dict[str, int]:
    return {k: v for k, v in made.status()["models"][model]["outcomes"].items() if v}


def test_a_request_whose_batch_does_not_come_back_ends_within_a_second_of_its_deadline() -> None:
    async def main(made: Dispatcher, worker: End, client: End, said: list[Any]) -> None:
        sent = client.submit(1)
        await until(lambda: 1 in client.ended)
        at, error = client.ended[1]
        assert error == "NO_ANSWER"
        assert 0.8 <= (at - sent) / 1e9 < 1.3
        assert outcomes(made, "m") == {"failed": 1}

    on_stage(main)


def test_a_slot_goes_on_without_a_batch_that_hangs_and_has_its_model_back_when_it_ends() -> None:
    async def main(made: Dispatcher, worker: End, client: End, said: list[Any]) -> None:
        client.submit(1)
        await until(lambda: said)
        assert said == [("aside", 0, 0)]
        hung = worker.batches[0][0]
        await until(lambda: worker.aside == [(0, hung)])
        client.submit(2, model=1)
        await until(lambda: len(worker.batches) == 2)
        worker.done(worker.batches[1][0])
        await until(lambda: 2 in client.ended)
        assert client.ended[2][1] == "ok"
        worker.done(hung)
        await until(lambda: len(said) == 2)
        assert said[1] == ("back", 0, 0)
        assert (outcomes(made, "m"), outcomes(made, "n")) == ({"failed": 1}, {"ok": 1})

    on_stage(main)


def test_what_waited_behind_a_batch_that_hangs_runs_after_it_was_left() -> None:
    async def main(made: Dispatcher, worker: End, client: End, said: list[Any]) -> None:
        client.submit(1)
        await until(lambda: len(worker.batches) == 1)
        client.submit(2, model=1, slos=10_000 * MS)
        await until(lambda: len(worker.batches) == 2)  # behind it, in the same slot
        await until(lambda: len(worker.batches) == 3)
        assert [model for _, _, model, _ in worker.batches] == [0, 1, 1]
        worker.done(worker.batches[1][0])  # of before: nobody waits for it
        worker.done(worker.batches[2][0])
        await until(lambda: 2 in client.ended)
        assert client.ended[2][1] == "ok"
        assert outcomes(made, "n") == {"ok": 1}

    on_stage(main)


def test_a_batch_that_has_ended_when_its_worker_is_asked_to_go_on_without_it_takes_nothing_with_it() -> None:
    async def main(made: Dispatcher, worker: End, client: End, said: list[Any]) -> None:
        worker.goes_on = False
        client.submit(1)
        await until(lambda: len(worker.batches) == 1)
        client.submit(2, model=1, slos=10_000 * MS)
        await until(lambda: worker.aside)
        assert worker.aside == [(0, worker.batches[0][0])]
        worker.done(worker.batches[0][0])
        worker.done(worker.batches[1][0])  # which was behind it, and has begun
        await until(lambda: 2 in client.ended)
        assert client.ended[2][1] == "ok"
        assert (said, worker.resumed, len(worker.batches)) == ([], [], 2)

    on_stage(main)


def test_where_a_batch_ended_while_its_worker_left_it_what_was_behind_it_runs_and_its_model_stays() -> None:
    async def main(made: Dispatcher, worker: End, client: End, said: list[Any]) -> None:
        worker.goes_on = False
        client.submit(1)
        await until(lambda: len(worker.batches) == 1)
        client.submit(2, model=1, slos=10_000 * MS)
        await until(lambda: worker.aside)
        worker.done(worker.batches[0][0])
        worker.connection.send(worker.aside[0])
        await until(lambda: len(worker.batches) == 3)
        assert [model for _, _, model, _ in worker.batches] == [0, 1, 1]
        assert (said, worker.resumed) == ([("aside", 0, -1)], [(0, -1)])
        worker.done(worker.batches[2][0])
        await until(lambda: 2 in client.ended)
        assert client.ended[2][1] == "ok"

    on_stage(main)


@pytest.mark.parametrize("said_of", [(1, 0), (-1, 0), ("x", 0), (0,), (0, 0, 0)])
def test_a_worker_that_goes_on_without_what_it_does_not_have_is_lost(said_of: tuple[Any, ...]) -> None:
    async def main(made: Dispatcher, worker: End, client: End, said: list[Any]) -> None:
        worker.connection.send(Raw(Op.IS_ASIDE, *said_of))
        await until(lambda: not made.workers)

    on_stage(main)


def test_a_batch_that_waits_behind_another_is_not_taken_for_one_that_hangs() -> None:
    async def main(made: Dispatcher, worker: End, client: End, said: list[Any]) -> None:
        client.submit(1, slos=10_000 * MS)
        await until(lambda: len(worker.batches) == 1)
        client.submit(2, model=1)
        await until(lambda: 2 in client.ended)
        assert client.ended[2][1] == "NO_ANSWER"
        await asyncio.sleep(0.3)  # in which it would be set aside
        assert (said, worker.aside) == ([], [])
        worker.done(worker.batches[0][0])
        await until(lambda: 1 in client.ended)
        assert client.ended[1][1] == "ok"

    on_stage(main)


def test_of_a_batch_that_is_late_only_what_is_overdue_has_ended_and_the_rest_is_answered() -> None:
    async def main(made: Dispatcher, worker: End, client: End, said: list[Any]) -> None:
        client.submit(1, 2, slos=[300 * MS, 10_000 * MS])
        await until(lambda: 1 in client.ended)
        assert client.ended[1][1] == "NO_ANSWER"
        assert 2 not in client.ended
        assert not said
        worker.done(worker.batches[0][0])
        await until(lambda: 2 in client.ended)
        assert client.ended[2][1] == "ok"
        assert outcomes(made, "m") == {"failed": 1, "ok": 1}

    on_stage(main)


def test_a_request_that_is_cancelled_in_a_batch_that_hangs_is_counted_once() -> None:
    async def main(made: Dispatcher, worker: End, client: End, said: list[Any]) -> None:
        client.submit(1, 2)
        await until(lambda: worker.batches)
        made._cancel(next(iter(made._clients.values())).peer, np.array([1]))
        await until(lambda: said)
        assert outcomes(made, "m") == {"failed": 1, "cancelled": 1}

    on_stage(main)


def test_a_silent_worker_is_given_up_and_another_runs_what_it_had() -> None:
    async def main(made: Dispatcher, worker: End, client: End, said: list[Any]) -> None:
        worker.connection._on_frame = lambda *frame: None  # answers no pings any more
        client.submit(1, slos=10_000 * MS)
        await until(lambda: made.in_flight("w"))
        other = await End().join(made, "x")
        await until(lambda: other.batches)
        assert list(made.workers) == ["x"]
        other.done(other.batches[0][0])
        await until(lambda: 1 in client.ended)
        assert client.ended[1][1] == "ok"
        assert not said

    on_stage(main)


def test_a_worker_whose_answer_to_a_ping_is_behind_others_lives_as_long_as_it_sends() -> None:
    async def main(made: Dispatcher, worker: End, client: End, said: list[Any]) -> None:
        worker.connection._on_frame = lambda *frame: None  # answers no pings any more
        client.submit(1, slos=10_000 * MS)
        await until(lambda: made.in_flight("w"))
        for _ in range(25):
            worker.connection.send(Answer(10**6, make_column([]), make_column([])))  # of nobody
            await asyncio.sleep(0.1)
        assert list(made.workers) == ["w"]
        await until(lambda: not made.workers)

    on_stage(main)


def test_a_slot_that_a_model_hangs_in_again_and_again_waits_longer_each_time() -> None:
    slot = SlotPlace(0, "cpu", None)
    waits = []
    now = 0
    for _ in range(8):
        waits.append((slot.hang(7, "hangs", now).again_ns - now) / 1e9)
        now += 1000 * MS
    assert waits == [1, 2, 4, 8, 16, 32, 60, 60]
    now += FORGET_NS
    assert (slot.hang(7, "hangs", now).again_ns - now) / 1e9 == 1


def test_a_model_that_hung_in_two_slots_is_on_trial_in_one_before_the_other_loads_it_again() -> None:
    one, other = SlotPlace(0, "cpu", None), SlotPlace(1, "cpu", None)
    for slot in (one, other):
        slot.hang(7, "hangs", 0)
    one.loading[7] = 0
    assert one.is_on_trial(7, 1100 * MS, 1000 * MS)
    del one.loading[7]
    one.loaded[7] = Loaded(0, 1000 * MS, 1000 * MS)
    assert one.is_on_trial(7, 1100 * MS, 2000 * MS)
    assert not one.is_on_trial(7, 1100 * MS, 2100 * MS)
    assert not one.is_on_trial(8, 1100 * MS, 2000 * MS)
    again = one.hang(7, "hangs", 2000 * MS).again_ns
    other.put_off(7, again)
    assert other.failed[7].again_ns == again == 4000 * MS


# On real workers


def test_a_model_that_hangs_fails_its_own_requests_and_other_models_go_on(
    serving: Serving, deploy: Callable[..., Model], gate: Gate
) -> None:
    hangs = deploy(gate.model(), profile="0.1,0.5", slo="200ms", max_batch=1)
    other = deploy(models.double, profile="0.1,0.5")
    futures = hangs.map([np.array([1.0])] * 4)  # in each slot one that runs and one that waits
    assert concurrent.futures.wait(futures, LIMIT_S).not_done == set()
    errors = [type(future.exception()) for future in futures]
    assert NoAnswer in errors
    answers = [future.result(LIMIT_S).tolist() for future in other.map([np.array([float(i)]) for i in range(50)])]
    assert answers == [[2.0 * i] for i in range(50)]
    gate.open()

    def answered() -> bool:
        future = hangs.submit(np.array([3.0]))
        return future.exception(LIMIT_S) is None and future.result().tolist() == [6.0]

    wait_until(answered, "an answer of the model that hung")


def test_when_the_scheduler_stands_still_requests_end_within_a_second_of_their_deadlines(gate: Gate) -> None:
    with Cluster(1) as cluster, Serving(cluster.client()) as serving:
        serving.wait_ready(timeout="60s")
        model = serving.deploy("double", models.double, slo="1s", profile="0.1,0.5")
        assert model(np.array([1.0])).tolist() == [2.0]
        cluster.scheduler.send_signal(19)  # SIGSTOP
        try:
            began = now_ns()
            future = model.submit(np.array([2.0]))
            with pytest.raises(NoAnswer, match="the scheduler has been silent for"):
                future.result(LIMIT_S)
            assert 1.5 <= (now_ns() - began) / 1e9 < 2.2
        finally:
            cluster.scheduler.send_signal(18)  # SIGCONT
        wait_until(lambda: model.submit(np.array([3.0])).exception(LIMIT_S) is None, "an answer")


def test_a_slot_behind_a_batch_that_does_not_come_back_is_not_said_to_answer() -> None:
    async def main(made: Dispatcher, worker: End, client: End, said: list[Any]) -> None:
        connection = made.workers["w"]
        client.submit(1, slos=10_000 * MS)
        await until(lambda: worker.batches)
        assert made.answering(connection) == [0]
        await until(lambda: made.answering(connection) == [])  # long before the deadline
        worker.done(worker.batches[0][0])
        await until(lambda: made.answering(connection) == [0])
        made.drain_workers(["w"])
        assert made.answering(connection) == []

    on_stage(main)
