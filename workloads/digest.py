"""What a run's tables hold, as one hash: equal where the rows are, whoever wrote the files and with what.

The files' own bytes also depend on the pyarrow that wrote them.
"""

from __future__ import annotations

import hashlib
import os
from typing import Any

import numpy as np
import pyarrow as pa

from symphony_dask.trace import SCHEMAS
from symphony_dask.trace import folder as run_folder


def file_hashes(folder: str | os.PathLike[str]) -> dict[str, str]:
    """SHA-256 of every part of every table of a run folder, by file name."""
    path = run_folder.place(folder)
    parts = [part for table in SCHEMAS for part in run_folder.parts(path, table)]
    return {part.name: hashlib.sha256(part.read_bytes()).hexdigest() for part in parts}


def digest(folder: str | os.PathLike[str]) -> str:
    """SHA-256 of the rows of all tables of a run folder, in their order.

    Of each column come its name, the places of its nulls, and its values: integers as little-endian int64, strings as
    numbers in order of first appearance, with the strings. So the parts that rows are spread over do not count.
    """
    path = run_folder.place(folder)
    total = hashlib.sha256()
    for table, schema in SCHEMAS.items():
        # Plain strings in place of dictionaries, whose order is the writer's.
        labels = {f.name: pa.types.is_dictionary(f.type) for f in schema}
        plain = pa.schema([(f.name, pa.string() if labels[f.name] else f.type) for f in schema])
        parts = [
            run_folder.open_part(part).read().select(plain.names).cast(plain) for part in run_folder.parts(path, table)
        ]
        rows = pa.concat_tables(parts) if parts else plain.empty_table()
        total.update(f"{table} {rows.num_rows}\n".encode())
        for name in plain.names:
            total.update(f"{name}\n".encode())
            chunks = rows.column(name).chunks
            _add(total, pa.concat_arrays(chunks) if chunks else pa.array([], plain.field(name).type))
    return total.hexdigest()


def _add(total: Any, column: Any) -> None:
    if pa.types.is_string(column.type):
        encoded = column.dictionary_encode()
        for text in encoded.dictionary.to_pylist():
            total.update(len(text.encode()).to_bytes(8, "little") + text.encode())
        column = encoded.indices
    missing = column.is_null().to_numpy(zero_copy_only=False)
    total.update(np.packbits(missing).tobytes())
    total.update(column.fill_null(0).to_numpy(zero_copy_only=False).astype("<i8").tobytes())
