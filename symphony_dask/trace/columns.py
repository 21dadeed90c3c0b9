"""Numpy columns of integers, with -1 for null, as one Arrow table."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from symphony_dask.trace.schema import SCHEMAS, BatchOutcome, Outcome, names

#: Columns of integer arrays by name, all of one length.
Columns = Mapping[str, npt.NDArray[np.integer[Any]]]

#: A row of the events table: event, time_ns, op, a, b, c, d, data.
EventRow = tuple[int, int, str, int, int, int, int, bytes]

_OUTCOME_NAMES = {"requests": names(Outcome), "batches": names(BatchOutcome)}


def to_table(table: str, chunks: Sequence[Columns], models: Sequence[str]) -> Any:
    """The rows of all ``chunks``, in order, in the schema of ``table`` ("requests" or "batches").

    ``model`` indexes ``models``, ``outcome`` is an ``Outcome`` or ``BatchOutcome`` code, and -1 in a nullable column is
    null. Raises what numpy or Arrow raise on a missing column, ragged lengths, a non-integer dtype or an unknown code.
    """
    labels = {"model": models, "outcome": _OUTCOME_NAMES[table]}
    arrays = []
    for field in SCHEMAS[table]:
        is_label = field.name in labels
        dtype = np.int32 if is_label else field.type.to_pandas_dtype()
        values = np.concatenate([chunk[field.name] for chunk in chunks], dtype=dtype, casting="same_kind")
        array = pa.array(values, mask=values == -1 if field.nullable else None)
        if is_label:
            array = pa.DictionaryArray.from_arrays(array, pa.array(labels[field.name], pa.string()))
        arrays.append(array)
        # Hands the interpreter lock to the thread that serves, which would else wait for several columns (5 ms).
        time.sleep(0)
    return pa.Table.from_arrays(arrays, schema=SCHEMAS[table])


def events_table(rows: Sequence[EventRow]) -> Any:
    """The events table of ``rows``; raises what Arrow raises on values that do not fit."""
    arrays = []
    for field, values in zip(SCHEMAS["events"], zip(*rows, strict=True), strict=True):
        if field.name == "op":
            arrays.append(pa.array(values, pa.string()).dictionary_encode())
        else:
            arrays.append(pa.array(values, field.type))
        time.sleep(0)  # as above
    return pa.Table.from_arrays(arrays, schema=SCHEMAS["events"])
