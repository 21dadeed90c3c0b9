"""Public request traces, read into frames.

A frame has one row a request, in order of arrival: model (str), arrival_ns (int64, from the first request), bytes
(int64), and what else the trace tells. ``symphony_dask.trace.write_trace`` takes the columns named in
``TRACE_COLUMNS``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from symphony_dask.errors import BadInput
from symphony_dask.units import NS_PER_S
from workloads.arrivals import assign
from workloads.zoo import equal

#: The columns of every imported frame that a run folder keeps.
TRACE_COLUMNS = ("model", "arrival_ns", "bytes")

_KEPT_EXAMPLES = 5


@dataclass(frozen=True)
class Imported:
    """A trace as it was read.

    bad_rows: how many rows could not be read and were left out.
    bad_examples: the first few of them, as "line 7: what is wrong".
    """

    frame: pl.DataFrame
    bad_rows: int
    bad_examples: tuple[str, ...]


def import_trace(format_name: str, path: str | Path, **options: Any) -> Imported:
    """The trace at ``path``, read by the importer of that name in ``FORMATS``, which also takes the options.

    Raises ``BadInput`` when the format is unknown, and as the importer does.
    """
    if format_name not in FORMATS:
        raise BadInput(f"trace format {format_name!r} is unknown: use one of {', '.join(sorted(FORMATS))}")
    return FORMATS[format_name](path, **options)


def azure_llm(
    path: str | Path,
    *,
    models: Sequence[str] = ("azure-llm",),
    shares: Sequence[float] | None = None,
    seed: int = 0,
    strict: bool = False,
) -> Imported:
    """The requests of an Azure LLM inference trace (CSV: TIMESTAMP, ContextTokens, GeneratedTokens).

    models, shares, seed: with several names each request gets one by its share (equal where not given), drawn with the
    seed. The frame's further columns are context_tokens and generated_tokens (int32); bytes is 0. Rows may come in any
    order, with LF or CRLF; blank lines are skipped. Rows with an unreadable timestamp or token count are counted and
    left out, or with ``strict`` the first one raises.

    Raises ``BadInput`` when the file or a column is missing, no row is left, a row is bad under ``strict``, or models
    and shares do not fit. Source: github.com/Azure/AzurePublicDataset (2023; the 2024 edition ends times in "+00:00").
    """
    shares = equal(len(models)) if shares is None else shares
    if len(shares) != len(models):
        raise BadInput(f"{len(models)} models but {len(shares)} shares: give one share a model")

    columns = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
    lines = _lines(path)
    fields, width = _fields(path, lines, columns)
    time, context, generated = (fields[name] for name in columns)
    rows = lines.slice(1).with_columns(
        arrival_ns=time.str.strip_suffix("+00:00")
        .str.to_datetime("%Y-%m-%d %H:%M:%S%.f", time_unit="ns", strict=False)
        .dt.epoch("ns"),
        context_tokens=_count(context),
        generated_tokens=_count(generated),
        width=pl.col("text").str.count_matches(",", literal=True) + 1,
    )
    wrong = (
        pl.when(pl.col("width") != width)
        .then(pl.format("{} fields where the header has {}", "width", pl.lit(width)))
        .when(pl.col("arrival_ns").is_null())
        .then(pl.format("TIMESTAMP '{}' is not a time such as 2023-11-16 18:17:03.9799600", time))
        .when(pl.col("context_tokens").is_null())
        .then(pl.format("ContextTokens '{}' is not a whole number of at least 0", context))
        .when(pl.col("generated_tokens").is_null())
        .then(pl.format("GeneratedTokens '{}' is not a whole number of at least 0", generated))
    )
    rows = rows.with_columns(wrong=wrong)
    bad = rows.filter(pl.col("wrong").is_not_null())
    good, examples, bad_count = pl.collect_all(
        [
            rows.filter(pl.col("wrong").is_null())
            .select("arrival_ns", "context_tokens", "generated_tokens")
            .sort("arrival_ns", maintain_order=True),
            bad.head(_KEPT_EXAMPLES).select(pl.format("line {}: {}", "line", "wrong")),
            bad.select(pl.len()),
        ]
    )
    bad_examples = tuple(examples.to_series())
    if bad_examples and strict:
        raise BadInput(f"{path}, {bad_examples[0]}; mend it, or leave out strict to skip such rows")
    if good.is_empty():
        why = (
            f"all {bad_count.item()} rows are bad, the first at {bad_examples[0]}" if bad_examples else "it has no rows"
        )
        raise BadInput(f"{path} has no request: {why}")
    chosen = assign(good.height, shares, seed)
    frame = good.select(
        pl.Series("model", list(models)).gather(pl.Series(chosen)).alias("model"),
        pl.col("arrival_ns") - pl.col("arrival_ns").first(),
        pl.lit(0, dtype=pl.Int64).alias("bytes"),
        "context_tokens",
        "generated_tokens",
    )
    return Imported(frame, bad_count.item(), bad_examples)


#: Importers by the name that `symphony trace import FORMAT` takes.
FORMATS: dict[str, Callable[..., Imported]] = {"azure-llm": azure_llm}


def info(frame: pl.DataFrame, bad_rows: int = 0) -> dict[str, Any]:
    """Facts of a trace, as `symphony trace info` prints them.

    requests, models (how many names), span_s (first to last arrival), mean_hz (requests over the span, 0 where the
    span is 0), peak_hz (the most arrivals in any whole second from the first one on) and bad_rows.

    Raises ``BadInput`` when the frame has no rows.
    """
    if frame.is_empty():
        raise BadInput("the trace has no requests: there is nothing to tell of it")
    since_first_ns = frame["arrival_ns"].to_numpy() - frame["arrival_ns"].to_numpy().min()
    span_s = float(since_first_ns.max()) / NS_PER_S
    _, per_second = np.unique(since_first_ns // NS_PER_S, return_counts=True)
    return {
        "requests": frame.height,
        "span_s": span_s,
        "models": frame["model"].n_unique(),
        "mean_hz": frame.height / span_s if span_s else 0.0,
        "peak_hz": float(per_second.max()),
        "bad_rows": bad_rows,
    }


def _lines(path: str | Path) -> pl.LazyFrame:
    """Lines of a text file, not yet read, blank ones left out: columns line (from 1) and text (no line end).

    Whole lines, and not the fields that a CSV reader would find, because a reader that meets a bad row either stops or
    forgets its line.
    """
    if not Path(path).is_file():
        raise BadInput(f"trace file {str(path)!r} does not exist: give the path of a file")
    try:
        lines = pl.scan_csv(
            path,
            has_header=False,
            separator="\x01",
            quote_char=None,
            new_columns=["text"],
            infer_schema=False,
            encoding="utf8-lossy",
            row_index_name="line",
            row_index_offset=1,
            truncate_ragged_lines=True,
            glob=False,
        )
        lines.collect_schema()
    except pl.exceptions.NoDataError:
        raise BadInput(f"trace file {str(path)!r} is empty") from None
    text = pl.col("text").str.strip_chars()
    return lines.with_columns(text).filter(text.str.len_bytes() > 0)


def _fields(path: str | Path, lines: pl.LazyFrame, names: Sequence[str]) -> tuple[dict[str, pl.Expr], int]:
    """The named fields of a comma-separated line, as expressions, and how many fields the header has."""
    first = lines.head(1).collect()["text"].to_list()
    if not first:
        raise BadInput(f"trace file {str(path)!r} is empty")
    header = [name.strip() for name in first[0].split(",")]
    missing = [name for name in names if name not in header]
    if missing:
        raise BadInput(f"{path} has no column {', '.join(missing)}: its first line is {','.join(header)!r}")
    split = pl.col("text").str.split(",")
    return {name: split.list.get(header.index(name), null_on_oob=True).str.strip_chars() for name in names}, len(header)


def _count(field: pl.Expr) -> pl.Expr:
    """``field`` as an int32 of at least 0, or null."""
    number = field.cast(pl.Int32, strict=False)
    return pl.when(number >= 0).then(number)
