"""Reads the rows of a part without believing the file: a piece at a time, looked at before they are used."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from symphony_dask.errors import BadInput
from symphony_dask.trace import folder as run_folder
from symphony_dask.trace.schema import LATER, SCHEMAS

if TYPE_CHECKING:
    import pyarrow.parquet as pq


def wrong_columns(given: pa.Schema, table: str) -> list[str]:
    """What an Arrow schema lacks of that of a table, and has in another type; one clause each."""
    wrong = []
    for f in SCHEMAS[table]:
        at = given.get_field_index(f.name)
        if at < 0 and f.name in LATER.get(table, ()):
            continue
        if at < 0:
            wrong.append(f"column {f.name} is missing")
        elif _plain(given.field(at).type) != _plain(f.type):
            wrong.append(f"column {f.name} is {given.field(at).type}: it must be {_plain(f.type)}")
    return wrong


def check_columns(part: run_folder.Place, table: str) -> None:
    """Raise ``BadInput`` unless ``part``, by its footer, has the columns of ``table``."""
    with run_folder.open_part(part) as file:
        _require_columns(part, file, table)


def read_rows(folder: run_folder.Place, table: str, rows: int) -> Iterator[Any]:
    """The rows of a table, at most ``rows`` at a time, as Arrow record batches that are whole in themselves. They lack
    the columns of ``LATER`` that the run does.

    Raises ``BadInput`` where a part cannot be read, lacks columns, or has nulls where none may be.
    """
    for part in run_folder.parts(folder, table):
        try:
            with run_folder.open_part(part) as file:
                _require_columns(part, file, table)
                present = [f for f in SCHEMAS[table] if f.name in file.schema_arrow.names]
                for batch in file.iter_batches(rows, columns=[f.name for f in present]):
                    batch.validate(full=True)
                    for f in present:
                        if batch.column(f.name).null_count and not f.nullable:
                            raise BadInput(f"{str(part)!r} is damaged: column {f.name} has nulls")
                    yield batch
        except (OSError, pa.ArrowException, UnicodeDecodeError, MemoryError) as error:
            raise BadInput(f"{str(part)!r} is damaged: it cannot be read ({run_folder.short(error)})") from error


def _require_columns(part: run_folder.Place, file: pq.ParquetFile, table: str) -> None:
    if wrong := wrong_columns(file.schema_arrow, table):
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        raise BadInput(f"{str(part)!r} is no part of a table of {table}: {wrong[0]:.200}{more}")


def _plain(kind: pa.DataType) -> pa.DataType:
    """Strings are the same, whether they are encoded or large."""
    value = kind.value_type if pa.types.is_dictionary(kind) else kind
    return pa.string() if pa.types.is_large_string(value) or pa.types.is_string_view(value) else value
