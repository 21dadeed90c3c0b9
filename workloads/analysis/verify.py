"""Leads the engine through a recorded run once more, decision for decision: ``symphony verify``.

The run's ``events`` table has every call that the dispatcher made to its engine, with the times it made them at. The
engine, set to the state that the first event holds, is led through the rest; what it decides must be what was decided.

A run may be damaged, or somebody else's: whatever its files hold ends as ``BadInput`` that says where.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from symphony_dask.engine.journal import Replayer
from symphony_dask.engine.state import BATCH
from symphony_dask.errors import BadInput
from symphony_dask.trace import Run, open_run, read_rows
from symphony_dask.wire.records import SUBMIT_ROW

#: Events read at a time.
_CHUNK = 100_000

_COLUMNS = ("event", "time_ns", "op", "a", "b", "c", "d", "data")


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

    Raises ``BadInput`` if the run has no events, has lost some, is damaged, or was recorded by another version of the
    engine.
    """
    run = run if isinstance(run, Run) else open_run(run)
    where = repr(str(run.folder))
    zero = int(run.info.get("engine_clock_ns", 0))
    replayer: Replayer | None = None
    decisions = expected = 0
    for event, time_ns, op, a, b, c, d, data in _events(run):
        if event != expected:
            raise BadInput(f"{where} lacks events {expected} to {event - 1}: it cannot be verified")
        expected += 1
        try:
            if replayer is None:
                if op != "state":
                    raise BadInput(f"{where} begins with {op!r:.60}, not with the engine's state")
                replayer = Replayer(data, SUBMIT_ROW)
                continue
            found = replayer.apply(op, zero + time_ns, a, b, c, d, data)
            if found is not None:
                differs = found != data or (a, b) != replayer.last
                decisions += sum(replayer.last)
                if differs:
                    first = Difference(event, time_ns, _decided(data, a, b), _decided(found, *replayer.last))
                    return Verified(expected, decisions, 1, first)
        except BadInput:
            raise
        except (ValueError, ArithmeticError, LookupError) as error:
            raise BadInput(f"{where}: event {event} ({op!r:.60}) cannot be replayed: {error}") from error
        if expected % _CHUNK == 0:
            on_progress(expected)
    if not expected:
        text = "only runs recorded on a live cluster have them (serving.record, symphony replay)"
        raise BadInput(f"{where} has no events: {text}")
    on_progress(expected)
    return Verified(expected, decisions, 0, None)


def _events(run: Run) -> Iterator[tuple[Any, ...]]:
    for rows in read_rows(run.folder, "events", _CHUNK):
        columns = [rows.column(name).to_pylist() for name in _COLUMNS]
        yield from zip(*columns, strict=True)


def _decided(data: bytes, n_batches: int, n_drops: int) -> Decided:
    """What a step wrote down; raises ``ValueError`` if it is no such thing."""
    if not 0 <= n_batches * BATCH.itemsize + 4 * n_drops <= len(data) or n_batches < 0 or n_drops < 0:
        raise ValueError(f"{n_batches} batches and {n_drops} drops do not fit into {len(data)} bytes")
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
