"""Routes a share of the requests to a name to another version than the rest: canaries."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from symphony_dask.wire.records import Records


@dataclass
class Canary:
    """Of the requests for ``number`` the share ``share``, evenly spread, goes to ``model_id``.

    By counting, not by chance: of n requests it is n * share, give or take one. seen: requests so far.
    """

    number: int
    model_id: int
    share: float
    seen: int = 0

    def chosen(self, n: int) -> npt.NDArray[np.bool_]:
        """Which of the next n requests."""
        counts = np.floor(np.arange(self.seen, self.seen + n + 1) * self.share)
        self.seen += n
        return np.diff(counts) > 0


def split(rows: Records, canaries: Iterable[Canary]) -> Records:
    """The records of a SUBMIT with those that go to a canary readdressed."""
    changed = None
    for canary in canaries:
        at = np.flatnonzero(rows["model"] == canary.number)
        at = at[canary.chosen(len(at))] if len(at) else at
        if len(at):
            changed = rows.copy() if changed is None else changed
            changed["model"][at] = canary.model_id
    if changed is None:
        return rows
    changed.setflags(write=False)  # what can be written to is another type to the compiler
    return changed
