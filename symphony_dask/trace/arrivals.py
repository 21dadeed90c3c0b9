"""Reads request arrivals as one frame, from a run or a Parquet file, and writes them as a trace not yet served."""

from __future__ import annotations

import os
from typing import Any

import polars as pl
import polars.exceptions

from symphony_dask.errors import BadInput
from symphony_dask.text import brief
from symphony_dask.trace import folder as run_folder
from symphony_dask.trace.chunks import ARRIVAL_COLUMNS, check_schema, is_recorded, name_of_file, read_of
from symphony_dask.trace.reader import open_run
from symphony_dask.trace.schema import SCHEMAS
from symphony_dask.trace.writer import TraceWriter

_DTYPES = {
    f.name: pl.String if f.name in ("model", "outcome") else pl.Int32 if f.type.bit_width == 32 else pl.Int64
    for f in SCHEMAS["requests"]
}
_SERVING = [f.name for f in SCHEMAS["requests"] if f.nullable]


def write_trace(folder: str | os.PathLike[str], frame: pl.DataFrame, info: dict[str, Any] | None = None) -> None:
    """Write ``frame`` as a run that has not been served: outcome, batch, gpu and the times of serving are null.

    frame: ``model`` (string) and ``arrival_ns`` (int, at least 0), optionally ``id``, ``client``, ``deadline_ns`` and
        ``bytes``. Where they are missing or null: ids count from 0 in order of arrival, client and bytes are 0, and
        ``deadline_ns`` is ``arrival_ns``, which means that no SLO is known. Columns of serving are left out, so the
        requests of a served run can be written again as a trace.
    info: goes into run.json as it is, such as the source and its licence, or ``started_at``, which is null otherwise.

    The same frame gives the same bytes. Raises ``BadInput`` if the folder holds a run or the frame cannot be used.
    """
    rows = _complete(frame.drop(_SERVING, strict=False), "the frame")
    names = rows["model"].unique(maintain_order=True)
    codes = rows["model"].cast(pl.Enum(names)).to_physical().cast(pl.Int32)
    columns = {name: rows[name].to_numpy() for name in ARRIVAL_COLUMNS if name != "model"}
    with TraceWriter(folder, info) as writer:
        writer.write({**columns, "model": codes.to_numpy()}, names.to_list())


def read_trace(path: str | os.PathLike[str]) -> pl.DataFrame:
    """The requests in ``path``, a run folder or one Parquet file, with all columns of the requests table.

    Rows are in order of arrival, then of id, without those that arrived before a recorded run began. A file needs only
    ``arrival_ns``: missing columns are filled as ``write_trace`` fills them, a missing ``model`` by the file's name;
    unknown ones are left out. Raises ``BadInput`` if there is no such path or it holds something else.
    """
    source = run_folder.place(path)
    if not run_folder.is_file(source):
        requests = open_run(path).requests
        if is_recorded(path):
            requests = requests.filter(pl.col("arrival_ns") >= 0)
        return _complete(requests.collect(), str(source))
    with read_of(str(source)), run_folder.open_part(source) as file:
        check_schema(file.schema_arrow, str(source), foreign=True)
        frame = pl.DataFrame(file.read([name for name in file.schema_arrow.names if name in _DTYPES]))
    if "model" not in frame.columns:
        frame = frame.with_columns(pl.lit(name_of_file(source)).alias("model"))
    return _complete(frame, str(source))


def _complete(frame: pl.DataFrame, what: str) -> pl.DataFrame:
    """``frame`` with every column of the requests table, in its types and order, sorted by arrival and id."""
    remedy = f"it needs model (string) and arrival_ns (int), and may have {', '.join(_DTYPES)}"
    unknown = [name for name in frame.columns if name not in _DTYPES]
    missing = [name for name in ("model", "arrival_ns") if name not in frame.columns]
    if unknown or missing:
        raise BadInput(f"{what} has unknown columns {unknown} and lacks {missing}: {remedy}")
    for name in frame.columns:
        if _DTYPES[name] != pl.String and not (frame[name].dtype.is_integer() or frame[name].dtype == pl.Null):
            raise BadInput(f"column {name} of {what} is {frame[name].dtype}: it must be an integer; {remedy}")
    try:
        frame = frame.with_columns(
            pl.col(name).cast(dtype) if name in frame.columns else pl.lit(None, dtype).alias(name)
            for name, dtype in _DTYPES.items()
        ).select(list(_DTYPES))
    except polars.exceptions.PolarsError as exc:
        raise BadInput(f"{what} cannot be used ({' '.join(brief(exc).split())}): {remedy}") from exc
    if frame["model"].has_nulls() or frame["arrival_ns"].has_nulls() or (frame["arrival_ns"] < 0).any():
        raise BadInput(f"{what} has rows without model, or whose arrival_ns is null or below 0: drop or shift them")
    frame = frame.sort("arrival_ns", "id", maintain_order=True).with_columns(
        pl.col("client", "bytes").fill_null(0),
        pl.col("deadline_ns").fill_null(pl.col("arrival_ns")),
    )
    if frame["id"].null_count() == frame.height:
        frame = frame.with_columns(pl.int_range(pl.len(), dtype=pl.Int64).alias("id"))
    elif frame["id"].has_nulls():
        raise BadInput(f"{what} has an id in some rows only: give every row its id, or leave the column out")
    return frame
