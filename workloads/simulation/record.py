"""Writes a simulated run as a run folder: the tables of a live run, labelled as simulated."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from symphony_dask.cli.partial_files import report_if_interrupted
from symphony_dask.trace import SCHEMA_VERSION, SCHEMAS, BatchOutcome
from symphony_dask.trace import folder as run_folder
from symphony_dask.trace.columns import to_table
from symphony_dask.trace.ordered import Rows, concatenated, in_order, taken
from workloads.simulation.simulate import SimulatedRun

if TYPE_CHECKING:
    import numpy.typing as npt

PART_ROWS = run_folder.ROW_GROUP

#: The column of times that rows are sorted by, and that is not written.
_ENDED = "ended_ns"


def record(simulated: SimulatedRun, folder: str | os.PathLike[str], **info: object) -> None:
    """Write the tables of ``result`` into ``folder``, a new one; times are on the clock of its arrivals.

    info: more keys of run.json, plain JSON values, such as the trace that was simulated.

    The same simulation gives the same tables, byte for byte. Raises ``BadInput`` if the folder holds a run or cannot
    be used.
    """
    path = run_folder.place(folder)
    fleet = simulated.fleet
    models = [
        {"name": m.name, "slo_ns": m.slo_ns, "profiles": {c: m.profile_on(c).to_dict() for c in fleet.classes}}
        for m in simulated.models
    ]
    names = [m.name for m in simulated.models]
    tables = {
        "requests": (len(simulated.outcome), _requests, "id"),
        "batches": (len(simulated.batch_size), _batches, "batch"),
    }
    changes = [
        {**change._asdict(), "rank": fleet.rank[change.gpu], "gpu_class": fleet.classes[fleet.gpu_class[change.gpu]]}
        for change in simulated.changes
    ]
    described = {
        "schema_version": SCHEMA_VERSION,
        "started_at": None,
        "clock": "virtual",
        "software": run_folder.software(),
        "label": "simulated",
        "models": models,
        "gpus": simulated.gpus,
        **simulated.settings,
        **run_folder.plain(info),
        "closed": True,
        "counts": {
            **dict.fromkeys(SCHEMAS, 0),
            **{table: rows for table, (rows, _, _) in tables.items()},
            "gpus": len(changes),
        },
        "lost_rows": 0,
    }
    run_folder.create(path)
    with report_if_interrupted(lambda: f"the run in {path} is partial, and its run.json says so"):
        for table, (rows, columns_of, number) in tables.items():
            # Rows of a run stand in the order of their end, and are made some at a time: all columns would fill the
            # memory.
            chunks = (columns_of(simulated, at, min(at + PART_ROWS, rows)) for at in range(0, rows, PART_ROWS))
            for part, columns in enumerate(_parts(in_order(chunks, keys=(_ENDED, number), run_rows=PART_ROWS)), 1):
                run_folder.write_part(path, table, part, to_table(table, [columns], names))
        run_folder.write_part(path, "gpus", 1, pa.Table.from_pylist(changes, schema=SCHEMAS["gpus"]))
        run_folder.write_info(path, described)


def _parts(chunks: Iterator[Rows]) -> Iterator[Rows]:
    """The same rows, ``PART_ROWS`` at a time, without what they were sorted by."""
    held: list[Rows] = []
    for chunk in chunks:
        held.append({name: values for name, values in chunk.items() if name != _ENDED})
        while sum(len(rows["model"]) for rows in held) >= PART_ROWS:
            rows = concatenated(held)
            yield taken(rows, slice(0, PART_ROWS))
            held = [taken(rows, slice(PART_ROWS, None))]
    if held and len((rows := concatenated(held))["model"]):
        yield rows


def _requests(run: SimulatedRun, begin: int, end: int) -> Rows:
    here = slice(begin, end)
    n = end - begin
    batch, finish = run.request_batch[here], run.finish_ns[here]
    ran = batch >= 0
    reply = np.where(ran, finish, run.decided_ns[here]) + run.settings["reply_ns"]
    return {
        "id": np.arange(begin, end),
        "client": np.zeros(n, np.int32),
        "model": run.choices[here],
        "arrival_ns": run.arrivals_ns[here],
        "deadline_ns": run.deadlines_ns[here],
        "dispatch_ns": np.where(ran, run.decided_ns[here], -1),
        "start_ns": _of_batch(batch, run.batch_start_ns),
        "end_ns": finish,
        "reply_ns": reply,
        "outcome": run.outcome[here],
        "batch": batch.astype(np.int64),
        "gpu": _of_batch(batch, run.batch_gpu),
        "bytes": np.zeros(n, np.int64),
        _ENDED: reply,
    }


def _of_batch(batch: npt.NDArray[np.int32], values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """``values`` of batches for each request's batch, -1 where it was in none."""
    if not len(values):
        return np.full(len(batch), -1, values.dtype)
    return np.where(batch >= 0, values[batch], values.dtype.type(-1))


def _batches(run: SimulatedRun, begin: int, end: int) -> Rows:
    here = slice(begin, end)
    lost = run.batch_lost[here]
    return {
        "batch": np.arange(begin, end),
        "model": run.batch_model[here],
        "gpu": run.batch_gpu[here],
        "size": run.batch_size[here],
        "dispatch_ns": run.batch_dispatch_ns[here],
        "window_open_ns": run.batch_open_ns[here],
        "window_close_ns": run.batch_close_ns[here],
        "planned_start_ns": run.batch_planned_start_ns[here],
        "planned_end_ns": run.batch_planned_end_ns[here],
        "start_ns": np.where(lost, -1, run.batch_start_ns[here]),
        "end_ns": np.where(lost, -1, run.batch_end_ns[here]),
        "outcome": np.where(lost, BatchOutcome.LOST, BatchOutcome.DONE).astype(np.int8),
        "rule": run.batch_rule[here],
        _ENDED: run.batch_end_ns[here],
    }
