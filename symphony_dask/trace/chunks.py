"""Yields the requests of a trace or run in order of arrival, a million or so at a time."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import PurePath
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from symphony_dask.errors import BadInput
from symphony_dask.text import MOST_NAME, brief, check_name, plain, shown
from symphony_dask.trace import folder as run_folder
from symphony_dask.trace.ordered import Rows, by_keys, in_order
from symphony_dask.trace.schema import SCHEMAS

#: What a trace says of a request before it is served.
ARRIVAL_COLUMNS = ("id", "client", "model", "arrival_ns", "deadline_ns", "bytes")

#: Times are at most this, ns either way (146 years), so that sums and differences of two have 64 bits.
_MOST_NS = 1 << 62

_DTYPES: dict[str, Any] = {
    f.name: np.int32 if f.name in ("client", "model") else np.int64
    for f in SCHEMAS["requests"]
    if f.name in ARRIVAL_COLUMNS
}


class Names:
    """Names by code, from 0 in order of first appearance; ``names`` grows."""

    def __init__(self, names: Iterable[str] = ()) -> None:
        self.names = list(names)
        self._codes = {name: code for code, name in enumerate(self.names)}

    def __len__(self) -> int:
        return len(self.names)

    def code(self, name: str) -> int:
        if name not in self._codes:
            self._codes[name] = len(self.names)
            self.names.append(name)
        return self._codes[name]

    def encode(self, labels: pa.Array) -> npt.NDArray[np.int32]:
        """Codes of an Arrow array of strings, plain or dictionary-encoded, that has no nulls: shape (n,)."""
        if isinstance(labels, pa.ChunkedArray):
            labels = labels.combine_chunks()
        if not pa.types.is_dictionary(labels.type):
            labels = labels.cast(pa.string()).dictionary_encode()
        own = labels.indices.to_numpy(zero_copy_only=False)
        names = labels.dictionary.cast(pa.string()).to_pylist()
        used = np.flatnonzero(np.bincount(own, minlength=len(names)))
        if any(names[i] not in self._codes for i in used):
            _, first = np.unique(own, return_index=True)
            used = own[np.sort(first)]
        codes = np.zeros(len(names), np.int32)
        for i in used:
            codes[i] = self.code(names[i])
        return codes[own]


def count_requests(path: str | os.PathLike[str]) -> int:
    """How many requests a run folder or Parquet file has now, from its footers alone; raises ``BadInput``."""
    return sum(map(run_folder.rows, _parts(path)))


def arrival_chunks(
    path: str | os.PathLike[str],
    names: Names,
    columns: Sequence[str] = ARRIVAL_COLUMNS,
    on_progress: Callable[[int], None] | None = None,
) -> Iterator[Rows]:
    """The requests in ``path``, a run folder or one Parquet file, by arrival, then id, with ``columns``.

    ``model`` holds codes of ``names``, which grows; other columns are filled as ``read_trace`` fills
    them, but missing ids count in the order of the file. Where the
    parts do not follow each other in time, as those of a recorded run, rows are sorted on disk (``ordered``).
    on_progress: is told how many rows were read. What arrived before a recorded run began is left out. A single file
    may have other columns, which are left out, and no ``model``: its requests are then of one, named after the file.

    Raises ``BadInput`` if there is no such path or it holds something else, when the first chunk is asked for.
    """
    wanted = [name for name in ARRIVAL_COLUMNS if name in (*columns, "id", "arrival_ns")]
    parts = _parts(path)
    alone = name_of_file(run_folder.place(path)) if run_folder.is_file(run_folder.place(path)) else None
    chunks = _stored(parts, names, wanted, on_progress, is_recorded(path), alone)
    for rows in map(by_keys, chunks) if _follow(parts, alone) else in_order(chunks):
        yield {name: rows[name] for name in columns}


def is_recorded(path: str | os.PathLike[str]) -> bool:
    """Whether this is a run that was recorded as it went on, and so may have begun under traffic."""
    source = run_folder.place(path)
    return not run_folder.is_file(source) and run_folder.read_info(source).get("clock") == "monotonic"


def _parts(path: str | os.PathLike[str]) -> list[Any]:
    source = run_folder.place(path)
    if run_folder.is_file(source):
        return [source]
    run_folder.read_info(source)
    return run_folder.parts(source, "requests")


def name_of_file(path: run_folder.Place) -> str:
    """The model of the requests in a file that tells none."""
    return plain(PurePath(path.name).stem, MOST_NAME).replace("\n", " ") or "trace"


def _follow(parts: Sequence[Any], alone: str | None) -> bool:
    """Whether no row group has an arrival before the latest one of those before it, as far as the footers tell."""
    latest = None
    for part in parts:
        with run_folder.open_part(part) as file:
            check_schema(file.schema_arrow, str(part), foreign=alone is not None)
            at = file.schema_arrow.get_field_index("arrival_ns")
            for group in range(file.metadata.num_row_groups if at >= 0 else 0):
                found = file.metadata.row_group(group).column(at).statistics
                if found is None or not found.has_min_max or (latest is not None and found.min < latest):
                    return False
                latest = found.max
    return True


def _stored(
    parts: Sequence[Any],
    names: Names,
    columns: Sequence[str],
    on_progress: Callable[[int], None] | None,
    recorded: bool,
    alone: str | None,
) -> Iterator[Rows]:
    """Chunks in the order of the files; alone: of a single file, the model of its requests if it tells none."""
    done = 0
    for part in parts:
        with read_of(str(part)), run_folder.open_part(part) as file:
            check_schema(file.schema_arrow, str(part), foreign=alone is not None)
            present = [name for name in columns if name in file.schema_arrow.names]
            # Groups are read one by one, for a batch must not reach over two of them to be in order.
            for group in range(file.metadata.num_row_groups):
                for batch in file.iter_batches(run_folder.ROW_GROUP, [group], present):
                    if recorded:
                        batch = batch.filter(pc.greater_equal(batch.column("arrival_ns"), 0))
                    yield _rows(batch, names, columns, str(part), done, alone)
                    done += batch.num_rows
                    if on_progress is not None:
                        on_progress(done)


@contextmanager
def read_of(what: str) -> Iterator[None]:
    """Have what Arrow has against a file be ours, in one line."""
    try:
        yield
    except BadInput:
        raise
    except (OSError, pa.ArrowException, UnicodeDecodeError) as exc:
        raise BadInput(f"{what} cannot be read ({' '.join(brief(exc).split())}): is the file damaged?") from exc


def _rows(batch: pa.RecordBatch, names: Names, columns: Sequence[str], what: str, done: int, alone: str | None) -> Rows:
    given = {name: batch.column(name) for name in batch.schema.names}
    for name in ("model", "arrival_ns", "id"):
        if name in given and given[name].null_count:
            raise BadInput(f"{what} has rows whose {name} is null: give every row one, or leave those rows out")
    rows: Rows = {}
    n = batch.num_rows
    if "arrival_ns" in given:
        rows["arrival_ns"] = _ints(given["arrival_ns"], "arrival_ns", what)
        if n and rows["arrival_ns"].min() < 0:
            raise BadInput(f"{what} has rows whose arrival_ns is below 0: drop or shift them")
    for name in columns:
        if name == "model" and name not in given:
            assert alone is not None
            rows[name] = np.full(n, names.code(alone), np.int32)
        elif name == "model":
            known = len(names)
            rows[name] = names.encode(given[name])
            if alone is not None:  # of a run, they were checked when they were given
                for new in names.names[known:]:
                    check_name(f"model name in {what}", new)
        elif name not in given or given[name].null_count == n:
            filled = {"id": np.arange(done, done + n), "deadline_ns": rows["arrival_ns"]}
            rows[name] = filled.get(name, np.zeros(n, _DTYPES[name]))
        elif name == "deadline_ns" and given[name].null_count:
            values = _ints(given[name].fill_null(-1), name, what)
            rows[name] = np.where(given[name].is_null().to_numpy(zero_copy_only=False), rows["arrival_ns"], values)
        elif name != "arrival_ns":
            rows[name] = _ints(given[name].fill_null(0) if given[name].null_count else given[name], name, what)
    return rows


def _ints(values: pa.Array, name: str, what: str) -> npt.NDArray[Any]:
    try:
        kind = pa.int32() if _DTYPES[name] is np.int32 else pa.int64()
        found = values.cast(kind).to_numpy(zero_copy_only=False)
    except pa.ArrowInvalid as exc:
        raise BadInput(f"{what} cannot be used (column {name}: {exc})") from exc
    if len(found) and not -_MOST_NS <= found.min() <= found.max() <= _MOST_NS:
        worst = max(int(found.min()), int(found.max()), key=abs)
        raise BadInput(f"column {name} of {what} has {worst}: the most is 2**62; leave such rows out")
    return found


def check_schema(schema: pa.Schema, what: str, *, foreign: bool = False) -> None:
    """Raise ``BadInput`` unless an Arrow ``schema`` is one of requests, as ``write_trace`` takes them.

    foreign: it is of a file of who knows whom, which needs ``arrival_ns`` only, and may have other columns.
    """
    known = SCHEMAS["requests"]
    least = "arrival_ns (int, ns)" if foreign else "model (string) and arrival_ns (int)"
    remedy = f"it needs {least}, and may have {', '.join(known.names)}"
    unknown = [name for name in schema.names if name not in known.names]
    missing = [name for name in ("model", "arrival_ns") if name not in schema.names]
    if foreign and "arrival_ns" in missing:
        have = shown(", ".join(schema.names), 300)
        raise BadInput(
            f"{what} has no column arrival_ns: it has {have}; symphony trace import parquet can name another"
        )
    if not foreign and (unknown or missing):
        raise BadInput(f"{what} has unknown columns {unknown} and lacks {missing}: {remedy}")
    for given in schema:
        if given.name in unknown:
            continue
        if schema.names.count(given.name) > 1:
            raise BadInput(f"{what} has {schema.names.count(given.name)} columns {given.name}: rename all but one")
        wanted = known.field(given.name).type
        label = pa.types.is_dictionary(wanted) or pa.types.is_string(wanted)
        number = pa.types.is_integer(given.type) or pa.types.is_null(given.type)
        if label and not (number or _is_text(given.type)):
            raise BadInput(f"column {given.name} of {what} is {given.type}: it must be text; {remedy}")
        if not label and not number:
            raise BadInput(f"column {given.name} of {what} is {given.type}: it must be an integer; {remedy}")


def _is_text(kind: pa.DataType) -> bool:
    value = kind.value_type if pa.types.is_dictionary(kind) else kind
    text = pa.types.is_string(value) or pa.types.is_large_string(value) or pa.types.is_string_view(value)
    return bool(text or (pa.types.is_dictionary(kind) and pa.types.is_integer(value)))
