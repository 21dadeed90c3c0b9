"""Holds Dask tasks whose function is a model, from when they could run until their batch is at a worker.

It is a client of the dispatcher inside the scheduler process, beside those on the lane. To Dask a graph task is one
that may run on no worker (state ``no-worker``), because its worker restriction names none. When it gets there, all that
it depends on is in memory: it becomes a request, which arrives now. When the engine dispatches the batch, the tasks in
it are sent to its worker and stay restricted to none: whatever brings a task back (a lost worker, a retry) holds it
again.

Dask decides what becomes of a task; a request only follows. So each of them may end first, and is then told apart by
its number: one request of a task at most is *open*, and what is heard of others is of no interest.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dask._task_spec import Task
from distributed.protocol import pickle

from symphony_dask.clock import now_ns
from symphony_dask.dispatcher.dispatcher import Dispatcher
from symphony_dask.dispatcher.sessions import Client
from symphony_dask.errors import RequestError, SymphonyError, UnknownModel
from symphony_dask.plugin.graph_function import ModelCall, graph_task_function, model_call_of
from symphony_dask.plugin.task_rendezvous import GATHER_S
from symphony_dask.text import did_you_mean, listed, shown
from symphony_dask.wire.connection import Buffer, Message
from symphony_dask.wire.error_codes import ErrorCode, Failure
from symphony_dask.wire.messages import Cancel, Result, Submit
from symphony_dask.wire.records import SUBMIT_ROW, make_column, make_records

if TYPE_CHECKING:
    from dask.typing import Key

logger = logging.getLogger(__name__)

#: A worker restriction that no worker meets.
NOWHERE = "symphony://held"

#: So often a task may miss its batch, each time with a new deadline, before it errs.
MAX_MISSES = 3

#: Before all priorities that users give: a graph task goes first at its worker, where its batch waits for it.
_FIRST = -(2**31)


@dataclass
class GraphTask:
    """A graph task that waits for its batch, or did and may be again.

    ts: the scheduler's state of it; name: what it was called when it was last sent to a worker; request: its open
    request, -1 if there is none; worker: where that was dispatched to; ready_ns: since when it could run; again: a new
    request is due though Dask said nothing; misses: how often it came too late for its batch.
    """

    ts: Any
    call: ModelCall | SymphonyError
    name: str = ""
    request: int = -1
    worker: str = ""
    ready_ns: int = 0
    again: bool = False
    misses: int = 0


class GraphTasks:
    """All graph tasks of a scheduler; ``peer`` and ``send`` are what the dispatcher knows of a client."""

    peer: Client

    def __init__(self, scheduler: Any, dispatcher: Dispatcher, loop: asyncio.AbstractEventLoop) -> None:
        self._known = False  # to the dispatcher
        self._scheduler = scheduler
        self._dispatcher = dispatcher
        self._loop = loop
        self._tasks: dict[Key, GraphTask] = {}
        self._open: dict[int, GraphTask] = {}
        self._next = 0
        self._moved: dict[Key, None] = {}

    # What Dask says

    def admit(self, keys: Iterable[Key]) -> None:
        """Hold those of some new tasks whose function is a model; before Dask looks for workers for them."""
        tasks = self._scheduler.tasks
        for key in keys:
            ts = tasks.get(key)
            call = None if ts is None else model_call_of(ts.run_spec, ts.annotations)
            if call is None:
                continue
            if not self._known:
                self._known = True
                self._dispatcher.add_local(self)
            earlier = self._tasks.get(key)
            if earlier is not None:
                if earlier.ts is ts:
                    continue
                self._close(earlier, cancel=True)
            self._tasks[key] = GraphTask(ts, call)
            ts.worker_restrictions = {NOWHERE}
            ts.host_restrictions = ts.resource_restrictions = None
            ts.loose_restrictions = False
            ts.priority = (_FIRST, *ts.priority[1:])

    def holds(self, key: Key) -> bool:
        return key in self._tasks

    def moved(self, key: Key, finish: str) -> None:
        """A task of Dask's came into another state; looked at when all of this event's transitions are done."""
        task = self._tasks.get(key)
        if task is None or finish in ("waiting", "processing"):  # what follows says more
            return
        if finish == "no-worker":
            task.ready_ns = now_ns()
        self._look(key)

    def _look(self, key: Key) -> None:
        if not self._moved:
            self._loop.call_soon(self._flush)
        self._moved[key] = None

    def _flush(self) -> None:
        """Have requests follow what became of their tasks."""
        moved, self._moved = self._moved, {}
        new = []
        for key in moved:
            task = self._tasks.get(key)
            if task is None:
                continue
            try:
                if self._follow(key, task):
                    new.append(task)
            except Exception:
                logger.exception("graph task %r", key)
        try:
            self._submit(new)
        except Exception:
            logger.exception("%d graph tasks could not be submitted", len(new))

    def _follow(self, key: Key, task: GraphTask) -> bool:
        """Whether a task needs a new request."""
        ts = task.ts
        if self._scheduler.tasks.get(key) is not ts:  # forgotten
            self._close(task, cancel=True)
            del self._tasks[key]
            return False
        if ts.state == "no-worker":
            if task.request >= 0 and task.worker in self._scheduler.workers:
                self._close(task)  # the task came back by itself, as when it is retried
            # With a lost worker the engine queues the request again by itself.
            return task.request < 0
        if ts.state == "processing":
            return task.again and task.request < 0
        # One that is in flight ends with its batch; one that is queued, again or still, would run for nobody.
        in_flight = task.worker in self._scheduler.workers
        self._close(task, cancel=not (ts.state in ("memory", "erred") and in_flight))
        return False

    # Requests

    def _submit(self, new: list[GraphTask]) -> None:
        """One SUBMIT for all tasks that became runnable together."""
        ids, rows = [], []
        by_name = self._dispatcher.numbers
        now = now_ns()
        for task in new:
            call = task.call
            if isinstance(call, SymphonyError):
                self._err(task, call)
                continue
            model_id = by_name.get(call.model.name)
            if model_id is None:
                text = f"model {shown(call.model.name)} is not deployed; deployed are {listed(by_name)}"
                self._err(task, UnknownModel(f"{text}{did_you_mean(call.model.name, by_name)}"))
                continue
            task.request, task.worker = self._next, ""
            self._next += 1
            self._open[task.request] = task
            ids.append(task.request)
            rows.append((model_id, call.slo_ns, 0 if task.again else now - task.ready_ns, call.priority))
            task.again = False
        if not ids:
            return
        models, slos, ages, priorities = zip(*rows, strict=True)
        records = make_records(SUBMIT_ROW, len(ids), id=ids, slo=slos, age=ages, model=models, priority=priorities)
        self._dispatcher.hear_local(Submit(records))

    def _close(self, task: GraphTask, *, cancel: bool = False) -> None:
        """Nothing more is to be heard of a task's open request."""
        if task.request < 0:
            return
        self._open.pop(task.request, None)
        if cancel:
            self._dispatcher.hear_local(Cancel(make_column([task.request])))
        task.request, task.worker = -1, ""

    # What the dispatcher says

    def send(self, message: Message, *blobs: Buffer) -> None:
        """A message of the dispatcher's; RESULT says how requests ended."""
        if not isinstance(message, Result):
            return
        for i, request in enumerate(message.rows["id"].tolist()):
            task = self._open.pop(request, None)
            if task is None:
                continue
            task.request, task.worker = -1, ""
            if i in message.failures:
                try:
                    self._failed(task, message.failures[i])
                except Exception:
                    logger.exception("graph task %r", task.ts.key)

    def _failed(self, task: GraphTask, failure: Failure) -> None:
        """A request got no answer: the task errs, or tries again where the reason is none of the request's."""
        if failure.code == ErrorCode.TASK_LATE:
            task.misses += 1
            if task.misses < MAX_MISSES:
                self._request_again(task)
            else:
                why = f"{task.misses} times: what it depends on took longer than {GATHER_S:g} s to get there"
                self._err(task, RequestError(f"{failure.text}, {why}"))
        elif failure.code == ErrorCode.WORKER_LOST:
            self._request_again(task)  # Dask counts lost workers for itself, and says when there were too many
        elif failure.code != ErrorCode.MODEL_ERROR:  # the task itself raises that, or ended before
            self._err(task, failure.error())

    def _request_again(self, task: GraphTask) -> None:
        task.again = True
        self._look(task.ts.key)

    def _err(self, task: GraphTask, error: SymphonyError) -> None:
        """Have a task err, or try again if it has retries left."""
        ts, scheduler = task.ts, self._scheduler
        if scheduler.tasks.get(ts.key) is not ts:
            return
        stimulus = f"symphony-err-{time.time()}"
        if ts.state == "processing":
            scheduler.transitions({ts.key: "released"}, stimulus)
        if ts.state != "no-worker":
            return
        if ts.retries and isinstance(error, RequestError):
            ts.retries -= 1
            self._request_again(task)
            return
        text = f"{type(error).__name__}: {error}"
        then = scheduler.transition(
            ts.key,
            "erred",
            stimulus,
            exception=pickle.dumps(error),
            cause=ts.key,
            exception_text=text,
            traceback_text="",
        )
        scheduler.transitions(then, stimulus)

    def dispatched(self, address: str, requests: list[int]) -> list[str]:
        """Requests have left for a worker in one batch: send their tasks there, and say what they are called.

        The name is empty where no task will come.
        """
        try:
            return self._release(address, [self._open.get(request) for request in requests])
        except Exception:
            logger.exception("graph tasks could not be sent to %s", address)
            return [""] * len(requests)

    def _prepare(self, task: GraphTask, address: str) -> None:
        """Have a task run at a worker, under a new name: what is still said there of an earlier run is not of this."""
        assert isinstance(task.call, ModelCall)
        ts, spec = task.ts, task.ts.run_spec
        task.name = f"{ts.key!r} for request {task.request}"
        ts.run_spec = Task(spec.key, graph_task_function(task.name, task.call.model), *spec.args, **spec.kwargs)
        ts.worker_restrictions = {address}

    def _release(self, address: str, batch: list[GraphTask | None]) -> list[str]:
        scheduler = self._scheduler
        stimulus = f"symphony-dispatch-{time.time()}"
        tasks = [task for task in batch if task is not None]
        strayed = [h for h in tasks if h.ts.state == "processing" and h.ts.processing_on.address != address]
        if strayed:  # their worker is lost and Dask does not know yet, or they missed a batch there
            scheduler.transitions({h.ts.key: "released" for h in strayed}, stimulus)
        waiting = [h for h in tasks if h.ts.state == "no-worker"]
        for task in waiting:
            self._prepare(task, address)
        # Recommendations are followed from the last.
        scheduler.transitions({h.ts.key: "processing" for h in reversed(waiting)}, stimulus)
        for task in waiting:
            task.ts.worker_restrictions = {NOWHERE}
        there = set()
        for task in tasks:
            ts = task.ts
            task.worker = ""
            if ts.state == "processing" and ts.processing_on.address == address:
                task.worker = address
                there.add(task.name)
                if ts not in ts.processing_on.long_running:
                    # It takes no thread, so plain tasks are not to be kept from the worker on its account.
                    scheduler.handle_long_running(ts.key, address, ts.run_id, None, stimulus)
        return [task.name if task is not None and task.name in there else "" for task in batch]
