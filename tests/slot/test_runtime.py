"""A worker's slot: the next batch is staged while the current one runs."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import numpy as np

from symphony_dask.backends import BatchRunner
from symphony_dask.clock import now_ns
from symphony_dask.slot.batch_inbox import Batch
from symphony_dask.slot.executor import Slot
from symphony_dask.slot.runtime import STAGE_BYTES, SlotWorker
from symphony_dask.wire import batch_codec, codec
from symphony_dask.wire.messages import Done, IsAside
from tests.helpers.cluster import wait_until
from tests.helpers.slots import Answers, Hangs, on_slot, small


class Sum:
    """Sums each sample; holds up the first batch until the second has been staged."""

    def __init__(self) -> None:
        self.staged: list[int] = []
        self.second_staged = threading.Event()

    def stage(self, samples: Any) -> Any:
        self.staged.append(len(samples))
        if len(self.staged) == 2:
            self.second_staged.set()
        return samples

    def __call__(self, samples: Any) -> Any:
        assert self.second_staged.wait(30), "the second batch was not staged while the first one ran"
        return samples.sum(axis=1)


def batch(number: int, n: int, lost: set[int]) -> Batch:
    payload = codec.encode(np.full(STAGE_BYTES // 8, number, np.float64))
    sizes = np.full(n, len(payload), np.int64)
    blob = memoryview(payload * (n - len(lost)))
    return Batch(number, 0, 7, sizes, np.zeros(n, np.int32), np.arange(n), blob, now_ns(), lost=lost)


def test_a_large_batch_is_staged_while_the_one_before_runs() -> None:
    async def run() -> None:
        slot = Slot(0, None)
        model = Sum()
        slot.runners[7] = BatchRunner(model)
        worker = SlotWorker("tcp://w", [slot], "cpu", graph_batches=None)  # type: ignore[arg-type]
        worker._loop = asyncio.get_running_loop()
        worker.connection = answers = Answers(2)  # type: ignore[assignment]
        worker._start_batch(batch(1, 3, lost=set()))
        worker._start_batch(batch(2, 3, lost={1}))
        async with asyncio.timeout(60):
            await answers.all_here.wait()
        slot.stop()
        assert model.staged == [3, 2]
        for done, (_, blob), number, ran in zip(
            answers.done(), answers.frames, (1, 2), ([0, 1, 2], [0, 2]), strict=True
        ):
            assert (done.batch, done.failures) == (number, {})
            sizes = done.rows["bytes"]
            assert np.flatnonzero(sizes).tolist() == ran
            assert [codec.decode(p) for p in batch_codec.split(blob, sizes[ran])] == [number * STAGE_BYTES / 8] * len(
                ran
            )

    asyncio.run(run())


def test_the_answers_of_a_batch_of_which_one_was_lost_are_those_of_the_others() -> None:
    async def run() -> None:
        slot = Slot(0, None)
        slot.runners[7] = BatchRunner(lambda samples: [f"{int(x[0])}" for x in samples])
        worker = SlotWorker("tcp://w", [slot], "cpu", graph_batches=None)  # type: ignore[arg-type]
        worker._loop = asyncio.get_running_loop()
        worker.connection = answers = Answers(1)  # type: ignore[assignment]
        worker._start_batch(batch(3, 3, lost={1}))
        async with asyncio.timeout(60):
            await answers.all_here.wait()
        slot.stop()
        (done,), (_, blob) = answers.done(), answers.frames[0]
        sizes = done.rows["bytes"]
        assert (done.failures, sizes[1]) == ({}, 0)
        assert [codec.decode(p) for p in batch_codec.split(blob, sizes[[0, 2]])] == ["3", "3"]

    asyncio.run(run())


def test_what_is_set_aside_goes_with_the_model_that_the_scheduler_means_and_not_with_one_of_a_lost_connection() -> None:
    async def test(worker: SlotWorker, slot: Slot, hangs: Hangs, answers: Answers) -> None:
        worker.connection = Answers(1)  # type: ignore[assignment]
        worker._start_batch(small(5, model_id=1))
        assert await asyncio.to_thread(hangs.began.wait, 30)
        worker.connection.closed = True  # type: ignore[union-attr, misc]
        worker.connection = answers  # type: ignore[assignment]
        worker._start_batch(small(1, model_id=2))  # waits behind the one that hangs
        worker._set_aside(0, 1, 2)
        assert set(slot.runners) == {1}
        worker._start_batch(small(2, model_id=2))  # left before the scheduler knew
        worker.inbox.newest[0] = 2
        worker._resume(0, 2)
        hangs.may_end.set()
        slot.runners[2] = BatchRunner(lambda samples: samples)
        worker._start_batch(small(3, model_id=2))
        async with asyncio.timeout(30):
            await answers.all_here.wait()
        assert answers.frames[0] == (IsAside(0, 1), b"")
        (done,) = answers.done()
        assert (done.batch, done.failures) == (3, {})

    on_slot(test, expected=2)


def test_a_batch_of_a_lost_connection_is_not_begun() -> None:
    async def test(worker: SlotWorker, slot: Slot, hangs: Hangs, answers: Answers) -> None:
        lost = worker.connection = Answers(1)  # type: ignore[assignment]
        lost.closed = True  # type: ignore[misc]
        worker._start_batch(small(5, model_id=1))
        worker.connection = answers  # type: ignore[assignment]
        worker._start_batch(small(1, model_id=2))
        async with asyncio.timeout(30):
            await answers.all_here.wait()
        assert not hangs.began.is_set()

    on_slot(test)


def test_what_another_scheduler_loads_stays_though_a_batch_of_the_one_before_hangs() -> None:
    async def test(worker: SlotWorker, slot: Slot, hangs: Hangs, answers: Answers) -> None:
        worker._forget_other_schedulers("a")
        assert set(slot.runners) == {1, 2}
        worker._start_batch(small(5, model_id=1))
        assert await asyncio.to_thread(hangs.began.wait, 30)
        worker._forget_other_schedulers("b")
        assert not slot.runners
        slot.runners[2] = BatchRunner(lambda samples: samples)
        worker.connection.closed = True  # type: ignore[union-attr, misc]
        worker.connection = answers = Answers(1)  # type: ignore[assignment]
        hangs.may_end.set()
        worker._start_batch(small(1, model_id=2))
        async with asyncio.timeout(30):
            await answers.all_here.wait()
        assert set(slot.runners) == {2}

    on_slot(test)


def test_a_batch_that_has_ended_meanwhile_is_not_left_and_none_behind_it_is_run_twice() -> None:
    async def test(worker: SlotWorker, slot: Slot, hangs: Hangs, answers: Answers) -> None:
        worker._start_batch(small(1, model_id=2))
        worker._start_batch(small(2, model_id=1))
        assert await asyncio.to_thread(hangs.began.wait, 30)
        worker._set_aside(0, 1, 2)
        assert set(slot.runners) == {1, 2}
        hangs.may_end.set()
        async with asyncio.timeout(30):
            await answers.all_here.wait()
        worker._set_aside(0, 2, 1)  # has ended as well, and its answer is on its way
        assert [done.batch for done in answers.done()] == [1, 2]
        assert len(answers.frames) == 2
        assert set(slot.runners) == {1, 2}

    on_slot(test, expected=2)


def test_a_batch_that_hangs_is_left_though_a_later_one_that_waited_for_no_payloads_ended_before_it() -> None:
    async def test(worker: SlotWorker, slot: Slot, hangs: Hangs, answers: Answers) -> None:
        worker._start_batch(small(2, model_id=2))
        worker._start_batch(small(1, model_id=1))
        assert await asyncio.to_thread(hangs.began.wait, 30)
        worker._set_aside(0, 1, 1)
        assert set(slot.runners) == {2}
        assert (IsAside(0, 1), b"") in answers.frames

    on_slot(test)


def test_a_model_is_back_when_the_scheduler_knew_already_that_its_batch_had_ended() -> None:
    async def test(worker: SlotWorker, slot: Slot, hangs: Hangs, answers: Answers) -> None:
        worker._set_aside(0, 1, 2)
        assert set(slot.runners) == {1}
        worker._resume(0, -1)
        assert set(slot.runners) == {1, 2}

    on_slot(test)


def test_whenever_a_batch_ends_its_model_is_there_once_its_answer_is() -> None:
    """The scheduler takes a model back when a batch comes that was left: then the slot has to have it."""

    async def test(worker: SlotWorker, slot: Slot, hangs: Hangs, answers: Answers) -> None:
        runner = BatchRunner(lambda samples: time.sleep(0.001) or samples)
        left = kept = 0
        for number in range(1, 301):
            slot.runners[2] = runner
            answers.frames.clear()
            worker._start_batch(small(number, model_id=2))
            await asyncio.sleep(number % 20 / 10_000)
            worker._set_aside(0, number, 2)
            was_left = any(isinstance(message, IsAside) for message, _ in answers.frames)
            worker.inbox.newest[0] = number
            worker._resume(0, 2)
            await asyncio.to_thread(threads_end, slot)
            await asyncio.sleep(0)
            answered = any(isinstance(message, Done) for message, _ in answers.frames)
            assert answered or was_left
            assert (2 in slot.runners) == answered
            left, kept = left + was_left, kept + (not was_left)
        assert left > 10
        assert kept > 10

    def threads_end(slot: Slot) -> None:
        wait_until(lambda: slot.stuck == 0, "the threads that were left")
        slot.call(lambda: None).result(30)

    on_slot(test)
