"""Reads published traces and plain files, in chunks of rows in the order of the file.

A format is a function of a ``Source`` that yields chunks: arrival_ns (int64, from any origin), and optionally model
(int32, code of a name in ``source.names``) and bytes (int64). Bad rows go to ``source.bad``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import polars as pl

from symphony_dask.errors import BadInput
from symphony_dask.text import brief, shown
from symphony_dask.trace import Names
from symphony_dask.trace.ordered import Rows
from symphony_dask.units import NS_PER_S
from workloads.traces.text_fields import (
    ISO,
    MOST_NS,
    UNITS,
    count_of,
    ns_of,
    ns_of_iso,
    size_of,
    unnameable,
    why_unnameable,
)
from workloads.traces.text_lines import BadRows, field_blocks, line_blocks, value

if TYPE_CHECKING:
    import pyarrow as pa

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
            arrival_ns=ns_of_iso(time), context_tokens=count_of(context), generated_tokens=count_of(generated)
        )
        wrong = (
            pl.when(pl.col("wrong").is_not_null())
            .then(pl.col("wrong"))
            .when(pl.col("arrival_ns").is_null())
            .then(pl.format("TIMESTAMP '{}' is not a time such as 2023-11-16 18:17:03.9799600", value(time)))
            .when(pl.col("context_tokens").is_null())
            .then(pl.format("ContextTokens '{}' is not a whole number of at least 0", value(context)))
            .when(pl.col("generated_tokens").is_null())
            .then(pl.format("GeneratedTokens '{}' is not a whole number of at least 0", value(generated)))
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
        rows = rows.with_columns(end_ns=ns_of(end, "s", MOST_NS // 2), duration_ns=ns_of(duration, "s", MOST_NS // 2))
        wrong = (
            pl.when(pl.col("wrong").is_not_null())
            .then(pl.col("wrong"))
            .when((app == "") | (func == ""))
            .then(pl.lit("app or func is empty"))
            .when(unnameable(pl.concat_str(app, func, separator="/")))
            .then(why_unnameable("app/func", pl.concat_str(app, func, separator="/")))
            .when(pl.col("end_ns").is_null())
            .then(pl.format("end_timestamp '{}' is not a number of seconds", value(end)))
            .when(pl.col("duration_ns").is_null() | (pl.col("duration_ns") < 0))
            .then(pl.format("duration '{}' is not a number of seconds of at least 0", value(duration)))
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
        counts = pl.col("fields").list.slice(4).list.eval(count_of(pl.element()))
        rows = rows.with_columns(counts=counts)
        wrong = (
            pl.when(pl.col("wrong").is_not_null())
            .then(pl.col("wrong"))
            .when((app == "") | (function == ""))
            .then(pl.lit("HashApp or HashFunction is empty"))
            .when(unnameable(pl.concat_str(app, function, separator="/")))
            .then(why_unnameable("HashApp/HashFunction", pl.concat_str(app, function, separator="/")))
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
        rows = rows.with_columns(count=count_of(pl.col("text")), second=second + pl.int_range(pl.len()))
        second += rows.height
        wrong = (
            pl.when(pl.col("wrong").is_not_null())
            .then(pl.col("wrong"))
            .when(pl.col("count").is_null())
            .then(pl.format("'{}' is not a whole number of at least 0", value(pl.col("text"))))
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
    paths = {name: _json_path(name) for name in _wanted(source)}
    for rows in line_blocks(source.path, source.on_progress):
        fields = (
            pl.col("text").str.json_path_match(path).str.strip_chars().alias(f"field {name}")
            for name, path in paths.items()
        )
        yield _named(source, rows.with_columns(*fields))


def _json_path(name: str) -> str:
    if "\\" in name and not name.startswith("$"):
        raise BadInput(f"the key {shown(name)} has a backslash, which JSON paths cannot name: rename it in the file")
    path = name if name.startswith("$") else "$['{}']".format(name.replace("'", "\\'"))
    try:
        pl.select(pl.lit("{}").str.json_path_match(path))
    except pl.exceptions.PolarsError:
        raise BadInput(f'{shown(name)} is no JSON path: write a key, or a path such as "$.request.time"') from None
    return path


def _wanted(source: Source) -> list[str]:
    """The columns or keys that are read, each once; raises ``BadInput`` for names that no file can have."""
    names = [name for name in (source.time, source.model, source.bytes_) if name is not None]
    for name in names:
        if not _is_unicode(name):
            raise BadInput(f"the name {shown(name)} of a column is no Unicode text: give it as UTF-8")
    return list(dict.fromkeys(names))


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def csv(source: Source) -> Iterator[Rows]:
    """CSV with a header line."""
    for rows in field_blocks(source.path, _wanted(source), source.on_progress):
        yield _named(source, rows)


def _named(source: Source, rows: pl.DataFrame) -> Rows:
    time = pl.col(f"field {source.time}")
    arrival_ns = ns_of_iso(time) if source.unit == ISO else ns_of(time, source.unit)
    what = "a time such as 2023-11-16 18:17:03.98" if source.unit == ISO else f"a number of {source.unit}"
    wrong = (
        pl.when(pl.col("wrong").is_not_null())
        .then(pl.col("wrong"))
        .when(time.is_null())
        .then(pl.lit(f"it has no {source.time}, or is no JSON object"))
        .when(pl.col("arrival_ns").is_null())
        .then(pl.format("{} '{}' is not {}", pl.lit(source.time), value(time), pl.lit(what)))
    )
    rows = rows.with_columns(arrival_ns=arrival_ns)
    if source.model is not None:
        model = pl.col(f"field {source.model}")
        wrong = wrong.when(model.is_null() | (model == "")).then(pl.lit(f"{source.model} is empty"))
        wrong = wrong.when(unnameable(model)).then(why_unnameable(source.model, model))
    if source.bytes_ is not None:
        size = pl.col(f"field {source.bytes_}")
        rows = rows.with_columns(bytes=size_of(size))
        wrong = wrong.when(pl.col("bytes").is_null()).then(
            pl.format("{} '{}' is not a whole number of at least 0", pl.lit(source.bytes_), value(size))
        )
    good = source.bad.leave_out(rows.with_columns(wrong=wrong))
    found = {"arrival_ns": good["arrival_ns"].to_numpy()}
    if source.model is not None:
        found["model"] = _codes(source.names, good[f"field {source.model}"])
    if source.bytes_ is not None:
        found["bytes"] = good["bytes"].to_numpy()
    return found


def parquet(source: Source) -> Iterator[Rows]:
    """Parquet: a time column (a number in some unit, or a timestamp), and columns of model (text) and bytes (int).

    Bad rows have the number of their row, from 1, as their line.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    wanted = _wanted(source)
    try:
        with pq.ParquetFile(source.path) as file:
            kinds = _parquet_types(source, file.schema_arrow, wanted)
            done = 0
            for batch in file.iter_batches(_CHUNK_ROWS, columns=wanted):
                frame = pl.DataFrame({name: pl.Series(name, batch.column(name)) for name in wanted})
                yield _named(*_as_text(source, frame, kinds, done + 1))
                done += batch.num_rows
                if source.on_progress is not None:
                    # Of the bytes, roughly: what Parquet has read is not known.
                    source.on_progress(Path(source.path).stat().st_size * done // max(file.metadata.num_rows, 1))
    except (OSError, pa.ArrowException, pl.exceptions.PolarsError) as exc:
        why = " ".join(brief(exc).split())
        raise BadInput(f"{str(source.path)!r} cannot be read as Parquet ({why}): check the file") from exc


def _parquet_types(source: Source, schema: pa.Schema, wanted: Sequence[str]) -> dict[str, Any]:
    """The Arrow type of each of the columns; raises ``BadInput`` for one that is missing, twice there, or of no use."""
    import pyarrow.types as t

    named = shown(", ".join(schema.names), 300)
    for name in wanted:
        if schema.names.count(name) != 1:
            lack = "no column" if name not in schema.names else f"{schema.names.count(name)} columns"
            raise BadInput(f"{source.path} has {lack} {name}: it has {named}")
    kinds = {name: schema.field(name).type for name in wanted}
    number = (t.is_integer, t.is_floating, t.is_decimal)
    text = (t.is_string, t.is_large_string, lambda kind: t.is_dictionary(kind) and _is_text(kind.value_type))
    allowed: tuple[tuple[str | None, Any, str], ...] = (
        (source.time, (*number, *text, t.is_timestamp, t.is_duration), "a number, a timestamp, a duration or text"),
        (source.model, (*text, t.is_integer), "text"),
        (source.bytes_, (*number, *text), "a whole number"),
    )
    for given, checks, remedy in allowed:
        if given is not None and not any(check(kinds[given]) for check in checks):
            raise BadInput(f"column {given} of {source.path} is {shown(str(kinds[given]))}: it must be {remedy}")
    return kinds


def _is_text(kind: pa.DataType) -> bool:
    import pyarrow.types as t

    return bool(t.is_string(kind) or t.is_large_string(kind))


def _as_text(source: Source, frame: pl.DataFrame, kinds: dict[str, Any], first: int) -> tuple[Source, pl.DataFrame]:
    """Rows as those of a text file have them, numbered from ``first``."""
    time = frame[source.time]
    frame = frame.with_columns(
        (pl.col(name).to_physical() if frame[name].dtype == pl.Duration else pl.col(name))
        .cast(pl.String)
        .alias(f"field {name}")
        for name in kinds
    )
    if time.dtype.is_temporal():
        per_unit = {"ns": 1, "us": 1000, "ms": 1_000_000}[time.dtype.time_unit]  # type: ignore[attr-defined]
        own, most = pl.col(source.time).to_physical(), MOST_NS // per_unit
        # What has no ns in 64 bits stays a date, and so becomes a bad row.
        ns = pl.when(own.is_between(-most, most)).then((own * per_unit).cast(pl.String))
        frame = frame.with_columns(ns.otherwise(pl.col(f"field {source.time}")).alias(f"field {source.time}"))
        source = replace(source, unit="ns")
    frame = frame.with_row_index("line", first).with_columns(wrong=pl.lit(None, pl.String))
    return source, frame


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


def names_of_columns(format_name: str, given: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """The columns that a caller names, checked against the format; raises ``BadInput``."""
    chosen = {name: value for name, value in given if value is not None}
    if chosen and not FORMATS[format_name].named:
        raise BadInput(f"trace format {format_name!r} has its own columns: leave {', '.join(chosen)} out")
    if (unit := chosen.get("unit", "s")) not in (*UNITS, ISO):
        raise BadInput(f"unit {unit!r} is unknown: use one of {', '.join([*UNITS, ISO])}")
    return chosen
