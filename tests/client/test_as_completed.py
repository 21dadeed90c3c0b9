"""Futures in the order in which they are answered."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest

from symphony_dask import as_completed
from symphony_dask.client.future import InferenceFuture
from symphony_dask.client.model import Model
from symphony_dask.client.serving import Serving
from tests.helpers.sent_requests import answered


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


def test_answers_of_a_model_come_as_they_complete(served: Any) -> None:
    async def main(serving: Serving, model: Model) -> list[float]:
        futures = model.map(np.array([float(i)]) for i in range(50))
        return sorted([float(future.result()[0]) async for future in as_completed(futures)])

    assert served(main) == [2.0 * i for i in range(50)]
