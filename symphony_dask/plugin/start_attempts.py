"""Starts beside Dask: tries again what fails, and takes nobody along.

A failure of ours costs serving, and never a scheduler or a worker of Dask's: it is logged, whoever asks is told, and
after a wait that doubles it is tried again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator

from symphony_dask.text import brief
from symphony_dask.units import NS_PER_S, format_duration

logger = logging.getLogger(__name__)

#: The first and the longest wait between two attempts, s.
_FIRST_WAIT_S, _LONGEST_WAIT_S = 1.0, 60.0


def waits_s() -> Iterator[float]:
    """How long to wait after each failed attempt."""
    wait_s = _FIRST_WAIT_S
    while True:
        yield wait_s
        wait_s = min(2 * wait_s, _LONGEST_WAIT_S)


class Attempts:
    """Awaits ``attempt()`` anew until it does not raise.

    what: what failed then, for the log. why: why the last attempt failed, "" before one did and once one has worked.
    """

    def __init__(self, attempt: Callable[[], Awaitable[None]], what: str) -> None:
        self.why = ""
        self._attempt, self._what = attempt, what
        self._first = asyncio.Event()
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def outcome(self) -> str:
        """``why``, as soon as one attempt has ended."""
        await self._first.wait()
        return self.why

    def stop(self) -> None:
        self._task.cancel()

    async def _run(self) -> None:
        for wait_s in waits_s():
            try:
                await self._attempt()
            except Exception as error:
                said, self.why = self.why, brief(error)
                again = f"tried again in {format_duration(round(wait_s * NS_PER_S))}"
                # Where it comes from is of interest once.
                logger.error("%s: %s; %s", self._what, self.why, again, exc_info=None if said == self.why else error)
            else:
                self.why = ""
            self._first.set()
            if not self.why:
                return
            await asyncio.sleep(wait_s)
