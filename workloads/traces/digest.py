"""Hashes what a run's tables hold: equal where the rows are, whoever wrote the files and with what.

The files' own bytes also depend on the pyarrow that wrote them.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from symphony_dask.trace import SCHEMAS
from symphony_dask.trace import folder as run_folder
from symphony_dask.trace.schema import LATER

if TYPE_CHECKING:
    import pyarrow.parquet as pq


def file_hashes(folder: str | os.PathLike[str]) -> dict[str, str]:
    """SHA-256 of every part of every table of a run folder, by file name."""
    path = run_folder.place(folder)
    parts = [part for table in SCHEMAS for part in run_folder.parts(path, table)]
    return {part.name: hashlib.sha256(part.read_bytes()).hexdigest() for part in parts}


def digest(folder: str | os.PathLike[str]) -> str:
    """SHA-256 of the rows of all tables of a run folder, in their order.

    Of each column come its name, the places of its nulls, and its values: integers as little-endian int64, strings as
    numbers in order of first appearance, with the strings. So the parts that rows are spread over do not count. Columns
    that runs of earlier releases lack count where there are any.
    """
    path = run_folder.place(folder)
    total = hashlib.sha256()
    for table, schema in SCHEMAS.items():
        parts = run_folder.parts(path, table)
        total.update(f"{table} {sum(_rows(part) for part in parts)}\n".encode())
        for f in schema:
            if f.name in LATER.get(table, ()) and not any(_has(part, f.name) for part in parts):
                continue
            total.update(f"{f.name}\n".encode())
            # A column of a part at a time, so that a run may be larger than memory.
            if pa.types.is_dictionary(f.type) or pa.types.is_string(f.type):
                _add_strings(total, parts, f.name)
            else:
                _add_integers(total, parts, f.name)
    return total.hexdigest()


def _rows(part: pq.ParquetFile) -> int:
    with run_folder.open_part(part) as file:
        return int(file.metadata.num_rows)


def _has(part: pq.ParquetFile, name: str) -> bool:
    with run_folder.open_part(part) as file:
        return name in file.schema_arrow.names


def _columns(parts: Sequence[pq.ParquetFile], name: str, kind: pa.DataType) -> Iterator[pa.Array]:
    """The column of that name, one array a part, cast to the Arrow type ``kind``."""
    for part in parts:
        with run_folder.open_part(part) as file:
            yield from file.read([name]).column(0).cast(kind).chunks


def _add_integers(total: hashlib._Hash, parts: Sequence[pq.ParquetFile], name: str) -> None:
    _add_nulls(total, [column.is_null() for column in _columns(parts, name, pa.int64())])
    for column in _columns(parts, name, pa.int64()):
        total.update(column.fill_null(0).to_numpy(zero_copy_only=False).astype("<i8").tobytes())


def _add_strings(total: hashlib._Hash, parts: Sequence[pq.ParquetFile], name: str) -> None:
    codes: dict[str, int] = {}
    missing = []
    for column in _columns(parts, name, pa.string()):
        missing.append(column.is_null())
        for text in column.unique().to_pylist():
            if text is not None and text not in codes:
                codes[text] = len(codes)
                total.update(len(text.encode()).to_bytes(8, "little") + text.encode())
    _add_nulls(total, missing)
    for column in _columns(parts, name, pa.string()):
        encoded = column.dictionary_encode()
        own = np.array([codes[text] for text in encoded.dictionary.to_pylist()], "<i8")
        indices = encoded.indices.fill_null(0).to_numpy(zero_copy_only=False)
        values = own[indices] if len(own) else np.zeros(len(indices), "<i8")
        values[column.is_null().to_numpy(zero_copy_only=False)] = 0
        total.update(values.tobytes())


def _add_nulls(total: hashlib._Hash, missing: Sequence[pq.ParquetFile]) -> None:
    flags = [flag.to_numpy(zero_copy_only=False) for flag in missing] or [np.zeros(0, bool)]
    total.update(np.packbits(np.concatenate(flags)).tobytes())
