"""Queues requests that arrive while no GPU is up, until the first one is (scale from zero)."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

from symphony_dask.dispatcher.sessions import Client, ClientEnd
from symphony_dask.wire.records import Records


class Frame(NamedTuple):
    """A SUBMIT as it came."""

    came_ns: int
    connection: ClientEnd
    rows: Records
    blob: memoryview


class Waiting:
    """Keeps SUBMIT frames as they are, so that they can come once more when there is a GPU.

    limit_ns: for how long; 0: nothing is kept. most: requests that are kept at once.
    """

    def __init__(self, limit_ns: int, most: int) -> None:
        self.limit_ns, self._most = limit_ns, most
        self._frames: list[Frame] = []
        #: Requests that wait, by the model's number on the lane.
        self.counts: Counter[int] = Counter()

    def keep(self, now: int, connection: ClientEnd, rows: Records, blob: memoryview) -> bool:
        """Whether the frame waits now; else it is to be refused, or is malformed."""
        if not self.limit_ns:
            return False
        models = rows["model"].tolist()
        if self.counts.total() + len(models) > self._most:
            return False
        # The blob is a part of all that was read with it, which would be kept too.
        self._frames.append(Frame(now, connection, rows, memoryview(bytes(blob))))
        self.counts.update(models)
        return True

    def take(self, before_ns: int | None = None) -> list[Frame]:
        """Those that wait no longer: all, or those that came so early, which are to be refused."""
        kept = [] if before_ns is None else [f for f in self._frames if f.came_ns >= before_ns - self.limit_ns]
        taken = self._frames[: len(self._frames) - len(kept)]
        self._set(kept)
        return taken

    def forget(self, client: Client) -> None:
        """A client is gone."""
        self._set([frame for frame in self._frames if frame.connection.peer is not client])

    def _set(self, frames: list[Frame]) -> None:
        if len(frames) != len(self._frames):
            self._frames = frames
            models = [frame.rows["model"].tolist() for frame in frames]
            self.counts = Counter(model for of_frame in models for model in of_frame)
