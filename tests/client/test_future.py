from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from typing import Any

import numpy as np
import pytest

from symphony_dask.client.future import InferenceFuture
from symphony_dask.client.model import Model
from symphony_dask.client.serving import Serving
from symphony_dask.errors import DeadlineExceeded
from tests.helpers.models import Gate
from tests.helpers.serving import PLACES


def answer(future: InferenceFuture, result: object = 42) -> None:
    future._finish("ok", result, None)


def fail(future: InferenceFuture) -> None:
    future._finish("dropped", None, DeadlineExceeded("too late"))


def test_a_result_that_is_there_is_returned() -> None:
    future = InferenceFuture()
    assert (future.done(), future.outcome) == (False, None)
    answer(future)
    assert (future.done(), future.result(), future.exception(), future.outcome) == (True, 42, None, "ok")


def test_a_thread_that_waits_gets_the_result() -> None:
    future = InferenceFuture()
    future.done()  # makes its condition
    threading.Timer(0.01, answer, [future]).start()
    assert future.result(timeout=10) == 42


def test_the_error_of_a_request_is_raised() -> None:
    future = InferenceFuture()
    fail(future)
    with pytest.raises(DeadlineExceeded, match="too late"):
        future.result()
    assert future.outcome == "dropped"


def test_waiting_ends_with_the_timeout() -> None:
    with pytest.raises(concurrent.futures.TimeoutError):
        InferenceFuture().result(timeout=0.001)
    with pytest.raises(concurrent.futures.TimeoutError):
        InferenceFuture().exception(timeout=0.001)


def test_a_callback_is_called_once_whether_it_came_before_or_after_the_answer() -> None:
    called: list[str] = []
    future = InferenceFuture()
    future.add_done_callback(lambda f: called.append(f"before: {f.result()}"))
    answer(future)
    future.add_done_callback(lambda f: called.append(f"after: {f.result()}"))
    assert called == ["before: 42", "after: 42"]


def test_a_callback_that_raises_does_not_keep_others_from_being_called() -> None:
    called = []
    future = InferenceFuture()
    future.add_done_callback(lambda f: 1 / 0)
    future.add_done_callback(called.append)
    answer(future)
    assert called == [future]


def test_wait_tells_answered_from_pending() -> None:
    answered, failed, pending = InferenceFuture(), InferenceFuture(), InferenceFuture()
    answer(answered)
    fail(failed)
    done, not_done = concurrent.futures.wait([answered, failed, pending], timeout=0.001)
    assert (done, not_done) == ({answered, failed}, {pending})


def test_wait_ends_with_the_first_error_if_asked_to() -> None:
    futures = [InferenceFuture() for _ in range(3)]
    threading.Timer(0.01, fail, [futures[1]]).start()
    done, _ = concurrent.futures.wait(futures, timeout=10, return_when=concurrent.futures.FIRST_EXCEPTION)
    assert done == {futures[1]}


def test_wait_and_as_completed_count_a_cancelled_future_as_done() -> None:
    early, late = InferenceFuture(), InferenceFuture()
    early.cancel()
    threading.Timer(0.01, late.cancel).start()
    assert concurrent.futures.wait([early, late], timeout=10).not_done == set()
    assert set(concurrent.futures.as_completed([early, late], timeout=10)) == {early, late}


def test_as_completed_gives_futures_in_the_order_of_their_answers() -> None:
    first, second = InferenceFuture(1), InferenceFuture(2)
    completed = concurrent.futures.as_completed([second, first], timeout=10)
    answer(first)
    assert next(completed) is first
    answer(second)
    assert next(completed) is second


def test_cancel_withdraws_the_request_once() -> None:
    withdrawn: list[int] = []
    future = InferenceFuture(7, withdrawn.append)
    assert future.cancel()
    assert future.cancel()
    assert withdrawn == [7]
    assert (future.cancelled(), future.done(), future.outcome) == (True, True, "cancelled")
    with pytest.raises(concurrent.futures.CancelledError):
        future.result()


def test_an_answer_that_comes_after_cancel_is_ignored() -> None:
    future = InferenceFuture()
    future.cancel()
    answer(future)
    assert (future.cancelled(), future.outcome) == (True, "cancelled")


def test_an_answered_future_cannot_be_cancelled() -> None:
    withdrawn: list[int] = []
    future = InferenceFuture(7, withdrawn.append)
    answer(future)
    assert not future.cancel()
    assert (withdrawn, future.result()) == ([], 42)


def test_cancel_calls_back() -> None:
    called = []
    future = InferenceFuture()
    future.add_done_callback(called.append)
    future.cancel()
    assert called == [future]


def test_awaiting_gives_the_result_or_raises() -> None:
    async def main() -> None:
        answered, failed = InferenceFuture(), InferenceFuture()
        loop = asyncio.get_running_loop()
        loop.run_in_executor(None, answer, answered)
        loop.run_in_executor(None, fail, failed)
        assert await answered == 42
        with pytest.raises(DeadlineExceeded):
            await failed

    asyncio.run(main())


def test_cancelling_a_task_that_awaits_cancels_the_request() -> None:
    async def main() -> None:
        future = InferenceFuture()

        async def waiting() -> None:
            await future

        with pytest.raises(TimeoutError):
            await asyncio.wait_for(waiting(), 0.01)
        assert future.cancelled()

    asyncio.run(main())


def test_every_future_ends_when_threads_answer_cancel_and_wait_at_once() -> None:
    futures = [InferenceFuture(i) for i in range(2000)]
    at_once = threading.Barrier(3)

    def each(act: object) -> None:
        at_once.wait()
        for future in futures:
            act(future)  # type: ignore[operator]

    def wait() -> int:
        at_once.wait()
        return len(concurrent.futures.wait(futures, timeout=30).done)

    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        pool.submit(each, answer)
        pool.submit(each, InferenceFuture.cancel)
        assert pool.submit(wait).result() == 2000
    assert {f.outcome for f in futures} <= {"ok", "cancelled"}
    assert all(f.cancelled() == (f.outcome == "cancelled") for f in futures)


def test_a_future_prints_its_request_and_state() -> None:
    future = InferenceFuture(3)
    assert repr(future) == "<InferenceFuture 3: pending>"
    answer(future)
    assert repr(future) == "<InferenceFuture 3: ok>"


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
