"""Checks whether a run folder keeps the rules of its format (docs/trace-format.md), in bounded memory."""

from __future__ import annotations

import os
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from symphony_dask.engine.start_rules import START_RULES
from symphony_dask.errors import BadInput
from symphony_dask.trace import folder as run_folder
from symphony_dask.trace.rows import wrong_columns
from symphony_dask.trace.schema import GPU_EVENTS, SCHEMAS, BatchOutcome, Outcome, names

_LABELS = {
    ("requests", "outcome"): names(Outcome),
    ("batches", "outcome"): names(BatchOutcome),
    ("batches", "rule"): list(START_RULES[1:]),
    ("gpus", "event"): list(GPU_EVENTS),
}


def problems(path: str | os.PathLike[str], on_progress: Callable[[int], None] | None = None) -> list[str]:
    """What is wrong with the run folder at ``path``, one sentence each; none where nothing is.

    Looked at: run.json; that every part can be read and has the columns and types of its table; nulls where none may
    be; labels; that requests arrive from 0 on (a recorded run may have begun under traffic) and before their deadline,
    have an id each, and stand in order of arrival in an imported trace; that work ends after it starts; and that the
    counts of a closed run are those of its parts.
    on_progress: is told how many rows were read.

    Raises ``BadInput`` if there is no run folder, or this version cannot read it.
    """
    folder = run_folder.place(path)
    info = run_folder.read_info(folder)
    found: list[str] = []
    counts: dict[str, int] = {}
    done = 0
    for table in SCHEMAS:
        checked = _Table(table, info.get("clock"))
        for part in run_folder.parts(folder, table):
            try:
                with run_folder.open_part(part) as file:
                    wrong = wrong_columns(file.schema_arrow, table)
                    for batch in () if wrong else file.iter_batches(run_folder.ROW_GROUP):
                        wrong += checked.check(batch)
                        done += batch.num_rows
                        if on_progress is not None:
                            on_progress(done)
            except (BadInput, OSError, pa.ArrowException) as exc:
                wrong = [f"it cannot be read ({exc})"]
            found += [f"{part.name}: {text}" for text in dict.fromkeys(wrong)]
        found += checked.end()
        counts[table] = checked.rows
    if info.get("closed") and isinstance(info.get("counts"), dict):
        for table, rows in info["counts"].items():
            if rows != counts.get(table, 0):
                found.append(f"run.json counts {rows} {table}, and the parts have {counts.get(table, 0)}")
    return found


class _Table:
    def __init__(self, table: str, clock: object) -> None:
        self.table = table
        self.ordered = clock == "imported"
        #: A recording that began under traffic has what arrived before.
        self.from_zero = clock != "monotonic"
        self.rows = 0
        self._last_ns = 0
        self._ids: list[Any] = []

    def check(self, batch: pa.RecordBatch) -> list[str]:
        """What is wrong with the next rows of the table."""
        wrong = []
        self.rows += batch.num_rows
        for f in SCHEMAS[self.table]:
            if f.name not in batch.schema.names:  # one that came later
                continue
            column = batch.column(f.name)
            if column.null_count and not f.nullable:
                wrong.append(f"column {f.name} has nulls")
            allowed = _LABELS.get((self.table, f.name))
            if allowed is not None:
                unknown = set(pc.unique(column.cast(pa.string())).to_pylist()) - {None, *allowed}
                wrong += [f"{f.name} {text!r} is unknown: it must be one of {', '.join(allowed)}" for text in unknown]
        if self.table in ("requests", "batches") and _any(pc.less(batch.column("end_ns"), batch.column("start_ns"))):
            wrong.append("end_ns is before start_ns in some rows")
        if self.table == "requests" and not wrong and batch.num_rows:
            arrivals = batch.column("arrival_ns").to_numpy()
            if self.from_zero and arrivals.min() < 0:
                wrong.append("arrival_ns is below 0 in some rows")
            if _any(pc.less(batch.column("deadline_ns"), batch.column("arrival_ns"))):
                wrong.append("deadline_ns is before arrival_ns in some rows")
            if self.ordered and (arrivals[0] < self._last_ns or (np.diff(arrivals) < 0).any()):
                wrong.append("rows of an imported trace are not in order of arrival")
            self._last_ns = int(arrivals[-1])
            ids = batch.column("id").to_numpy()
            # A range of successive ids is kept as its ends: an imported trace has one for each batch.
            run = len(ids) == ids[-1] - ids[0] + 1 and (np.diff(ids) == 1).all()
            self._ids.append(range(int(ids[0]), int(ids[-1]) + 1) if run else ids)
        return wrong

    def end(self) -> list[str]:
        """What is wrong with all rows together."""
        ranges = sorted((ids for ids in self._ids if isinstance(ids, range)), key=lambda ids: ids.start)
        twice = any(a.stop > b.start for a, b in pairwise(ranges))
        others = [ids for ids in self._ids if not isinstance(ids, range)]
        if others:
            loose = np.sort(np.concatenate(others))
            twice = twice or bool((np.diff(loose) == 0).any())
            for ids in ranges:
                twice = twice or bool(np.searchsorted(loose, ids.start) < np.searchsorted(loose, ids.stop))
        return ["requests: some ids occur twice"] if twice else []


def _any(mask: pa.Array) -> bool:
    return bool(pc.any(mask).as_py())
