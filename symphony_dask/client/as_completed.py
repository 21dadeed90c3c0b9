"""Yields futures as they are answered, in ``for`` and in ``async for``."""

from __future__ import annotations

import asyncio
import concurrent.futures
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from concurrent.futures import Future
from functools import partial
from typing import Any

from symphony_dask.client.future import InferenceFuture
from symphony_dask.errors import BadInput
from symphony_dask.text import shown
from symphony_dask.units import parse_duration_ns


class Completions:
    """The futures in the order of their answers; made by ``as_completed``."""

    def __init__(self, futures: list[InferenceFuture], timeout_s: float | None) -> None:
        self._futures = futures
        self._ends_s = None if timeout_s is None else time.monotonic() + timeout_s

    def __iter__(self) -> Iterator[InferenceFuture]:
        return concurrent.futures.as_completed(self._futures, self._left_s())  # type: ignore[arg-type, return-value]

    async def __aiter__(self) -> AsyncIterator[InferenceFuture]:
        loop = asyncio.get_running_loop()
        done: asyncio.Queue[InferenceFuture] = asyncio.Queue()
        for future in self._futures:
            future.add_done_callback(partial(_put, loop, done))
        for n in range(len(self._futures)):
            try:
                future = await asyncio.wait_for(done.get(), self._left_s())
            except TimeoutError:
                left, total = len(self._futures) - n, len(self._futures)
                raise TimeoutError(f"{left} (of {total}) futures unfinished") from None
            yield future

    def _left_s(self) -> float | None:
        return None if self._ends_s is None else max(self._ends_s - time.monotonic(), 0.0)


def as_completed(futures: Iterable[InferenceFuture], *, timeout: str | None = None) -> Completions:
    """``for future in as_completed(futures)``, or ``async for``: each future once it is answered, failed or cancelled.

    timeout: from now; then the loop raises ``TimeoutError``, and the requests go on. Raises ``BadInput``.
    """
    timeout_s = None if timeout is None else parse_duration_ns(timeout, "timeout") / 1e9
    given = list(futures) if isinstance(futures, Iterable) else [futures]
    wrong = [future for future in given if not isinstance(future, concurrent.futures.Future)]
    if wrong:
        raise BadInput(f"as_completed of {shown(wrong[0])}: give a list of what submit or map returned")
    return Completions(list(dict.fromkeys(given)), timeout_s)


def _put(loop: asyncio.AbstractEventLoop, done: asyncio.Queue[Any], future: Future[Any]) -> None:
    try:
        loop.call_soon_threadsafe(done.put_nowait, future)
    except RuntimeError:  # the loop was closed, so nobody iterates any more
        pass
