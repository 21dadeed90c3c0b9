"""Imports request traces from elsewhere, as runs that were not served, in bounded memory."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from symphony_dask.errors import BadInput
from symphony_dask.text import brief
from symphony_dask.trace import Names, TraceWriter
from symphony_dask.trace.ordered import Rows, in_order, taken
from workloads.traces.formats import FORMATS, Source, azure_llm_rows, names_of_columns
from workloads.traces.function_mapping import model_of_function
from workloads.traces.info import Facts
from workloads.traces.synthetic_arrivals import assign, drawn_models, time_generator
from workloads.traces.text_lines import BadRows
from workloads.traces.zoo import POPULARITIES, equal

#: The columns of every imported frame that a run folder keeps.
TRACE_COLUMNS = ("model", "arrival_ns", "bytes")


@dataclass(frozen=True)
class Imported:
    """A trace as it was read.

    bad_rows: how many rows could not be read and were left out.
    bad_examples: the first few of them, as "line 7: what is wrong".
    """

    frame: pl.DataFrame
    bad_rows: int
    bad_examples: tuple[str, ...]


def import_trace(
    format_name: str,
    path: str | Path,
    target: str | os.PathLike[str],
    *,
    models: int | None = None,
    rule: str | None = None,
    popularity: str = "equal",
    start_ns: int = 0,
    end_ns: int | None = None,
    seed: int = 0,
    strict: bool = False,
    time: str | None = None,
    unit: str | None = None,
    model: str | None = None,
    bytes_: str | None = None,
    on_progress: Callable[[int], None] | None = None,
    on_bad: Callable[[tuple[str, ...]], None] | None = None,
) -> dict[str, Any]:
    """Read the file at ``path``, of a format in ``FORMATS``, into the run folder ``target``; gives ``Facts.to_dict``.

    models: how many models, named model-0 and up, serve the requests. By default each function of the trace is a model,
        and a trace without functions is one model that is named after its format.
    rule: of ``mapping.RULES`` ("popularity" by default), from functions to models. In a trace without functions the
        model of each request is drawn instead, by ``popularity`` (of ``zoo.POPULARITIES``) and the seed.
    start_ns, end_ns: only requests from start on and before end, since the first one of the file (where the file counts
        requests by minute or second, since the beginning of its first); start becomes time 0.
    seed: draws what the file does not tell.
    strict: the first row that cannot be read raises; else such rows are counted and left out.
    time, unit, model, bytes_: columns of a format whose columns have no fixed names (``formats.Source``).
    on_progress: is told how many bytes were read; on_bad: the first few bad rows, once all is read.

    The same file and arguments give the same bytes. Rows may come in any order: beyond some millions they are sorted on
    disk (``trace.ordered``). Raises ``BadInput`` if something cannot be used, if a row is bad
    under ``strict``, or if no request is left.
    """
    if format_name not in FORMATS:
        raise BadInput(f"trace format {format_name!r} is unknown: use one of {', '.join(sorted(FORMATS))}")
    chosen = FORMATS[format_name]
    given = [("time", time), ("unit", unit), ("model", model), ("bytes_", bytes_)]
    columns = names_of_columns(format_name, given)
    if start_ns < 0 or (end_ns is not None and end_ns <= start_ns):
        raise BadInput(f"the window from {start_ns} to {end_ns} ns is empty: give a start before its end")
    if popularity not in POPULARITIES:
        raise BadInput(f"popularity {popularity!r} is unknown: use one of {', '.join(POPULARITIES)}")
    bad = BadRows(path, strict=strict)
    source = Source(path, bad, time_generator(seed), on_progress=on_progress, **columns)
    functions = _Functions(source.names)
    facts = Facts()
    described = {"source": Path(path).name, "format": format_name, "seed": seed}
    with TraceWriter(target, described) as writer:
        rows = in_order(functions.number(_chunks(chosen.chunks, source, format_name)))
        first = next(rows, None)  # by now all is read
        if on_bad is not None and bad.examples:
            on_bad(bad.examples)
        if first is None:
            raise bad.nothing_left()
        writer.update_info(bad_rows=bad.count)
        names, choose = _models(format_name, functions, models, rule, popularity, seed)
        origin = start_ns + (0 if chosen.absolute else int(first["arrival_ns"][0]))
        while first is not None:
            arrivals = first["arrival_ns"] - origin
            within = {name: values for name, values in first.items() if name != "id"}
            within |= {"arrival_ns": arrivals, "model": choose(first)}
            kept = taken(within, _within(arrivals, start_ns, end_ns))
            facts.add(kept["arrival_ns"], kept["model"])
            writer.write(kept, names)
            if end_ns is not None and arrivals[-1] >= end_ns - start_ns:
                break
            first = next(rows, None)
        if not facts.requests:
            raise BadInput(f"{path} has no request from {start_ns} to {end_ns} ns: give another window")
    return facts.to_dict(bad.count)


def _chunks(chunks: Callable[[Source], Iterator[Rows]], source: Source, format_name: str) -> Iterator[Rows]:
    """The chunks; what polars has against the file is told as an error of its reading."""
    try:
        yield from chunks(source)
    except pl.exceptions.PolarsError as error:
        text = f"{str(source.path)!r} cannot be read as {format_name} ({' '.join(brief(error).split())})"
        raise BadInput(f"{text}: check that it has that format") from error


class _Functions:
    """Numbers the rows of a file, and counts those of each function."""

    def __init__(self, names: Names) -> None:
        self.names = names
        self.requests: npt.NDArray[np.int64] = np.zeros(0, np.int64)

    def number(self, chunks: Iterable[Rows]) -> Iterator[Rows]:
        done = 0
        for chunk in chunks:
            n = len(chunk["arrival_ns"])
            if not n:
                continue
            if "model" in chunk:
                counts = np.bincount(chunk["model"], minlength=len(self.names))
                counts[: len(self.requests)] += self.requests
                self.requests = counts
            yield {**chunk, "id": np.arange(done, done + n)}
            done += n


def _models(
    format_name: str, functions: _Functions, models: int | None, rule: str | None, popularity: str, seed: int
) -> tuple[list[str], Callable[[Rows], npt.NDArray[np.int32]]]:
    """Names of models, and what gives the model of each of the next rows, in order of arrival."""
    of_functions = len(functions.names) > 0
    if rule is not None and (models is None or not of_functions):
        why = "it needs a number of models" if models is None else "the trace has no functions (or models) to map"
        raise BadInput(f"mapping {rule!r} cannot be used: {why}")
    if models is None:
        if of_functions:
            return functions.names.names, lambda rows: rows["model"]
        return [format_name], lambda rows: np.zeros(len(rows["id"]), np.int32)
    names = [f"model-{m}" for m in range(models)]
    if of_functions:
        found = model_of_function(rule or "popularity", functions.requests, models)
        return names, lambda rows: found[rows["model"]]
    draw = drawn_models(POPULARITIES[popularity](models), seed)
    return names, lambda rows: draw(len(rows["id"]))


def _within(arrivals: npt.NDArray[np.int64], start_ns: int, end_ns: int | None) -> slice:
    """Rows of the window, of arrivals in order since its start."""
    end = len(arrivals) if end_ns is None else int(np.searchsorted(arrivals, end_ns - start_ns))
    return slice(int(np.searchsorted(arrivals, 0)), end)


def azure_llm(
    path: str | Path,
    *,
    models: Sequence[str] = ("azure-llm",),
    shares: Sequence[float] | None = None,
    seed: int = 0,
    strict: bool = False,
) -> Imported:
    """The requests of an Azure LLM inference trace in one frame (CSV: TIMESTAMP, ContextTokens, GeneratedTokens).

    models, shares, seed: with several names each request gets one by its share (equal where not given), drawn with the
    seed. The frame has one row a request, in order of arrival: model (str), arrival_ns (int64, from the first request),
    bytes (int64, 0), context_tokens and generated_tokens (int32). Rows may come in any order, with LF or CRLF; blank
    lines are skipped. Rows with an unreadable timestamp or token count are counted and left out, or with ``strict`` the
    first one raises.

    Raises ``BadInput`` when the file or a column is missing, no row is left, a row is bad under ``strict``, or models
    and shares do not fit. Source: github.com/Azure/AzurePublicDataset (2023; the 2024 edition ends times in "+00:00").
    """
    shares = equal(len(models)) if shares is None else shares
    if len(shares) != len(models):
        raise BadInput(f"{len(models)} models but {len(shares)} shares: give one share a model")
    bad = BadRows(path, strict=strict)
    good = pl.concat(azure_llm_rows(Source(path, bad, time_generator(seed)))).sort("arrival_ns", maintain_order=True)
    if good.is_empty():
        raise bad.nothing_left()
    chosen = assign(good.height, shares, seed)
    frame = good.select(
        pl.Series("model", list(models)).gather(pl.Series(chosen)).alias("model"),
        pl.col("arrival_ns") - pl.col("arrival_ns").first(),
        pl.lit(0, dtype=pl.Int64).alias("bytes"),
        "context_tokens",
        "generated_tokens",
    )
    return Imported(frame, bad.count, bad.examples)
