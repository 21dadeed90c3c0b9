"""``symphony verify``: a recorded run once more through the engine, decision for decision.

The run's ``events`` table has every call that the dispatcher made to its engine, with the times it made them at. The
engine, set to the state that the first event holds, is led through the rest; what it decides must be what was decided.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import polars as pl

from symphony_dask.errors import BadInput
from symphony_dask.lane import SUBMIT_ROW
from symphony_dask.scheduling.journal import Replayer
from symphony_dask.scheduling.state import BATCH
from symphony_dask.trace import Run, open_run

#: Events read at a time.
_CHUNK = 100_000


@dataclass(frozen=True)
class Decided:
    """What one look of the engine decided: batches as (batch, model, gpu, requests' slots), and dropped slots."""

    batches: list[tuple[int, int, int, list[int]]]
    drops: list[int]


@dataclass(frozen=True)
class Difference:
    """Where a replay first strayed: the event's number and time on the run's clock."""

    event: int
    time_ns: int
    recorded: Decided
    replayed: Decided


@dataclass(frozen=True)
class Verified:
    """decisions: batches and drops that the engine was asked for again; differing: looks that decided otherwise.

    There is at most one of these, since what follows it would rest on other states.
    """

    events: int
    decisions: int
    differing: int
    first: Difference | None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def verify(run: Run | str | os.PathLike[str], on_progress: Callable[[int], None] = lambda n: None) -> Verified:
    """Replay the run's events until a decision differs. on_progress: called with the number of events done.

    Raises ``BadInput`` if the run has no events, has lost some, or another version of the engine recorded it.
    """
    run = run if isinstance(run, Run) else open_run(run)
    zero = int(run.info.get("engine_clock_ns", 0))
    replayer: Replayer | None = None
    decisions = expected = 0
    total = int(run.events.select(pl.len()).collect().item())
    if not total:
        text = "only runs recorded on a live cluster have them (serving.record, symphony replay)"
        raise BadInput(f"{str(run.folder)!r} has no events: {text}")
    for start in range(0, total, _CHUNK):
        for event, time_ns, op, a, b, c, d, data in run.events.slice(start, _CHUNK).collect().iter_rows():
            if event != expected:
                raise BadInput(f"{str(run.folder)!r} lacks events {expected} to {event - 1}: it cannot be verified")
            expected += 1
            if replayer is None:
                if op != "state":
                    raise BadInput(f"{str(run.folder)!r} begins with {op!r}, not with the engine's state")
                try:
                    replayer = Replayer(data, SUBMIT_ROW)
                except ValueError as error:
                    raise BadInput(f"{str(run.folder)!r}: {error}") from error
                continue
            found = replayer.apply(op, zero + time_ns, a, b, c, d, data)
            if found is not None:
                decisions += a + b
                if found != data:
                    replayed = _decided(found, *replayer.last)
                    first = Difference(event, time_ns, _decided(data, a, b), replayed)
                    return Verified(expected, decisions, 1, first)
        on_progress(expected)
    return Verified(expected, decisions, 0, None)


def _decided(data: bytes, n_batches: int, n_drops: int) -> Decided:
    batches = np.frombuffer(data[: n_batches * BATCH.itemsize], BATCH)
    slots = np.frombuffer(data[n_batches * BATCH.itemsize :], np.int32)
    members = slots[: len(slots) - n_drops]
    return Decided(
        [
            (int(r["batch"]), int(r["model"]), int(r["gpu"]), members[r["offset"] : r["offset"] + r["size"]].tolist())
            for r in batches
        ],
        slots[len(slots) - n_drops :].tolist(),
    )
