"""Batches with held tasks at a worker, without Dask: who is waited for, and who gets which answer."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from distributed import Reschedule

from symphony_dask.backends.batch import BatchResult, BatchRunner
from symphony_dask.errors import ModelError
from symphony_dask.plugin import task_rendezvous
from symphony_dask.plugin.task_rendezvous import GONE, LATE, GatheringTasks, Rendezvous
from symphony_dask.slot.batch_inbox import Batch
from symphony_dask.wire import batch_codec, codec


def doubles(batch: list[float]) -> list[float]:
    return [2 * x for x in batch]


def meet(scenario: Callable[[Rendezvous], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(scenario(Rendezvous(SimpleNamespace(nthreads=1))), 10))  # type: ignore[arg-type]


def started(place: Rendezvous, names: dict[int, str]) -> asyncio.Future[GatheringTasks]:
    """The gathering of a batch once it starts."""
    future: asyncio.Future[GatheringTasks] = asyncio.get_running_loop().create_future()
    place.gather(names, future.set_result)
    return future


def run(gathering: GatheringTasks, lane: list[float | None], model: Any = doubles) -> BatchResult:
    """Run a batch whose requests from the lane are the numbers in ``lane``."""
    payloads = [b"" if x is None else codec.encode(x) for x in lane]
    sizes = np.array([len(p) for p in payloads], np.int64)
    n = len(lane)
    blob = memoryview(b"".join(payloads))
    return gathering.run(BatchRunner(model), Batch(0, 0, 0, sizes, np.zeros(n, np.int32), np.arange(n), blob, 0))


def answers(result: BatchResult) -> list[Any]:
    return [codec.decode(p) if len(p) else None for p in batch_codec.split(result.blob, result.sizes)]


def test_a_batch_starts_with_its_last_task_and_each_gets_its_own_answer() -> None:
    async def scenario(place: Rendezvous) -> None:
        early = place.arrive("a", codec.encode(1.0))
        start = started(place, {0: "a", 2: "b"})
        assert not start.done()
        late = place.arrive("b", codec.encode(3.0))
        result = run(await start, [None, 2.0, None])
        assert answers(result) == [None, 4.0, None]
        assert result.errors == {}
        assert [codec.decode(await early), codec.decode(await late)] == [2.0, 6.0]

    meet(scenario)


def test_a_task_that_does_not_come_is_left_out_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task_rendezvous, "GATHER_S", 0.01)

    async def scenario(place: Rendezvous) -> None:
        start = started(place, {0: "a", 1: ""})
        result = run(await start, [None, None, 2.0])
        assert answers(result) == [None, None, 4.0]
        assert result.errors == {0: LATE, 1: LATE}
        late = place.arrive("a", codec.encode(1.0))  # and is in the next batch for which it is asked
        run(await started(place, {0: "a"}), [None])
        assert codec.decode(await late) == 2.0

    meet(scenario)


def test_a_task_that_has_ended_is_not_waited_for_whichever_comes_first() -> None:
    async def scenario(place: Rendezvous) -> None:
        start = started(place, {0: "a"})
        place.forget("a")
        place.forget("b")
        for gathering in (await start, await started(place, {0: "b"})):
            assert run(gathering, [None]).errors == {0: GONE}
        with pytest.raises(Reschedule):
            await place.arrive("b", codec.encode(1.0))

    meet(scenario)


def test_a_task_that_waits_for_a_batch_ends_when_dask_gives_it_up() -> None:
    async def scenario(place: Rendezvous) -> None:
        answer = place.arrive("a", codec.encode(1.0))
        place.forget("a")
        with pytest.raises(Reschedule):
            await answer

    meet(scenario)


def test_what_the_model_raises_goes_to_tasks_and_lane_alike() -> None:
    async def scenario(place: Rendezvous) -> None:
        answer = place.arrive("a", codec.encode(0.0))
        result = run(await started(place, {0: "a"}), [None, 0.0], lambda batch: [1 / x for x in batch])
        with pytest.raises(ModelError, match="ZeroDivisionError"):
            await answer
        assert sorted(result.errors) == [0, 1]

    meet(scenario)


def test_each_task_brings_a_seat_of_its_own() -> None:
    state = SimpleNamespace(nthreads=1)
    place = Rendezvous(state)
    place.lend_thread("a")
    place.lend_thread("a")
    place.lend_thread("b")
    assert state.nthreads == 3
    place.leave("a")
    place.leave("a")
    assert state.nthreads == 2
