"""Defines the records that frames carry, one for each request, and writes and reads columns of them.

A record is what one request takes in a frame: so a request costs no object of its own. Records and columns are raw
little-endian bytes in a field of the header, and arrays on both ends, read-only so that a message does not change.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from symphony_dask.errors import BadInput

Records = npt.NDArray[np.void]
Column = npt.NDArray[np.int64]

#: A request. slo: ns, 0 for the model's; age: ns since the client took it; held: the client keeps the payload.
SUBMIT_ROW = np.dtype(
    [
        ("id", "<i8"),
        ("slo", "<i8"),
        ("age", "<i8"),
        ("bytes", "<i8"),
        ("model", "<i4"),
        ("priority", "i1"),
        ("held", "i1"),
    ],
    align=True,
)

#: A request of a batch. held: its payload comes from the client.
EXECUTE_ROW = np.dtype([("id", "<i8"), ("bytes", "<i8"), ("client", "<i4"), ("held", "i1")], align=True)

#: Its answer. link: the number of the connection that it left on, -1: it is in the blob.
DONE_ROW = np.dtype([("bytes", "<i8"), ("link", "<i4")], align=True)

#: How a request ended. outcome: a ``trace.Outcome``.
RESULT_ROW = np.dtype([("id", "<i8"), ("bytes", "<i8"), ("link", "<i4"), ("outcome", "i1")], align=True)

_COLUMN = np.dtype("<i8")

#: A column of nothing.
NO_COLUMN: Column = np.empty(0, _COLUMN)


def make_records(dtype: np.dtype[Any], n: int, **fields: object) -> Records:
    """n records of a message; fields not given are 0."""
    made = np.zeros(n, dtype)
    for name, values in fields.items():
        made[name] = values
    made.setflags(write=False)
    return made


def make_column(values: object) -> Column:
    """A column of a message; ``values`` are whole numbers."""
    return np.asarray(values, _COLUMN)


def read_records(data: object, dtype: np.dtype[Any]) -> Records:
    """The records in a field; raises ``BadInput`` if its bytes do not make whole ones."""
    if type(data) is not bytes:
        raise BadInput(f"lane records are a {type(data).__name__}: they must be bytes of {dtype.names}")
    try:
        return np.frombuffer(data, dtype)
    except ValueError as error:
        raise BadInput(f"lane records cannot be read as {dtype.names}: {error}") from None


def read_column(data: object) -> Column:
    """The column in a field; raises ``BadInput`` if its bytes do not make whole entries."""
    if type(data) is not bytes:
        raise BadInput(f"lane column is a {type(data).__name__}: it must be bytes of int64")
    if not data:
        return NO_COLUMN
    try:
        return np.frombuffer(data, _COLUMN)
    except ValueError as error:
        raise BadInput(f"lane column cannot be read as int64: {error}") from None
