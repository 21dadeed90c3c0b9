"""Runs a test on a slot with two models, one of which hangs, without a scheduler."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import numpy as np

from symphony_dask.backends import BatchRunner
from symphony_dask.clock import now_ns
from symphony_dask.slot.batch_inbox import Batch
from symphony_dask.slot.executor import Slot
from symphony_dask.slot.runtime import SlotWorker
from symphony_dask.wire import codec
from symphony_dask.wire.connection import Message
from symphony_dask.wire.messages import Done


class Answers:
    """Stands for the connection to the scheduler."""

    closed = False

    def __init__(self, expected: int) -> None:
        self.frames: list[tuple[Message, bytes]] = []
        self.all_here = asyncio.Event()
        self._expected = expected

    def done(self) -> list[Done]:
        """How batches ended."""
        return [message for message, _ in self.frames if isinstance(message, Done)]

    def send(self, message: Message, *parts: Any) -> None:
        self.frames.append((message, b"".join(parts)))
        if len(self.frames) == self._expected:
            self.all_here.set()


class Hangs:
    """Runs until it is let go."""

    def __init__(self) -> None:
        self.began, self.may_end = threading.Event(), threading.Event()

    def __call__(self, samples: Any) -> Any:
        self.began.set()
        assert self.may_end.wait(30)
        return samples


def small(number: int, model_id: int) -> Batch:
    payload = codec.encode(np.ones(1))
    sizes, clients, ids = np.array([len(payload)]), np.zeros(1, np.int32), np.arange(1)
    return Batch(number, 0, model_id, sizes, clients, ids, memoryview(payload), now_ns())


def on_slot(test: Any, expected: int = 1) -> None:
    """Run ``test(worker, slot, hangs, answers)``; the slot has model 1, which hangs, and model 2, which does not."""

    async def run() -> None:
        slot, hangs = Slot(0, None), Hangs()
        slot.runners |= {1: BatchRunner(hangs), 2: BatchRunner(lambda samples: samples)}
        worker = SlotWorker("tcp://w", [slot], "cpu", graph_batches=None, _specs={1: b"", 2: b""})  # type: ignore[arg-type]
        worker._loop = asyncio.get_running_loop()
        worker.connection = answers = Answers(expected)  # type: ignore[assignment]
        try:
            await test(worker, slot, hangs, answers)
        finally:
            hangs.may_end.set()
            slot.stop()

    asyncio.run(run())
