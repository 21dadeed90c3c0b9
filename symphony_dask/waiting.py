"""Where requests wait while no GPU serves: frames as they came, until one does or their time is up.

Outside the engine, whose windows would open only when the longest wait is over.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass
class Waiting:
    """A SUBMIT that waits: who sent it, its records (``lane.SUBMIT_ROW``), its payloads, and since when (ns)."""

    connection: Any
    rows: npt.NDArray[Any]
    blob: memoryview
    since_ns: int

    @property
    def whole(self) -> bool:
        """Whether records and payloads fit each other."""
        return bool((self.rows["bytes"] >= 0).all()) and int(self._inline().sum()) == len(self.blob)

    def aged(self, now_ns: int) -> npt.NDArray[Any]:
        """Its records, older by the time that they waited."""
        rows = self.rows.copy()
        rows["age"] = np.maximum(rows["age"], 0) + (now_ns - self.since_ns)
        return rows

    def frame(self, now_ns: int) -> bytes:
        """``aged``, as it would have come."""
        return self.aged(now_ns).tobytes()

    def only(self, chosen: npt.NDArray[np.bool_]) -> Waiting:
        """Some of its requests."""
        sizes = self._inline()
        ends = np.cumsum(sizes)
        parts = [self.blob[e - n : e] for e, n in zip(ends[chosen].tolist(), sizes[chosen].tolist(), strict=True)]
        return Waiting(self.connection, self.rows[chosen], memoryview(b"".join(parts)), self.since_ns)

    def _inline(self) -> npt.NDArray[np.int64]:
        sizes: npt.NDArray[np.int64] = np.where(self.rows["held"] == 0, self.rows["bytes"], 0)
        return sizes


class WaitingRoom:
    """Requests wait here for ``limit_ns`` at most, 0: none does; no more than ``most`` together."""

    def __init__(self, limit_ns: int, most: int) -> None:
        self._limit_ns = limit_ns
        self._most = most
        self._waiting: list[Waiting] = []
        #: Requests that wait.
        self.n = 0

    def take(self, waiting: Waiting) -> bool:
        """Let a frame wait; False where it cannot."""
        if not self._limit_ns or self.n + len(waiting.rows) > self._most or not waiting.whole:
            return False
        self._waiting.append(waiting)
        self.n += len(waiting.rows)
        return True

    def empty(self) -> list[Waiting]:
        """All that wait, who then wait no more, in order of arrival."""
        found = self._waiting
        self._keep([])
        return found

    def overdue(self, now_ns: int) -> list[Waiting]:
        """Those whose time is up, who then wait no more."""
        found = [w for w in self._waiting if now_ns - w.since_ns >= self._limit_ns]
        if found:
            self._keep([w for w in self._waiting if now_ns - w.since_ns < self._limit_ns])
        return found

    def leave(self, connection: Any) -> list[Waiting]:
        """A client is gone; returns what it waited for."""
        found = [w for w in self._waiting if w.connection is connection]
        if found:
            self._keep([w for w in self._waiting if w.connection is not connection])
        return found

    def withdraw(self, client: Any, ids: npt.NDArray[np.int64]) -> list[Waiting]:
        """A client wants some of its requests no more; returns those that waited."""
        kept, found = [], []
        for waiting in self._waiting:
            gone = np.isin(waiting.rows["id"], ids) if waiting.connection.peer is client else np.zeros(1, np.bool_)
            if not gone.any():
                kept.append(waiting)
                continue
            found.append(waiting.only(gone))
            if not gone.all():
                kept.append(waiting.only(~gone))
        self._keep(kept)
        return found

    def _keep(self, waiting: list[Waiting]) -> None:
        self._waiting = waiting
        self.n = sum(len(w.rows) for w in waiting)
