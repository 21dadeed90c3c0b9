"""Holds the answer of one request until it comes: the future that ``submit`` returns."""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import os
import threading
from collections.abc import Callable, Generator
from concurrent.futures._base import CANCELLED_AND_NOTIFIED, FINISHED, PENDING
from functools import cache
from html import escape
from typing import Any, Protocol

from symphony_dask.errors import BadInput, RequestError
from symphony_dask.text import brief, error_text
from symphony_dask.wait_checks import AnsweringLoop
from symphony_dask.wire.codec import decode

logger = logging.getLogger(__name__)

#: Characters of an answer that a notebook shows.
_MOST_SHOWN = 500

#: Answers of more bytes are not read in the event loop.
_LARGE_BYTES = 1 << 20

#: Of what has no deadline of its own.
NEVER = 2**63 - 1

# Guards the making of conditions; held for a few bytecodes, never while anything waits.
_making = threading.Lock()


@cache
def _readers() -> concurrent.futures.ThreadPoolExecutor:
    return concurrent.futures.ThreadPoolExecutor(2, thread_name_prefix="symphony-read")


def _renew_lock() -> None:
    """In a process that was forked while another thread held it, nobody would let go of it; threads are not there."""
    global _making
    _making = threading.Lock()
    _readers.cache_clear()


os.register_at_fork(after_in_child=_renew_lock)


class Waiting(Protocol):
    """What the lane keeps of a request until it ends; one of the two is called, once, in the event loop's thread.

    model_id: the number on the lane of the model that it asks; set by the lane.

    ends_ns: its deadline as far as the client knows, on ``clock.now_ns``; set by the lane. answered_in: the event
        loop
        in which it ends; set by the lane, too.
    """

    ends_ns: int
    answered_in: AnsweringLoop | None
    model_id: int

    def _answer(self, outcome: str, payload: memoryview) -> None: ...

    def _finish(self, outcome: str, result: object, exception: BaseException | None) -> None: ...


class InferenceFuture(concurrent.futures.Future[Any]):
    """A ``concurrent.futures.Future`` that can also be awaited; it never runs, it is answered.

    ``concurrent.futures.wait`` and ``as_completed`` take it. A condition variable, most of what a future costs, is made
    only when somebody waits.

    outcome: "ok" or "late" once answered, "dropped", "rejected", "failed" or "cancelled" otherwise, None before.
    request: the request's id on its connection.
    """

    outcome: str | None
    request: int
    ends_ns: int = NEVER
    answered_in: AnsweringLoop | None = None
    model_id: int = -1

    def __init__(self, request: int = -1, on_cancel: Callable[[int], None] | None = None) -> None:
        self._state = PENDING
        self._result = None
        self._exception = None
        self._waiting: list[Any] = []
        self._done_callbacks: list[Callable[[Any], Any]] = []
        self._lazy_condition: threading.Condition | None = None
        self._on_cancel = on_cancel
        self.outcome = None
        self.request = request

    @property
    def _condition(self) -> threading.Condition:  # type: ignore[override]
        if self._lazy_condition is None:
            with _making:
                if self._lazy_condition is None:
                    self._lazy_condition = threading.Condition()
        return self._lazy_condition

    @property
    def _waiters(self) -> list[Any]:  # type: ignore[override]
        """Who waits for it together with others; asked for by ``concurrent.futures.wait`` and ``as_completed``."""
        self._check_wait()
        return self._waiting

    def _check_wait(self) -> None:
        if self._state == PENDING and self.answered_in is not None:
            self.answered_in.check_wait()

    def result(self, timeout: float | None = None) -> Any:
        """The answer. timeout: to wait for it, s.

        Raises the request's error; ``TimeoutError``; ``WouldDeadlock`` in the thread of the event loop that answers.
        """
        if timeout is None or timeout > 0:
            self._check_wait()
        return super().result(timeout)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """The request's error, or None; waits and raises as ``result`` otherwise does."""
        if timeout is None or timeout > 0:
            self._check_wait()
        return super().exception(timeout)

    def _answer(self, outcome: str, payload: memoryview) -> None:
        """The payload of the answer has come. Called by the lane, once, unless ``_finish`` is.

        A large one is read in another thread, which then calls back: the event loop has others to answer.
        """
        if len(payload) > _LARGE_BYTES:
            try:
                _readers().submit(self._read, outcome, payload)
                return
            except RuntimeError:  # the interpreter is about to end
                pass
        self._read(outcome, payload)

    def _read(self, outcome: str, payload: memoryview) -> None:
        try:
            result = decode(payload)
        except Exception as error:
            self._finish("failed", None, RequestError(f"the answer cannot be read: {error}"))
        else:
            self._finish(outcome, result, None)

    def _finish(self, outcome: str, result: object, exception: BaseException | None) -> None:
        """Answer the future, unless it was cancelled. Called by the lane, once."""
        with _making:
            # Without a condition nobody waits, calls back or cancels, and nobody starts to before this lock is free.
            alone = self._lazy_condition is None
            if alone:
                self.outcome, self._result, self._exception, self._state = outcome, result, exception, FINISHED
        if alone:
            return
        with self._condition:
            if self._state == CANCELLED_AND_NOTIFIED:
                return
            self.outcome = outcome
            self._result = result
            self._exception = exception
            self._state = FINISHED
            for waiter in self._waiting:
                if exception is None:
                    waiter.add_result(self)
                else:
                    waiter.add_exception(self)
            self._condition.notify_all()
        self._invoke_callbacks()

    def cancel(self) -> bool:
        """Cancel the request, in its queue too; False if it was answered already."""
        with self._condition:
            if self._state != PENDING:
                return self._state == CANCELLED_AND_NOTIFIED
            # Not CANCELLED: concurrent.futures.wait would wait for an executor to notice.
            self._state = CANCELLED_AND_NOTIFIED
            self.outcome = "cancelled"
            for waiter in self._waiting:
                waiter.add_cancelled(self)
            self._condition.notify_all()
        self._invoke_callbacks()
        if self._on_cancel is not None:
            self._on_cancel(self.request)
        return True

    def _invoke_callbacks(self) -> None:
        """Whatever one of them raises, the others are called, and the event loop whose thread this is goes on."""
        for callback in self._done_callbacks:
            try:
                callback(self)
            except BaseException as error:
                logger.error("a done-callback of request %d raised: %s", self.request, error_text(error))

    def __await__(self) -> Generator[Any, None, Any]:
        return asyncio.wrap_future(self).__await__()

    def __reduce__(self) -> Any:
        raise BadInput(
            "an InferenceFuture cannot be pickled or copied, as no copy would ever be answered: send its result()"
        )

    def __repr__(self) -> str:
        state = "pending" if self._state == PENDING else self.outcome or "cancelled"
        return f"<InferenceFuture {self.request}: {state}>"

    def _repr_html_(self) -> str:
        if self._state != FINISHED:
            return escape(repr(self))
        found = brief(self._exception) if self._exception is not None else _repr(self._result)
        shown = found if len(found) <= _MOST_SHOWN else found[:_MOST_SHOWN] + " ..."
        return f"<div><strong>{escape(repr(self))}</strong><pre>{escape(shown)}</pre></div>"


def _repr(result: object) -> str:
    try:
        return repr(result)
    except BaseException as error:  # of a user's code: it may be what a function of a pipeline returned
        return f"(it cannot be shown: {brief(error)})"
