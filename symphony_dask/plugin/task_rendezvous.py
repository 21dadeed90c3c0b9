"""Brings graph tasks and the batches that they belong to together on a worker.

The scheduler sends a batch over the lane and its graph tasks over Dask's own connection, in any order. A task arrives
with its sample once Dask has brought its dependencies; the batch is run when all of its tasks have arrived, or when
waiting any longer would cost the others too much. Everything but ``GatheringTasks.run`` and ``GatheringTasks.fail``
happens on the worker's event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from distributed import Reschedule

from symphony_dask.backends.batch import BatchResult, Runner
from symphony_dask.errors import ModelError
from symphony_dask.slot.batch_inbox import Batch
from symphony_dask.wire import batch_codec

#: How long a batch waits for its tasks, s.
GATHER_S = 1.0

#: So many tasks that left are remembered.
MOST_GONE = 4096

#: What the scheduler is told of a task that did not arrive in time, and of one that ended before: Dask says how.
LATE = "the task did not reach the worker in time for its batch"
GONE = "the task ended before its batch began"


class GatheringTasks:
    """The graph tasks of one batch: ``names`` by their place in it. A task without a name does not come."""

    def __init__(self, names: Mapping[int, str], loop: asyncio.AbstractEventLoop, start: Callable[[], None]) -> None:
        self.places = {name: place for place, name in names.items() if name}
        self.waiting = set(self.places)
        self._names = names
        self._loop = loop
        self._start = start
        self._arrived: dict[int, tuple[bytes | memoryview, asyncio.Future[Any]]] = {}
        self._absent = {place: LATE for place, name in names.items() if not name}
        self._late = set(self._absent)

    def arrive(self, name: str, payload: bytes | memoryview, answer: asyncio.Future[Any]) -> None:
        self._arrived[self.places[name]] = (payload, answer)
        self._settle(name)

    def give_up(self, name: str, *, late: bool = False) -> None:
        """Do not wait for a task: it has ended, or is ``late``."""
        place = self.places[name]
        self._absent[place] = LATE if late else GONE
        if late:
            self._late.add(place)
        self._settle(name)

    def _settle(self, name: str) -> None:
        self.waiting.discard(name)
        self.start_if_complete()

    def start_if_complete(self) -> None:
        if not self.waiting:
            self._start()

    def run(self, runner: Runner, batch: Batch) -> BatchResult:
        """Run the batch with those that arrived. Each task gets its answer from here; the others' are returned.

        What was lost on the way to the batch has no answer, and no error here.
        """
        payloads: list[Any] = [b""] * len(batch.sizes)
        for place, payload in zip(batch.present(), batch_codec.split(batch.blob, batch.present_sizes()), strict=True):
            payloads[place] = payload
        for place, (sample, _) in self._arrived.items():
            payloads[place] = sample
        present = [i for i in range(len(payloads)) if i not in self._absent and i not in batch.lost]
        errors = dict(self._absent)
        answers: list[Any] = [b""] * len(payloads)
        spent = 0, 0
        if present:
            lengths = np.array([len(payloads[i]) for i in present], np.int64)
            result = runner.run([payloads[i] for i in present], lengths)
            for i, answer in zip(present, batch_codec.split(result.blob, result.sizes), strict=True):
                answers[i] = answer
            errors |= {present[k]: text for k, text in result.errors.items()}
            spent = result.input_ns, result.output_ns
        self._answer({i: errors.get(i) for i in self._arrived}, answers)
        kept = [b"" if i in self._names else answer for i, answer in enumerate(answers)]
        sizes = np.array([len(a) for a in kept], np.int64)
        return BatchResult(kept, sizes, errors, *spent, late=frozenset(self._late))

    def fail(self, text: str) -> None:
        """End the tasks that arrived when the batch could not be run."""
        self._answer(dict.fromkeys(self._arrived, text), [])

    def dismiss(self) -> None:
        """The batch is not run, or not waited for any longer: its tasks go back to the scheduler, which asks again."""

        def deliver() -> None:
            for _, future in self._arrived.values():
                if not future.done():
                    future.set_exception(Reschedule())

        try:
            self._loop.call_soon_threadsafe(deliver)
        except RuntimeError:  # the worker is gone
            pass

    def _answer(self, failed: dict[int, str | None], answers: list[Any]) -> None:
        def deliver() -> None:
            for place, text in failed.items():
                future = self._arrived[place][1]
                if future.done():
                    continue
                if text is None:
                    future.set_result(answers[place])
                else:
                    future.set_exception(ModelError(text))

        try:
            self._loop.call_soon_threadsafe(deliver)
        except RuntimeError:  # the worker is gone
            pass


class Rendezvous:
    """Graph tasks of one worker, and the batches that wait for them.

    Dask runs as many tasks at once as a worker has threads, though a graph task needs none while it waits. So each
    lends the worker a thread: ``state.nthreads`` is raised by the graph tasks that are here. Plain tasks keep theirs,
    in number and as threads.
    """

    def __init__(self, state: Any) -> None:
        self._state = state
        self._lent: set[str] = set()
        self._alone: dict[str, tuple[bytes | memoryview, asyncio.Future[Any]]] = {}
        self._expected: dict[str, GatheringTasks] = {}
        #: The last that left: of some the batch is still on its way, or the task that Dask gave up has yet to start.
        self._gone: dict[str, None] = {}

    def arrive(self, name: str, payload: bytes) -> asyncio.Future[Any]:
        """The sample of a task is here; the future gets the answer's payload."""
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        gathering = self._expected.pop(name, None)
        if gathering is not None:
            gathering.arrive(name, payload, answer)
        elif name in self._gone:
            answer.set_exception(Reschedule())
        else:
            self._alone[name] = (payload, answer)
        return answer

    def gather(self, names: Mapping[int, str], start: Callable[[GatheringTasks], None]) -> None:
        """Call ``start`` once the tasks of a batch have arrived, or ``GATHER_S`` from now."""
        loop = asyncio.get_running_loop()
        gathering = GatheringTasks(names, loop, lambda: begin())

        def begin() -> None:
            limit.cancel()
            start(gathering)

        def time_up() -> None:
            for name in list(gathering.waiting):
                self._expected.pop(name, None)
                gathering.give_up(name, late=True)

        limit = loop.call_later(GATHER_S, time_up)
        if not gathering.waiting:
            gathering.start_if_complete()
        for name in list(gathering.waiting):
            if name in self._alone:
                gathering.arrive(name, *self._alone.pop(name))
            elif name in self._gone:
                gathering.give_up(name)
            else:
                self._expected[name] = gathering

    def lend_thread(self, name: str) -> None:
        """A graph task has been sent here."""
        if name not in self._lent:
            self._lent.add(name)
            self._state.nthreads += 1

    def leave(self, name: str) -> None:
        """A graph task has ended, or will not run here: no batch waits for it any longer."""
        if name in self._lent:
            self._lent.discard(name)
            self._state.nthreads -= 1
        self._alone.pop(name, None)
        gathering = self._expected.pop(name, None)
        if gathering is not None:
            gathering.give_up(name)
        self._gone[name] = None
        if len(self._gone) > MOST_GONE:
            del self._gone[next(iter(self._gone))]

    def forget(self, name: str) -> None:
        """Dask does not want a graph task here any more: if it waits for a batch, have it end."""
        if name not in self._alone:
            self.leave(name)
            return
        _, answer = self._alone[name]
        if not answer.done():
            answer.set_exception(Reschedule())
