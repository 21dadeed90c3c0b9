"""Sorts rows by arrival or another key in bounded memory: an external merge sort.

Rule 1: what is gathered is sorted and put on disk as a run, in batches whose first key is remembered.
Rule 2: batches are read again in order of their first key, whatever their run; rows before the first key of the next
        unread batch can then be given back, the others wait.
So memory holds one run, later two batches of each run, and 4 million rows are never put on disk at all.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

#: Columns of equal length by name.
Rows = dict[str, npt.NDArray[Any]]

#: The columns that rows are sorted by: the first, and the second where the first are equal.
Keys = tuple[str, str]
ARRIVAL: Keys = ("arrival_ns", "id")

RUN_ROWS = 4_000_000
BATCH_ROWS = 16_384
_CHUNK_ROWS = 1_000_000


def in_order(
    chunks: Iterable[Rows], *, keys: Keys = ARRIVAL, run_rows: int = RUN_ROWS, batch_rows: int = BATCH_ROWS
) -> Iterator[Rows]:
    """The rows of ``chunks`` by the columns ``keys`` (by default ``arrival_ns``, then ``id``), in chunks of any size.

    run_rows: rows sorted at a time; batch_rows: rows of a run that are read at a time. Files lie in a folder of the
    system's temporary directory (TMPDIR), which goes when the iterator does.
    """
    buffered: list[Rows] = []
    with tempfile.TemporaryDirectory(prefix="symphony-trace-") as folder:
        files: list[Any] = []
        firsts: list[tuple[int, int, int]] = []
        for chunk in chunks:
            buffered.append(chunk)
            if sum(len(c[keys[0]]) for c in buffered) >= run_rows:
                rows = by_keys(concatenated(buffered), keys)
                path = Path(folder, str(len(files)))
                firsts += _spill(rows, keys, path, len(files), batch_rows)
                files.append(pa.ipc.open_file(pa.OSFile(str(path))))
                buffered = []
        rest = [by_keys(concatenated(buffered), keys)] if buffered else []
        buffered = []
        if not files:
            yield from _slices(rest, keys)
            return
        if rest:
            path = Path(folder, str(len(files)))
            firsts += _spill(rest.pop(), keys, path, len(files), batch_rows)
            files.append(pa.ipc.open_file(pa.OSFile(str(path))))
        yield from _merged(files, keys, sorted(firsts), batch_rows)


def by_keys(rows: Rows, keys: Keys = ARRIVAL) -> Rows:
    """``rows`` by both ``keys``; the same arrays where they are in order."""
    first, second = rows[keys[0]], rows[keys[1]]
    steps = np.diff(first)
    if (steps >= 0).all():
        if (np.diff(second)[steps == 0] >= 0).all():
            return rows
        order = np.lexsort((second, first))
    else:
        order = np.argsort(first, kind="stable")
        if (np.diff(second[order])[np.diff(first[order]) == 0] < 0).any():
            order = np.lexsort((second, first))
    return taken(rows, order)


def taken(rows: Rows, which: slice | npt.NDArray[Any]) -> Rows:
    """Those of ``rows`` that an index, a slice or a mask selects."""
    return {name: values[which] for name, values in rows.items()}


def concatenated(chunks: list[Rows]) -> Rows:
    """The rows of all ``chunks`` (at least one), in order."""
    if len(chunks) == 1:
        return chunks[0]
    return {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]}


def _spill(rows: Rows, keys: Keys, path: Path, number: int, batch_rows: int) -> list[tuple[int, int, int]]:
    """Write ``rows``, in order, as run ``number``; gives first key, run and index of each batch."""
    first = rows[keys[0]]
    table = pa.table(rows)
    with pa.ipc.new_file(str(path), table.schema, options=pa.ipc.IpcWriteOptions(compression="lz4")) as file:
        file.write_table(table, max_chunksize=batch_rows)
    return [(int(first[at]), number, at // batch_rows) for at in range(0, len(first), batch_rows)]


def _merged(files: list[Any], keys: Keys, firsts: list[tuple[int, int, int]], batch_rows: int) -> Iterator[Rows]:
    # With at least as many batches a step as there are runs, what waits is sorted about twice.
    step = max(_CHUNK_ROWS // batch_rows, len(files), 1)
    waiting: list[Rows] = []
    for at in range(0, len(firsts), step):
        for _, run, index in firsts[at : at + step]:
            batch = files[run].get_batch(index)
            waiting.append({name: batch.column(name).to_numpy() for name in batch.schema.names})
        rows = by_keys(concatenated(waiting), keys)
        waiting = []
        if at + step < len(firsts):
            ready = int(np.searchsorted(rows[keys[0]], firsts[at + step][0], side="left"))
            # A copy, or the little that waits would keep all of it in memory.
            waiting = [{name: values[ready:].copy() for name, values in rows.items()}]
            rows = taken(rows, slice(0, ready))
        if len(rows[keys[0]]):
            yield rows


def _slices(chunks: list[Rows], keys: Keys) -> Iterator[Rows]:
    for chunk in chunks:
        for at in range(0, len(chunk[keys[0]]), _CHUNK_ROWS):
            yield taken(chunk, slice(at, at + _CHUNK_ROWS))
