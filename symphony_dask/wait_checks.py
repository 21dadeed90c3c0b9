"""Refuses waits that could never end: for what an event loop answers, where that loop cannot run.

Requests, and calls to the scheduler, end in the event loop of the Dask client. It cannot run while its own thread
waits, once it is closed, and in a process that was forked from its own, where its thread is not.
"""

from __future__ import annotations

import asyncio
import os
import sys
from typing import TYPE_CHECKING, Any

from symphony_dask.errors import ConnectionLost, WouldDeadlock

if TYPE_CHECKING:
    from distributed import Client

_forks = 0


def _count_fork() -> None:
    global _forks
    _forks += 1


os.register_at_fork(after_in_child=_count_fork)

_FORKED = (
    "the Dask client belongs to the process that this one was forked from, and nothing would ever be answered here: "
    'make a new Client and Serving in this process, or start it by "spawn"'
)


class AnsweringLoop:
    """An event loop in which requests end."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._forks = _forks

    def check_process(self) -> None:
        """Raises ``ConnectionLost`` in a process that was forked since."""
        if self._forks != _forks:
            raise ConnectionLost(_FORKED)

    def check_wait(self) -> None:
        """Raises ``ConnectionLost`` or ``WouldDeadlock`` where to wait for an answer would never end."""
        self.check_process()
        if self._loop.is_closed():
            raise ConnectionLost("the event loop of the Dask client is closed: make a new Client and Serving")
        if runs_here(self._loop):
            raise WouldDeadlock(
                "this thread runs the event loop in which requests end, so to wait here would never end: await the "
                'future (answer = await model.submit(x); "async for" over as_completed), or wait in another thread '
                "(await asyncio.to_thread(model, x))"
            )
        if not self._loop.is_running():
            raise WouldDeadlock(
                "the event loop of the asynchronous Dask client does not run, so to wait here would never end: await "
                "the future in a coroutine of that loop"
            )


def runs_here(loop: asyncio.AbstractEventLoop) -> bool:
    """Whether this thread is the one that runs an event loop, and in it now."""
    try:
        return asyncio.get_running_loop() is loop
    except RuntimeError:
        return False


def check_client(client: Client) -> None:
    """Raises ``ConnectionLost`` if a Dask client can answer nothing here any more."""
    if is_closed(client):
        raise ConnectionLost("the Dask client is closed: make a new Client and Serving")
    loop = loop_of(client)
    if loop.is_closed():
        raise ConnectionLost("the event loop of the Dask client is closed: make a new Client and Serving")
    # Forking leaves nothing but the thread that forks.
    thread = getattr(loop, "_thread_id", None)
    if loop.is_running() and thread is not None and thread not in sys._current_frames():
        raise ConnectionLost(_FORKED)


def loop_of(client: Client) -> asyncio.AbstractEventLoop:
    """The asyncio event loop of a Dask client."""
    loop: Any = client.loop  # tornado's, of the asyncio kind
    return loop.asyncio_loop


def is_closed(client: Client) -> bool:
    """Whether a Dask client is closed, or about to be."""
    return client.status in ("closing", "closed")
