"""Makes numpy columns of integers, with -1 for null, into one Arrow table."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from symphony_dask.engine.events import OPS
from symphony_dask.engine.start_rules import START_RULES, UNKNOWN
from symphony_dask.trace.schema import SCHEMAS, BatchOutcome, Outcome, names

#: Columns of integer arrays by name, all of one length.
Columns = Mapping[str, npt.NDArray[np.integer[Any]]]


@dataclass(frozen=True)
class Events:
    """Part of an engine's journal (``engine.events``): its events, numbered from ``first``, and their data.

    The run's clock starts at ``zero_ns``; an event without a time (0) has that of the one before, the first one
    ``before_ns``.
    """

    first: int
    zero_ns: int
    before_ns: int
    rows: npt.NDArray[Any]
    data: bytes


_OUTCOME_NAMES = {"requests": names(Outcome), "batches": names(BatchOutcome)}


def to_table(table: str, chunks: Sequence[Columns], models: Sequence[str]) -> pa.Table:
    """The rows of all ``chunks``, in order, in the schema of ``table`` ("requests" or "batches").

    ``model`` indexes ``models``, ``outcome`` is an ``Outcome`` or ``BatchOutcome`` code, and -1 in a nullable column is
    null; ``rule`` is a number of ``START_RULES``, where 0 is null too, and may be left out. Raises what numpy or Arrow
    raise on a missing column, ragged lengths, a non-integer dtype or an unknown code.
    """
    labels = {"model": models, "outcome": _OUTCOME_NAMES[table], "rule": START_RULES}
    arrays, rows = [], sum(len(chunk["model"]) for chunk in chunks)
    for field in SCHEMAS[table]:
        is_label = field.name in labels
        dtype = np.int32 if is_label else field.type.to_pandas_dtype()
        if field.name == "rule" and any("rule" not in chunk for chunk in chunks):
            values = np.full(rows, -1, dtype)
        else:
            values = np.concatenate([chunk[field.name] for chunk in chunks], dtype=dtype, casting="same_kind")
        if field.name == "rule":
            values[values == UNKNOWN] = -1
        array = pa.array(values, mask=values == -1 if field.nullable else None)
        if is_label:
            array = pa.DictionaryArray.from_arrays(array, pa.array(labels[field.name], pa.string()))
        arrays.append(array)
        # Hands the interpreter lock to the thread that serves, which would else wait for several columns (5 ms).
        time.sleep(0)
    return pa.Table.from_arrays(arrays, schema=SCHEMAS[table])


def events_table(chunks: Sequence[Events]) -> pa.Table:
    """The events table of ``chunks``, in order; raises what Arrow raises on values that do not fit."""
    ops, tables = pa.array(OPS, pa.string()), []
    for chunk in chunks:
        rows, n = chunk.rows, len(chunk.rows)
        at = np.maximum(np.maximum.accumulate(rows["time"]), chunk.before_ns) - chunk.zero_ns
        ends = np.zeros(n + 1, np.int32)
        np.cumsum(rows["data"], out=ends[1:])
        arrays = [
            pa.array(np.arange(chunk.first, chunk.first + n)),
            pa.array(at),
            pa.DictionaryArray.from_arrays(pa.array(rows["op"].astype(np.int32)), ops),
            *(pa.array(np.ascontiguousarray(rows[name])) for name in ("a", "b", "c", "d")),
            pa.Array.from_buffers(pa.binary(), n, [None, pa.py_buffer(ends), pa.py_buffer(chunk.data)]),
        ]
        tables.append(pa.Table.from_arrays(arrays, schema=SCHEMAS["events"]))
        time.sleep(0)  # as above
    return pa.concat_tables(tables)
