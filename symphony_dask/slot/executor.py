"""Runs a slot's work in a thread of its own, so that the event loop reads the next batch meanwhile."""

from __future__ import annotations

import logging
import queue
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from symphony_dask.backends import Runner
from symphony_dask.errors import DeploymentError
from symphony_dask.slot.batch_inbox import Batch
from symphony_dask.slot.graph_batches import GraphBatch
from symphony_dask.slot.metrics import SlotCounts
from symphony_dask.text import error_text
from symphony_dask.wire.connection import Connection

logger = logging.getLogger(__name__)

#: So many of the last batches a slot remembers; more do not end while word of one is on its way.
_ENDED = 64


@dataclass
class Loading:
    """A model being loaded; ``abandoned``: nobody waits for it any more, so it is thrown away when it is there."""

    done: Future[dict[str, Any]] = field(default_factory=Future)
    abandoned: bool = False


class Running(NamedTuple):
    """The batch that a slot runs now, from whom it came, what runs it, and its graph tasks."""

    batch: Batch
    connection: Connection[None]
    runner: Runner | None
    graph: GraphBatch | None


class Slot:
    """One GPU slot: a thread, and the runners that it has loaded, which run in this thread.

    Large batches pass through a second thread first, which stages them (``backends.Staging``) one after the other.
    A thread that hangs in a batch is left to it, and another takes its place.

    given_up: batches up to this number are not waited for any longer, and not to be begun. ended: the last batches that
    ended, not always in the order of their numbers, as some wait for payloads. aside: the model that was left behind
    with a batch, and what ran it. The lock is for these and ``running``: whether a batch had ended when it was left is
    one question.
    """

    def __init__(self, number: int, device: str | None) -> None:
        self.number = number
        self.device = device
        self.runners: dict[int, Runner] = {}
        self.loads: dict[int, Loading] = {}
        self.counts = SlotCounts()
        self.given_up = -1
        self.ended: deque[int] = deque(maxlen=_ENDED)
        self.aside: tuple[int, Runner | None] = (-1, None)
        self.running: Running | None = None
        self._stuck: list[threading.Thread] = []
        self.lock = threading.Lock()
        self._jobs: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._ahead: queue.SimpleQueue[Any] | None = None
        self._thread = self._start("slot", self._jobs)

    def call(self, function: Callable[..., object], *args: object) -> Future[Any]:
        """Run ``function(*args)`` in the slot's thread."""
        future: Future[Any] = Future()
        with self.lock:
            self._jobs.put((future, function, args))
        return future

    def post(self, function: Callable[..., object], *args: object) -> None:
        """Run ``function(*args)``, which does not raise, in the slot's thread."""
        with self.lock:
            self._jobs.put((None, function, args))

    def post_ahead(self, function: Callable[..., object], *args: object) -> None:
        """Run ``function(*args)``, which does not raise, in the thread that stages batches."""
        with self.lock:
            if self._ahead is None:
                self._ahead = queue.SimpleQueue()
                self._start("stage", self._ahead)
            self._ahead.put((None, function, args))

    def replace_threads(self) -> None:
        """Leave the slot's threads to what they run, and have others do what waits behind it."""
        with self.lock:
            earlier, self._jobs = self._jobs, queue.SimpleQueue()
            while not earlier.empty():
                self._jobs.put(earlier.get())  # batches among them end at once
            earlier.put(None)
            if self._ahead is not None:
                self._ahead.put(None)
                self._ahead = None
            self._stuck.append(self._thread)
            self._thread = self._start("slot", self._jobs)

    @property
    def stuck(self) -> int:
        """How many threads hang in a batch."""
        with self.lock:
            self._stuck = [thread for thread in self._stuck if thread.is_alive()]
            return len(self._stuck)

    def stop(self) -> None:
        self._jobs.put(None)
        if self._ahead is not None:
            self._ahead.put(None)

    def _start(self, what: str, jobs: queue.SimpleQueue[Any]) -> threading.Thread:
        name = f"symphony-{what}-{self.number}"
        thread = threading.Thread(target=self._work, args=(jobs,), name=name, daemon=True)
        thread.start()
        return thread

    def _work(self, jobs: queue.SimpleQueue[Any]) -> None:
        while (job := jobs.get()) is not None:
            future, function, args = job
            if future is not None and not future.set_running_or_notify_cancel():
                continue  # whoever asked has gone
            try:
                result = function(*args)
            except BaseException as error:  # nothing ends this thread: the slot would answer nobody any more
                if future is None:
                    logger.error("slot %d: %s", self.number, error_text(error))
                else:  # SystemExit and its like would end the event loop that waits for it
                    known = isinstance(error, Exception)
                    future.set_exception(error if known else DeploymentError(error_text(error)))
            else:
                if future is not None:
                    future.set_result(result)
            del job, future, function, args
