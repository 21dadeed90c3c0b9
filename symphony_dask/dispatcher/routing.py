"""Routes a share of the requests to a name to another version than the rest: canaries."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from symphony_dask.wire.connection import SUBMIT_ROW, read_rows


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


def split(rows: npt.NDArray[Any], canaries: Iterable[Canary]) -> npt.NDArray[Any]:
    """The records of a SUBMIT with those that go to a canary readdressed."""
    changed = None
    for canary in canaries:
        at = np.flatnonzero(rows["model"] == canary.number)
        at = at[canary.chosen(len(at))] if len(at) else at
        if len(at):
            changed = rows.copy() if changed is None else changed
            changed["model"][at] = canary.model_id
    # Read again, because what is written to is another type to the compiler.
    return rows if changed is None else read_rows(changed.tobytes(), SUBMIT_ROW)
