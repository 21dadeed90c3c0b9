"""Runs users' functions, those of pipelines, in clients and in gateways, so that none holds up the process.

Rule 1. A function runs in threads of its own, at most THREADS of them, and never in the event loop: what it waits for,
        or hangs in, holds up its own requests alone.
Rule 2. It has the deadline of its request. When that passes, the request ends as ``DeadlineExceeded``, and nobody waits
        for the thread any more.
Rule 3. Whatever it raises, also what ends programs, loops and generators, ends its request and nothing else.
Rule 4. A call that goes on for OVERRUN_S after its deadline is interrupted: ``Interrupted`` is raised in it. That ends
        what runs in Python; what waits outside of it, as a sleep does, meets it when it returns, and holds its thread
        until then. No such thread keeps the process from ending.
"""

from __future__ import annotations

import asyncio
import ctypes
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any

from symphony_dask.client.deadline import Until
from symphony_dask.errors import DeadlineExceeded, ModelError
from symphony_dask.text import brief, error_text
from symphony_dask.units import NS_PER_S, format_duration

#: Of one function, at once.
THREADS = 16

#: A call that is so late is taken to hang, s.
OVERRUN_S = 0.5

#: A thread that has had nothing to do for so long ends, s.
IDLE_S = 10.0


class Interrupted(BaseException):
    """Raised in a function that hangs (rule 4); no ``except Exception`` of its own is to catch it."""


@dataclass(eq=False)
class _Call:
    """ended: whether the function returned, and what that was, or which error stands for what it raised."""

    x: object
    ends_ns: int
    ended: asyncio.Future[tuple[bool, Any]]
    thread: _Thread | None = None


@dataclass(eq=False)
class _Thread:
    """Everything is changed in the event loop but ``running``, which the lock guards."""

    calls: SimpleQueue[_Call | None] = field(default_factory=SimpleQueue)
    lock: threading.Lock = field(default_factory=threading.Lock)
    running: _Call | None = None
    number: int = 0  #: its identity to the interpreter
    interrupted: bool = False
    idle: asyncio.TimerHandle | None = None


class UserFunction:
    """A function of a user's, with its threads: ``await function(x, ends_ns, within_ns)``. For one event loop."""

    def __init__(self, function: Callable[[Any], Any], what: str) -> None:
        self._function, self._what = function, what
        self._threads: set[_Thread] = set()
        self._free: list[_Thread] = []
        self._waiting: deque[_Call] = deque()

    async def __call__(self, x: object, ends_ns: int, within_ns: int) -> Any:
        """What the function returns for ``x``. ends_ns: the deadline on ``clock.now_ns``, which is ``within_ns``
        away.

        Raises ``DeadlineExceeded``, and what the function raises (``named``).
        """
        self._loop = asyncio.get_running_loop()
        call = _Call(x, ends_ns, self._loop.create_future())
        self._waiting.append(call)
        self._hand_out()
        try:
            await asyncio.wait([call.ended], timeout=max(within_ns, 0) / NS_PER_S)
            if not call.ended.done():
                raise DeadlineExceeded(self._overdue(call, within_ns))
        finally:
            self._leave(call)
        returned, value = call.ended.result()
        if returned:
            return value
        raise value

    def _overdue(self, call: _Call, within_ns: int) -> str:
        if call.thread is not None:
            took = format_duration(within_ns)
            text = f"{self._what} had not returned when the deadline passed, {took} after its call"
            return f"{text}: raise the SLO, or have it return sooner"
        return f"{self._what} was not called before the deadline: {THREADS} calls of it have not returned"

    # In the event loop

    def _hand_out(self) -> None:
        while self._waiting and (self._free or len(self._threads) < THREADS):
            call = self._waiting.popleft()
            if call.ended.done():
                continue
            call.thread = self._free.pop() if self._free else self._start()
            if call.thread.idle is not None:
                call.thread.idle.cancel()
            call.thread.calls.put(call)

    def _start(self) -> _Thread:
        thread = _Thread()
        self._threads.add(thread)
        threading.Thread(target=self._run, args=(thread,), name=f"symphony-{self._what}"[:60], daemon=True).start()
        return thread

    def _leave(self, call: _Call) -> None:
        """Nobody waits for a call any more; one that has not ended is to end (rule 4)."""
        if call.ended.done() and not call.ended.cancelled():
            return
        call.ended.cancel()
        if call.thread is not None:
            timer = threading.Timer(OVERRUN_S, _interrupt, (call.thread, call))  # the event loop may end before
            timer.daemon = True
            timer.start()
        elif call in self._waiting:
            self._waiting.remove(call)

    def _end(self, thread: _Thread, call: _Call, returned: bool, value: object) -> None:
        if not call.ended.done():
            call.ended.set_result((returned, value))
        if thread.interrupted:
            self._threads.discard(thread)
        else:
            self._free.append(thread)
            thread.idle = self._loop.call_later(IDLE_S, self._retire, thread)
        self._hand_out()

    def _retire(self, thread: _Thread) -> None:
        self._free.remove(thread)
        self._threads.discard(thread)
        thread.calls.put(None)

    def _gone(self, thread: _Thread) -> None:
        self._threads.discard(thread)
        self._hand_out()

    # In a thread

    def _run(self, thread: _Thread) -> None:
        # An interrupt may come late, once, anywhere in here.
        try:
            try:
                self._serve(thread)
            finally:
                self._call_in_loop(self._gone, thread)
        except BaseException:
            self._call_in_loop(self._gone, thread)

    def _serve(self, thread: _Thread) -> None:
        thread.number = threading.get_ident()
        while (call := thread.calls.get()) is not None:
            with thread.lock:
                thread.running = call
            returned, value = (False, None) if call.ended.done() else self._outcome(call)
            with thread.lock:
                thread.running = None
            if not self._call_in_loop(self._end, thread, call, returned, value) or thread.interrupted:
                return
            del call, value  # a thread that waits keeps nothing alive

    def _outcome(self, call: _Call) -> tuple[bool, Any]:
        try:
            with Until(call.ends_ns):
                return True, self._function(call.x)
        except BaseException as error:
            return False, named(error, self._what)

    def _call_in_loop(self, function: Callable[..., None], *args: object) -> bool:
        try:
            self._loop.call_soon_threadsafe(function, *args)
        except RuntimeError:  # the event loop is closed: there is nobody to tell
            return False
        return True


def _interrupt(thread: _Thread, call: _Call) -> None:
    with thread.lock:
        if thread.running is call:
            thread.interrupted = True
            set_exception = ctypes.pythonapi.PyThreadState_SetAsyncExc
            set_exception(ctypes.c_ulong(thread.number), ctypes.py_object(Interrupted))


def named(error: BaseException, what: str) -> Exception:
    """The error that a request ends with when a user's function raised ``error``.

    That is ``error`` itself, with a note of which function it was, where a future can hand it on; else a ``ModelError``
    that says what it was: for what ends programs, loops and generators, what cannot be written to, and what has no
    text.
    """
    if isinstance(error, Exception) and not isinstance(error, (StopIteration, StopAsyncIteration)):
        try:
            str(error)
            error.add_note(f"raised by {what}")
            return error
        except BaseException:  # noqa: S110 - it is a user's code that raises here
            pass
    stands_for = ModelError(f"{what} raised {brief(error)}\n{error_text(error)}")
    stands_for.__cause__ = error
    return stands_for
