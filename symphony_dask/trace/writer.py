"""Writes a trace that was not served, part by part, from chunks in order of arrival."""

from __future__ import annotations

import os
from collections.abc import Sequence
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa

from symphony_dask.errors import BadInput
from symphony_dask.trace import folder as run_folder
from symphony_dask.trace.ordered import Rows, concatenated, taken
from symphony_dask.trace.schema import SCHEMA_VERSION, SCHEMAS


class TraceWriter:
    """Writes requests into a new run folder; a context manager. After an error it leaves the run unclosed, or
    none if nothing was written yet.

    info: goes into run.json as it is, such as the source and its licence; ``started_at`` is null unless given.
    part_rows: rows of each part. The same rows give the same bytes, however they are spread over chunks.

    Raises ``BadInput`` if the folder holds a run or cannot be used, or ``info`` is not plain.
    """

    def __init__(
        self, folder: str | os.PathLike[str], info: dict[str, Any] | None = None, part_rows: int = run_folder.ROW_GROUP
    ) -> None:
        self.folder = run_folder.place(folder)
        self.part_rows = part_rows
        #: Rows given so far.
        self.rows = 0
        self._info: dict[str, Any] = {
            "schema_version": SCHEMA_VERSION,
            "started_at": None,
            "clock": "imported",
            "software": run_folder.software(),
            **run_folder.plain(info or {}),
        }
        self._buffered: list[Rows] = []
        self._buffered_rows = 0
        self._written = 0
        self._last_ns = 0
        run_folder.create(self.folder)

    def write(self, rows: Rows, names: Sequence[str]) -> None:
        """Add ``rows``: ``arrival_ns``, which never falls, over all calls, and ``model``, an index of ``names``.

        Optional are ``id`` (by default the number of the row), ``client``, ``bytes`` (0) and ``deadline_ns`` (the
        arrival). ``names`` may be longer in later calls. Raises ``BadInput`` when an arrival falls or is below 0.
        """
        arrivals = rows["arrival_ns"]
        n = len(arrivals)
        if not n:
            return
        if arrivals[0] < self._last_ns or (np.diff(arrivals) < 0).any():
            raise BadInput(f"arrivals fall after {self._last_ns} ns, or are below 0: give them in order, from 0 on")
        self._last_ns = int(arrivals[-1])
        whole: Rows = {
            "id": rows["id"] if "id" in rows else np.arange(self.rows, self.rows + n),
            "client": rows["client"] if "client" in rows else np.zeros(n, np.int32),
            "model": rows["model"],
            "arrival_ns": arrivals,
            "deadline_ns": rows.get("deadline_ns", arrivals),
            "bytes": rows["bytes"] if "bytes" in rows else np.zeros(n, np.int64),
        }
        self.rows += n
        self._buffered.append(whole)
        self._buffered_rows += n
        while self._buffered_rows >= self.part_rows:
            self._write_part(self.part_rows, names)
        self._names = names

    def update_info(self, **keys: object) -> None:
        """Set keys of run.json, which is written on closing."""
        self._info |= run_folder.plain(keys)

    def close(self) -> None:
        """Write what is left, and run.json as that of a closed run."""
        if self._buffered_rows:
            self._write_part(self._buffered_rows, self._names)
        counts = {**dict.fromkeys(SCHEMAS, 0), "requests": self.rows}
        run_folder.write_info(self.folder, {**self._info, "closed": True, "counts": counts, "lost_rows": 0})

    def __enter__(self) -> TraceWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        elif not self._written:
            run_folder.release(self.folder)
        elif isinstance(error, KeyboardInterrupt):
            rows = sum(run_folder.rows(part) for part in run_folder.parts(self.folder, "requests"))
            error.add_note(f"{self.folder} holds {rows:,} requests and is partial, and its run.json says so")

    def _write_part(self, rows: int, names: Sequence[str]) -> None:
        buffered = concatenated(self._buffered)
        part, rest = taken(buffered, slice(0, rows)), taken(buffered, slice(rows, None))
        self._buffered, self._buffered_rows = (
            ([rest], self._buffered_rows - rows) if self._buffered_rows > rows else ([], 0)
        )
        self._written += 1
        run_folder.write_part(self.folder, "requests", self._written, _table(part, names))


def _table(rows: Rows, names: Sequence[str]) -> pa.Table:
    """``rows`` in the schema of the requests table, what serving fills being null."""
    n = len(rows["model"])
    # Only the names that occur, so that a part of a trace of many models stays small.
    used = np.flatnonzero(np.bincount(rows["model"], minlength=len(names)))
    codes = np.zeros(len(names), np.int32)
    codes[used] = np.arange(len(used))
    labels = pa.DictionaryArray.from_arrays(
        pa.array(codes[rows["model"]]), pa.array([names[i] for i in used.tolist()], pa.string())
    )
    arrays = [
        labels
        if f.name == "model"
        else pa.array(rows[f.name], f.type)
        if f.name in rows
        else pa.DictionaryArray.from_arrays(pa.nulls(n, pa.int32()), pa.array([], pa.string()))
        if pa.types.is_dictionary(f.type)
        else pa.nulls(n, f.type)
        for f in SCHEMAS["requests"]
    ]
    return pa.Table.from_arrays(arrays, schema=SCHEMAS["requests"])
