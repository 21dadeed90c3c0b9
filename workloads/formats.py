"""Published traces and plain files, read in chunks of rows in the order of the file.

A format is a function of a ``Source`` that yields chunks: arrival_ns (int64, from any origin), and optionally model
(int32, code of a name in ``source.names``) and bytes (int64). Bad rows go to ``source.bad``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from symphony_dask.errors import BadInput
from symphony_dask.trace import Names
from symphony_dask.trace.ordered import Rows
from symphony_dask.units import NS_PER_S
from workloads.textlines import BadRows, field_blocks, line_blocks

#: Digits after the point of each unit, down to ns.
UNITS = {"s": 9, "ms": 6, "us": 3, "ns": 0}
ISO = "iso"

_CHUNK_ROWS = 1_000_000


@dataclass(frozen=True)
class Source:
    """A file to import.

    time, model, bytes_: names of columns, where the format does not set them. unit: of time, a key of ``UNITS`` or
        "iso".
    rng: draws the arrivals where the file only counts them.
    """

    path: str | Path
    bad: BadRows
    rng: np.random.Generator
    time: str = "timestamp"
    unit: str = "s"
    model: str | None = None
    bytes_: str | None = None
    names: Names = field(default_factory=Names)
    on_progress: Callable[[int], None] | None = None


@dataclass(frozen=True)
class Format:
    """How a file is read.

    absolute: time 0 is that of the file, such as the beginning of its first minute, and not the first arrival.
    named: the caller names the columns.
    """

    chunks: Callable[[Source], Iterator[Rows]]
    absolute: bool = False
    named: bool = False


def azure_llm_rows(source: Source) -> Iterator[pl.DataFrame]:
    """Good rows of an Azure LLM inference trace: arrival_ns, context_tokens and generated_tokens (int32)."""
    columns = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
    time, context, generated = (pl.col(f"field {name}") for name in columns)
    for rows in field_blocks(source.path, columns, source.on_progress):
        rows = rows.with_columns(
            arrival_ns=_iso(time), context_tokens=_count(context), generated_tokens=_count(generated)
        )
        wrong = (
            pl.when(pl.col("wrong").is_not_null())
            .then(pl.col("wrong"))
            .when(pl.col("arrival_ns").is_null())
            .then(pl.format("TIMESTAMP '{}' is not a time such as 2023-11-16 18:17:03.9799600", time))
            .when(pl.col("context_tokens").is_null())
            .then(pl.format("ContextTokens '{}' is not a whole number of at least 0", context))
            .when(pl.col("generated_tokens").is_null())
            .then(pl.format("GeneratedTokens '{}' is not a whole number of at least 0", generated))
        )
        yield source.bad.leave_out(rows.with_columns(wrong=wrong)).select(
            "arrival_ns", "context_tokens", "generated_tokens"
        )


def azure_llm(source: Source) -> Iterator[Rows]:
    """CSV: TIMESTAMP, ContextTokens, GeneratedTokens; 2023 and 2024 (times end in "+00:00").

    Source: github.com/Azure/AzurePublicDataset, "Splitwise", ISCA 2024.
    """
    for rows in azure_llm_rows(source):
        yield {"arrival_ns": rows["arrival_ns"].to_numpy()}


def azure_functions_2021(source: Source) -> Iterator[Rows]:
    """CSV: app, func, end_timestamp, duration, in s, by end; a request arrives at end - duration, for "APP/FUNC".

    Source: github.com/Azure/AzurePublicDataset, "Faster and Cheaper Serverless Computing on Harvested Resources", SOSP
    2021.
    """
    columns = ("app", "func", "end_timestamp", "duration")
    app, func, end, duration = (pl.col(f"field {name}") for name in columns)
    for rows in field_blocks(source.path, columns, source.on_progress):
        rows = rows.with_columns(end_ns=_ns(end, "s"), duration_ns=_ns(duration, "s"))
        wrong = (
            pl.when(pl.col("wrong").is_not_null())
            .then(pl.col("wrong"))
            .when((app == "") | (func == ""))
            .then(pl.lit("app or func is empty"))
            .when(pl.col("end_ns").is_null())
            .then(pl.format("end_timestamp '{}' is not a number of seconds", end))
            .when(pl.col("duration_ns").is_null() | (pl.col("duration_ns") < 0))
            .then(pl.format("duration '{}' is not a number of seconds of at least 0", duration))
        )
        good = source.bad.leave_out(rows.with_columns(wrong=wrong))
        yield {
            "arrival_ns": good.select(pl.col("end_ns") - pl.col("duration_ns")).to_series().to_numpy(),
            "model": _codes(source.names, good.select(pl.concat_str(app, func, separator="/")).to_series()),
        }


def azure_functions_2019(source: Source) -> Iterator[Rows]:
    """CSV: HashOwner, HashApp, HashFunction, Trigger, 1 .. 1440: requests of each minute, for "APP/FUNCTION".

    Arrivals are drawn uniformly within their minute. Source: github.com/Azure/AzurePublicDataset, "Serverless in the
    Wild", ATC 2020.
    """
    columns = ("HashApp", "HashFunction", "Trigger", "1")
    app, function = (pl.col(f"field {name}") for name in columns[:2])
    for rows in field_blocks(source.path, columns, source.on_progress):
        # Counts follow Trigger, to the end of the line.
        counts = pl.col("fields").list.slice(4).list.eval(_count(pl.element()))
        rows = rows.with_columns(counts=counts)
        wrong = (
            pl.when(pl.col("wrong").is_not_null())
            .then(pl.col("wrong"))
            .when((app == "") | (function == ""))
            .then(pl.lit("HashApp or HashFunction is empty"))
            .when(pl.col("counts").list.eval(pl.element().is_null()).list.any())
            .then(pl.lit("a count is not a whole number of at least 0"))
        )
        good = source.bad.leave_out(rows.with_columns(wrong=wrong))
        if good.is_empty():
            continue
        codes = _codes(source.names, good.select(pl.concat_str(app, function, separator="/")).to_series())
        matrix = good["counts"].explode().to_numpy().reshape(good.height, -1).astype(np.int64)
        row, minute = np.nonzero(matrix)
        width_ns = 60 * NS_PER_S
        for arrivals, which in _spread(minute * width_ns, matrix[row, minute], width_ns, source.rng):
            yield {"arrival_ns": arrivals, "model": codes[row[which]]}


def rate(source: Source) -> Iterator[Rows]:
    """One whole number a line: the requests of that second, drawn uniformly within it.

    A bad line is a second without requests.
    """
    second = 0
    for rows in line_blocks(source.path, source.on_progress):
        rows = rows.with_columns(count=_count(pl.col("text")), second=second + pl.int_range(pl.len()))
        second += rows.height
        wrong = pl.when(pl.col("count").is_null()).then(
            pl.format("'{}' is not a whole number of at least 0", pl.col("text"))
        )
        good = source.bad.leave_out(rows.with_columns(wrong=wrong))
        starts = good["second"].to_numpy().astype(np.int64) * NS_PER_S
        for arrivals, _ in _spread(starts, good["count"].to_numpy().astype(np.int64), NS_PER_S, source.rng):
            yield {"arrival_ns": arrivals}


def mooncake(source: Source) -> Iterator[Rows]:
    """JSON lines with "timestamp" in ms. Source: github.com/kvcache-ai/Mooncake, FAST 2025."""
    return jsonl(replace(source, time="timestamp", unit="ms", model=None, bytes_=None))


def jsonl(source: Source) -> Iterator[Rows]:
    """JSON lines, one object each. A name is that of a key, or a JSON path where it begins with "$"."""
    wanted = [name for name in (source.time, source.model, source.bytes_) if name is not None]
    for rows in line_blocks(source.path, source.on_progress):
        fields = (
            pl.col("text")
            .str.json_path_match(name if name.startswith("$") else f"$['{name}']")
            .str.strip_chars()
            .alias(f"field {name}")
            for name in wanted
        )
        yield _named(source, rows.with_columns(*fields, wrong=pl.lit(None, pl.String)))


def csv(source: Source) -> Iterator[Rows]:
    """CSV with a header line."""
    wanted = [name for name in (source.time, source.model, source.bytes_) if name is not None]
    for rows in field_blocks(source.path, wanted, source.on_progress):
        yield _named(source, rows)


def _named(source: Source, rows: pl.DataFrame) -> Rows:
    time = pl.col(f"field {source.time}")
    arrival_ns = _iso(time) if source.unit == ISO else _ns(time, source.unit)
    what = "a time such as 2023-11-16 18:17:03.98" if source.unit == ISO else f"a number of {source.unit}"
    wrong = (
        pl.when(pl.col("wrong").is_not_null())
        .then(pl.col("wrong"))
        .when(time.is_null())
        .then(pl.lit(f"it has no {source.time}, or is no JSON object"))
        .when(pl.col("arrival_ns").is_null())
        .then(pl.format("{} '{}' is not {}", pl.lit(source.time), time, pl.lit(what)))
    )
    rows = rows.with_columns(arrival_ns=arrival_ns)
    if source.model is not None:
        model = pl.col(f"field {source.model}")
        wrong = wrong.when(model.is_null() | (model == "")).then(pl.lit(f"{source.model} is empty"))
    if source.bytes_ is not None:
        size = pl.col(f"field {source.bytes_}")
        rows = rows.with_columns(bytes=_size(size))
        wrong = wrong.when(pl.col("bytes").is_null()).then(
            pl.format("{} '{}' is not a whole number of at least 0", pl.lit(source.bytes_), size)
        )
    good = source.bad.leave_out(rows.with_columns(wrong=wrong))
    found = {"arrival_ns": good["arrival_ns"].to_numpy()}
    if source.model is not None:
        found["model"] = _codes(source.names, good[f"field {source.model}"])
    if source.bytes_ is not None:
        found["bytes"] = good["bytes"].to_numpy()
    return found


def parquet(source: Source) -> Iterator[Rows]:
    """Parquet: a time column (a number in some unit, or a timestamp), and columns of model (string) and bytes (int).

    Bad rows have the number of their row, from 1, as their line.
    """
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(source.path)
    except (OSError, ValueError) as exc:
        raise BadInput(f"{str(source.path)!r} cannot be read as Parquet ({exc})") from exc
    wanted = [name for name in (source.time, source.model, source.bytes_) if name is not None]
    with file:
        missing = [name for name in wanted if name not in file.schema_arrow.names]
        if missing:
            raise BadInput(f"{source.path} has no column {missing[0]}: it has {', '.join(file.schema_arrow.names)}")
        done = 0
        for batch in file.iter_batches(_CHUNK_ROWS, columns=wanted):
            frame = pl.DataFrame(batch)
            time = frame[source.time]
            frame = frame.select(pl.col(name).cast(pl.String).alias(f"field {name}") for name in wanted)
            if time.dtype.is_temporal():
                frame = frame.with_columns(time.dt.epoch("ns").cast(pl.String).alias(f"field {source.time}"))
            frame = frame.with_row_index("line", done + 1).with_columns(wrong=pl.lit(None, pl.String))
            yield _named(replace(source, unit="ns") if time.dtype.is_temporal() else source, frame)
            done += batch.num_rows
            if source.on_progress is not None:
                # Of the bytes, roughly: what Parquet has read is not known.
                source.on_progress(Path(source.path).stat().st_size * done // max(file.metadata.num_rows, 1))


#: Formats by the name that `symphony trace import FORMAT` takes.
FORMATS = {
    "azure-llm": Format(azure_llm),
    "azure-functions-2019": Format(azure_functions_2019, absolute=True),
    "azure-functions-2021": Format(azure_functions_2021),
    "mooncake": Format(mooncake),
    "rate": Format(rate, absolute=True),
    "jsonl": Format(jsonl, named=True),
    "csv": Format(csv, named=True),
    "parquet": Format(parquet, named=True),
}


def _spread(
    starts_ns: npt.NDArray[np.int64], counts: npt.NDArray[np.int64], width_ns: int, rng: np.random.Generator
) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.intp]]]:
    """``counts[i]`` arrivals drawn within ``width_ns`` of ``starts_ns[i]``: arrivals and their i, a chunk at a time."""
    ends = np.cumsum(counts)
    total = int(ends[-1]) if len(ends) else 0
    for at in range(0, total, _CHUNK_ROWS):
        which = np.searchsorted(ends, np.arange(at, min(at + _CHUNK_ROWS, total)), side="right")
        yield starts_ns[which] + rng.integers(0, width_ns, len(which)), which


def _codes(names: Names, labels: pl.Series) -> npt.NDArray[np.int32]:
    return names.encode(labels.to_arrow())


def _ns(text: pl.Expr, unit: str) -> pl.Expr:
    """A number of ``unit`` as int64 ns, exactly, or null; more digits than ns have are rounded."""
    return text.cast(pl.Decimal(38, UNITS[unit]), strict=False).to_physical().cast(pl.Int64, strict=False)


def _iso(text: pl.Expr) -> pl.Expr:
    """A UTC time as int64 ns since 1970, or null."""
    plain = text.str.strip_suffix("+00:00").str.strip_suffix("Z").str.replace("T", " ", literal=True)
    return plain.str.to_datetime("%Y-%m-%d %H:%M:%S%.f", time_unit="ns", strict=False).dt.epoch("ns")


def _count(text: pl.Expr) -> pl.Expr:
    """``text`` as an int32 of at least 0, or null."""
    number = text.cast(pl.Int32, strict=False)
    return pl.when(number >= 0).then(number)


def _size(text: pl.Expr) -> pl.Expr:
    number = text.cast(pl.Int64, strict=False)
    return pl.when(number >= 0).then(number)


def names_of_columns(format_name: str, given: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """The columns that a caller names, checked against the format; raises ``BadInput``."""
    chosen = {name: value for name, value in given if value is not None}
    if chosen and not FORMATS[format_name].named:
        raise BadInput(f"trace format {format_name!r} has its own columns: leave {', '.join(chosen)} out")
    if (unit := chosen.get("unit", "s")) not in (*UNITS, ISO):
        raise BadInput(f"unit {unit!r} is unknown: use one of {', '.join([*UNITS, ISO])}")
    return chosen
