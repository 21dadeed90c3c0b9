"""What makes the client pleasant: completions, deadlines of nested calls, retries, readiness, reprs."""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from distributed import Client

import symphony_dask
from symphony_dask import as_completed, deadline
from symphony_dask.client import retry
from symphony_dask.client.deadline import remaining_ns
from symphony_dask.client.future import InferenceFuture
from symphony_dask.client.model import Model
from symphony_dask.client.retry import RetriedFuture
from symphony_dask.client.serving import Serving
from symphony_dask.engine.latency_profile import LatencyProfile
from symphony_dask.errors import (
    BadInput,
    ConnectionLost,
    DeadlineExceeded,
    ModelError,
    NoGPUWorker,
    Overloaded,
    UnknownModel,
)
from tests.helpers import models
from tests.helpers.cluster import Cluster, wait_until
from tests.helpers.models import Gate
from tests.helpers.serving import LIMIT_S, PLACES, QUICK, occupy, outcomes, queued

Deploy = Callable[..., Model]
MS = 1_000_000


def answered(request: int, result: object = 42) -> InferenceFuture:
    future = InferenceFuture(request)
    future._finish("ok", result, None)
    return future


# Completions


def test_futures_come_in_the_order_of_their_answers() -> None:
    first, second = InferenceFuture(1), InferenceFuture(2)
    completions = iter(as_completed([second, first]))
    first._finish("ok", 1, None)
    assert next(completions) is first
    second.cancel()
    assert next(completions) is second


def test_async_for_gives_futures_as_other_threads_answer_them() -> None:
    async def main() -> list[int]:
        futures = [InferenceFuture(i) for i in range(3)]
        loop = asyncio.get_running_loop()
        seen = []
        loop.run_in_executor(None, futures[2]._finish, "ok", 2, None)
        async for future in as_completed(futures):
            seen.append(future.request)
            if len(seen) < 3:
                loop.run_in_executor(None, futures[len(seen) - 1]._finish, "ok", 0, None)
        return seen

    assert asyncio.run(main()) == [2, 0, 1]


def test_a_future_given_twice_comes_once() -> None:
    async def main() -> list[InferenceFuture]:
        return [future async for future in as_completed([done, done])]

    done = answered(1)
    assert asyncio.run(main()) == [done] == list(as_completed([done, done]))


def test_completions_end_with_their_timeout() -> None:
    async def main() -> None:
        async for future in as_completed([InferenceFuture(), answered(1)], timeout="10ms"):
            assert future.request == 1

    with pytest.raises(TimeoutError, match=r"1 \(of 2\) futures unfinished"):
        asyncio.run(main())
    with pytest.raises(TimeoutError, match=r"1 \(of 2\) futures unfinished"):
        list(as_completed([InferenceFuture(), answered(1)], timeout="10ms"))


def test_an_answer_after_the_loop_has_ended_disturbs_nobody() -> None:
    late = InferenceFuture()

    async def main() -> None:
        async for _ in as_completed([late, answered(1)]):
            break

    asyncio.run(main())
    late._finish("ok", 1, None)
    assert late.result() == 1


@pytest.fixture
def served(cluster: Cluster) -> Callable[..., Any]:
    """Runs a coroutine function with an asynchronous ``Serving`` and a model, of one request a batch."""

    def run(main: Callable[[Serving, Model], Any], model: Any = models.double) -> Any:
        async def connected() -> Any:
            async with Client(cluster.address, asynchronous=True, set_as_default=False) as client:
                serving = await Serving(client)
                deployed = await serving.deploy("served", model, slo="60s", profile=QUICK, max_batch=1)
                try:
                    return await asyncio.wait_for(main(serving, deployed), LIMIT_S)
                finally:
                    await serving.undeploy("served")
                    await serving.close()

        return asyncio.run(connected())

    return run


def test_answers_of_a_model_come_as_they_complete(served: Any) -> None:
    async def main(serving: Serving, model: Model) -> list[float]:
        futures = model.map(np.array([float(i)]) for i in range(50))
        return sorted([float(future.result()[0]) async for future in as_completed(futures)])

    assert served(main) == [2.0 * i for i in range(50)]


def test_cancelling_a_task_takes_its_request_out_of_the_queue(served: Any, gate: Gate) -> None:
    async def main(serving: Serving, model: Model) -> dict[str, int]:
        async def ask(i: int) -> Any:
            return await model.submit(np.array([float(i)]))

        async def until(n: int) -> None:
            while (await serving.status())["models"]["served"]["queued"] != n:  # noqa: ASYNC110
                await asyncio.sleep(0.01)

        tasks = [asyncio.create_task(ask(i)) for i in range(PLACES + 2)]
        await until(2)
        tasks[-1].cancel()
        await until(1)
        gate.open()
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(answers.pop(), asyncio.CancelledError)
        assert [a[0] for a in answers] == [2.0 * i for i in range(PLACES + 1)]
        counts = (await serving.status())["models"]["served"]["outcomes"]
        return {name: n for name, n in counts.items() if n}

    assert served(main, gate.model()) == {"ok": PLACES + 1, "cancelled": 1}


# Deadlines


def test_a_block_within_a_block_has_the_earlier_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0
    monkeypatch.setattr("symphony_dask.client.deadline.now_ns", lambda: now)
    assert remaining_ns() is None
    with deadline("80ms"):
        now += 30 * MS
        assert remaining_ns() == 50 * MS
        with deadline("20ms"):
            assert remaining_ns() == 20 * MS
        with deadline("1s"):
            assert remaining_ns() == 50 * MS
        now += 60 * MS
        assert remaining_ns() == -10 * MS
    assert remaining_ns() is None


def test_a_deadline_that_is_none_is_refused() -> None:
    with pytest.raises(BadInput, match="deadline 'soon' cannot be read"), deadline("soon"):
        pass


class Sent:
    """In place of the lane: keeps what is submitted."""

    scheduler_id = "test"

    def __init__(self) -> None:
        self.slos_ns: list[int] = []
        self.futures: list[InferenceFuture] = []
        self.waits_s: list[float] = []
        self.cancelled: list[int] = []

    def submit(self, model_id: int, payload: bytes, slo_ns: int, priority: int, *, within_ns: int) -> InferenceFuture:
        self.slos_ns.append(slo_ns)
        self.futures.append(InferenceFuture(len(self.futures), self.cancelled.append))
        return self.futures[-1]

    def later(self, wait_s: float, future: InferenceFuture, call: Callable[[], None]) -> None:
        self.waits_s.append(wait_s)
        call()


@pytest.fixture
def sent() -> Sent:
    return Sent()


@pytest.fixture
def model(sent: Sent) -> Model:
    return Model("m", 1, 100 * MS, {"cpu": LatencyProfile(1.0, 5.0, 8)}, None, sent)  # type: ignore[arg-type]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A clock of one entry, ns, which only the test moves."""
    clock = [0]
    for module in ("deadlines", "retries"):
        monkeypatch.setattr(f"symphony_dask.{module}.now_ns", lambda: clock[0])
    monkeypatch.setattr(retry.random, "uniform", lambda low, high: 1.0)
    return clock


def test_requests_have_the_shorter_of_their_slo_and_what_is_left(model: Model, sent: Sent, clock: list[int]) -> None:
    model.submit(b"")  # its model's SLO, which the scheduler knows
    with deadline("80ms"):
        model.submit(b"")
        clock[0] = 50 * MS
        model.submit(b"")
        model.submit(b"", slo="10ms")
    assert sent.slos_ns == [0, 80 * MS, 30 * MS, 10 * MS]


def test_a_request_after_the_deadline_is_refused_without_being_sent(model: Model, sent: Sent, clock: list[int]) -> None:
    with deadline("80ms"):
        clock[0] = 90 * MS
        future = model.submit(b"")
    assert (future.done(), future.outcome, sent.slos_ns) == (True, "dropped", [])
    with pytest.raises(DeadlineExceeded, match="passed 10ms before this request to 'm': it was not sent"):
        future.result()


def test_tasks_of_asyncio_inherit_the_deadline(model: Model, sent: Sent, clock: list[int]) -> None:
    async def main() -> None:
        async def ask() -> None:
            model.submit(b"")

        with deadline("80ms"):
            task = asyncio.create_task(ask())
        await task

    asyncio.run(main())
    assert sent.slos_ns == [80 * MS]


# Retries


def refuse(future: InferenceFuture, error: Exception | None = None) -> None:
    future._finish("rejected", None, error or Overloaded("full"))


def test_a_refused_request_is_sent_again_with_what_is_left(model: Model, sent: Sent, clock: list[int]) -> None:
    future = model.submit(b"", retries=2)
    clock[0] = 10 * MS
    refuse(sent.futures[0])
    clock[0] = 25 * MS
    refuse(sent.futures[1], NoGPUWorker("none"))
    assert (sent.slos_ns, sent.waits_s) == ([100 * MS, 90 * MS, 75 * MS], [0.00625, 0.0125])
    sent.futures[2]._finish("ok", 42, None)
    assert (future.result(), future.outcome, future.request) == (42, "ok", 2)


def test_the_last_refusal_is_the_answer_when_no_retry_is_left(model: Model, sent: Sent, clock: list[int]) -> None:
    future = model.submit(b"", retries=1)
    refuse(sent.futures[0])
    refuse(sent.futures[1], Overloaded("still full"))
    with pytest.raises(Overloaded, match="still full"):
        future.result(0)
    assert (len(sent.futures), future.outcome) == (2, "rejected")


def test_nothing_is_sent_again_when_the_wait_would_pass_the_deadline(
    model: Model, sent: Sent, clock: list[int]
) -> None:
    future = model.submit(b"", slo="16ms", retries=5)  # waits 1 ms
    clock[0] = 15 * MS
    refuse(sent.futures[0])
    assert isinstance(future.exception(0), Overloaded)
    assert len(sent.futures) == 1


@pytest.mark.parametrize("error", [ModelError("raised"), DeadlineExceeded("late"), ConnectionLost("gone")])
def test_what_another_try_cannot_mend_is_not_tried_again(model: Model, sent: Sent, error: Exception) -> None:
    future = model.submit(b"", retries=5)
    refuse(sent.futures[0], error)
    assert (future.exception(0), len(sent.futures)) == (error, 1)


def test_cancelling_a_retried_request_cancels_its_present_try(model: Model, sent: Sent, clock: list[int]) -> None:
    future = model.submit(b"", retries=5)
    refuse(sent.futures[0])
    assert future.cancel()
    assert (sent.cancelled, future.outcome) == ([1], "cancelled")
    assert isinstance(future, RetriedFuture)


def test_a_number_of_retries_that_is_none_is_refused(model: Model) -> None:
    with pytest.raises(BadInput, match="retries=-1: give a whole number, at least 0"):
        model.submit(b"", retries=-1)


def test_requests_that_find_the_queue_full_are_answered_once_there_is_room(
    serving: Serving, deploy: Deploy, gate: Gate
) -> None:
    model = deploy(gate.model(), profile=QUICK, max_batch=1, queue_limit=1)
    first = [*occupy(serving, model), model.submit(np.array([4.0]))]
    wait_until(lambda: queued(serving, model) == 1, "a full queue")
    patient, hasty = model.submit(np.array([7.0]), retries=100), model.submit(np.array([8.0]))
    assert isinstance(hasty.exception(LIMIT_S), Overloaded)
    wait_until(lambda: outcomes(serving, model).get("rejected", 0) >= 3, "refusals of the patient one")
    assert not patient.done()
    gate.open()
    assert patient.result(LIMIT_S).tolist() == [14.0]
    assert concurrent.futures.wait(first, LIMIT_S).not_done == set()


def test_a_request_that_waits_for_another_try_fails_with_the_connection(
    cluster: Cluster, serving: Serving, deploy: Deploy, gate: Gate
) -> None:
    model = deploy(gate.model(), profile=QUICK, max_batch=1, queue_limit=1)
    occupy(serving, model)
    model.submit(np.array([4.0]))
    wait_until(lambda: queued(serving, model) == 1, "a full queue")
    other = Serving(cluster.client())
    theirs = Model(model.name, model._id, model.slo_ns, {}, None, other._lane)
    future = theirs.submit(np.array([7.0]), retries=10**6)
    wait_until(lambda: outcomes(serving, model).get("rejected", 0) >= 1, "a refusal")
    other.close()
    with pytest.raises(ConnectionLost):
        future.result(LIMIT_S)


# Readiness


def test_a_cluster_that_serves_is_ready(serving: Serving, deploy: Deploy) -> None:
    assert serving.wait_ready() == 2
    assert serving.wait_ready(deploy(models.double, profile=QUICK).name, gpus=2) == 2


def test_what_a_cluster_lacks_is_named(serving: Serving) -> None:
    with pytest.raises(NoGPUWorker, match=r"2 of 3 GPU slots serve after 0\.01 s"):
        serving.wait_ready(gpus=3, timeout="10ms")
    with pytest.raises(UnknownModel, match=r"model 'nothing' is not deployed after 0\.01 s"):
        serving.wait_ready("nothing", timeout="10ms")


# What objects look like


def test_a_notebook_shows_models_with_their_outcomes(serving: Serving, deploy: Deploy) -> None:
    model = deploy(models.double, profile=QUICK, slo="250ms")
    assert model.submit(np.array([1.0])).result(LIMIT_S).tolist() == [2.0]
    shown = serving._repr_html_()
    assert "2 of 2 serve" in shown
    row = shown[shown.index(model.name) :].split("</tr>")[0]
    assert "250ms" in row
    assert "ok 1" in row


def test_a_notebook_shows_a_cluster_that_does_not_answer() -> None:
    from symphony_dask.client.notebook import serving_html

    assert "unknown" in serving_html("tcp://127.0.0.1:1", ["<a>"], None)
    assert "&lt;a&gt;" in serving_html("tcp://127.0.0.1:1", ["<a>"], None)


def test_a_notebook_shows_the_latency_of_a_model(model: Model) -> None:
    assert "cpu: 6ms, up to 8 in 13ms" in model._repr_html_()


def test_a_notebook_shows_what_a_future_has() -> None:
    assert InferenceFuture(3)._repr_html_() == "&lt;InferenceFuture 3: pending&gt;"
    assert "<pre>&#x27;&lt;b&gt;&#x27;</pre>" in answered(3, "<b>")._repr_html_()
    failed = InferenceFuture(3)
    refuse(failed)
    assert "<pre>Overloaded: full</pre>" in failed._repr_html_()
    assert answered(3, "x" * 1000)._repr_html_().count("x") < 600


def test_the_public_names_load() -> None:
    assert symphony_dask.deadline is deadline
    assert symphony_dask.as_completed is as_completed
