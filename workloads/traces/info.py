"""Gathers what ``symphony trace info`` tells of a trace, chunk by chunk."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from symphony_dask.errors import BadInput
from symphony_dask.trace import Names, arrival_chunks, open_run
from symphony_dask.trace.folder import is_file, place
from symphony_dask.units import NS_PER_S


class Facts:
    """Figures of requests that are added in order of arrival."""

    def __init__(self) -> None:
        self.requests = 0
        self._first_ns = 0
        self._last_ns = 0
        self._peak = 0
        #: The latest second, from the first arrival, and its arrivals so far.
        self._second = (0, 0)
        self._models: set[int] = set()

    def add(self, arrivals_ns: npt.NDArray[np.int64], models: npt.NDArray[np.int32]) -> None:
        """Add requests: arrivals, never falling over all calls, and the codes of their models; both of shape (n,)."""
        n = len(arrivals_ns)
        if not n:
            return
        if not self.requests:
            self._first_ns = int(arrivals_ns[0])
        self.requests += n
        self._last_ns = int(arrivals_ns[-1])
        seconds = (arrivals_ns - self._first_ns) // NS_PER_S
        ends = np.append(np.flatnonzero(np.diff(seconds)) + 1, n)
        counts = np.diff(ends, prepend=0)
        second, before = self._second
        if seconds[0] == second:
            counts[0] += before
        self._peak = max(self._peak, int(counts.max()))
        self._second = (int(seconds[-1]), int(counts[-1]))
        self._models.update(np.flatnonzero(np.bincount(models)).tolist())

    def to_dict(self, bad_rows: int = 0) -> dict[str, Any]:
        """Requests, span_s, models, mean_hz, peak_hz and bad_rows, as `symphony trace info` prints them.

        span_s: first to last arrival; models: how many names; mean_hz: requests over the span, 0 where the span is 0;
        peak_hz: the most arrivals in any whole second from the first one on.
        """
        span_s = (self._last_ns - self._first_ns) / NS_PER_S
        return {
            "requests": self.requests,
            "span_s": span_s,
            "models": len(self._models),
            "mean_hz": self.requests / span_s if span_s else 0.0,
            "peak_hz": float(self._peak),
            "bad_rows": bad_rows,
        }


def info(frame: pl.DataFrame, bad_rows: int = 0) -> dict[str, Any]:
    """Facts of a frame with model and arrival_ns; raises ``BadInput`` when it has no rows."""
    if frame.is_empty():
        raise BadInput("the trace has no requests: there is nothing to tell of it")
    facts = Facts()
    ordered = frame.sort("arrival_ns")
    facts.add(ordered["arrival_ns"].to_numpy(), ordered["model"].rank("dense").to_numpy().astype(np.int32))
    return facts.to_dict(bad_rows)


def trace_info(path: str | os.PathLike[str], on_progress: Callable[[int], None] | None = None) -> dict[str, Any]:
    """Facts of the run folder or Parquet file at ``path``, in bounded memory.

    on_progress: is told how many requests were read. Raises ``BadInput`` as ``trace.arrival_chunks`` does, and when
    there are no requests.
    """
    facts = Facts()
    for rows in arrival_chunks(path, Names(), ["model", "arrival_ns"], on_progress):
        facts.add(rows["arrival_ns"], rows["model"])
    bad_rows = 0 if is_file(place(path)) else open_run(path).info.get("bad_rows", 0)
    if not facts.requests:
        raise BadInput(f"{os.fspath(path)!r} has no requests: there is nothing to tell of it")
    return facts.to_dict(bad_rows)
