"""Reads a run folder with polars, lazily, while it is being written or after."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import polars as pl
import pyarrow as pa

from symphony_dask.trace import folder as run_folder
from symphony_dask.trace.rows import check_columns
from symphony_dask.trace.schema import LATER, SCHEMAS
from symphony_dask.trace.summary import Summary, summarize


@dataclass(frozen=True)
class Run:
    """One run folder; ``open_run`` makes it.

    folder: where it is.
    info: run.json as it was when the run was opened; "complete" there is false if a tool was to record more.

    Each use of a table looks at the folder again and scans the parts that are complete by then. Rows stand in the order
    in which they were recorded, which is the order of their end; times are ns since the start of the run. Raises
    ``BadInput`` where a part is not one of its table.
    """

    folder: run_folder.Place
    info: dict[str, Any] = field(repr=False)
    _checked: set[str] = field(default_factory=set, init=False, repr=False, compare=False)

    @property
    def partial(self) -> str | None:
        """Why the run is partial, None where it is whole."""
        if not self.info.get("closed", True):
            return "it is not closed: it is still written, or its writer was stopped"
        if self.info.get("complete") is False:
            return "what it records was interrupted"
        return None

    @property
    def requests(self) -> pl.LazyFrame:
        return self._table("requests")

    @property
    def batches(self) -> pl.LazyFrame:
        return self._table("batches")

    @property
    def gpus(self) -> pl.LazyFrame:
        return self._table("gpus")

    @property
    def events(self) -> pl.LazyFrame:
        return self._table("events")

    @property
    def scaling(self) -> pl.LazyFrame:
        return self._table("scaling")

    def summary(self, models: Iterable[str] | None = None) -> Summary:
        """The figures of the run as far as it is written; only of ``models`` (names, or one name) where given."""
        requests, batches = self.requests, self.batches
        if models is not None:
            wanted = pl.col("model").is_in([models] if isinstance(models, str) else list(models))
            requests, batches = requests.filter(wanted), batches.filter(wanted)
        return summarize(requests, batches)

    def _table(self, table: str) -> pl.LazyFrame:
        schema = SCHEMAS[table]
        if parts := run_folder.parts(self.folder, table):
            for part in parts:
                if part.name not in self._checked:
                    check_columns(part, table)
                    self._checked.add(part.name)
            frame = run_folder.scan(parts)
            if later := LATER.get(table):
                frame = _with_columns(frame, later)
        else:
            frame = pl.DataFrame(schema.empty_table()).lazy()
        # Plain strings compare and join with any other frame, whatever the dictionaries of the parts.
        return frame.with_columns(pl.col(f.name).cast(pl.String) for f in schema if pa.types.is_dictionary(f.type))


def _with_columns(frame: pl.LazyFrame, names: Sequence[str]) -> pl.LazyFrame:
    """The frame with these columns, null where it has none of that name."""
    present = frame.collect_schema().names()
    return frame.with_columns(pl.lit(None, pl.String).alias(name) for name in names if name not in present)


def open_run(folder: str | os.PathLike[str]) -> Run:
    """The run in ``folder``; raises ``BadInput`` if there is none or a newer symphony-dask wrote it."""
    path = run_folder.place(folder)
    return Run(path, run_folder.read_info(path))
