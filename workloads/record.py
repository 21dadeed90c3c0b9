"""A simulated run as a run folder: the tables of a live run, labelled as simulated."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pyarrow as pa

from symphony_dask.trace import SCHEMA_VERSION, SCHEMAS, BatchOutcome
from symphony_dask.trace import folder as run_folder
from symphony_dask.trace.columns import to_table
from workloads.simulate import SimulatedRun


def record(simulated: SimulatedRun, folder: str | os.PathLike[str], **info: Any) -> None:
    """Write the tables of ``simulated`` into ``folder``, a new one; times are on the clock of its arrivals.

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
    tables = {"requests": _requests(simulated), "batches": _batches(simulated)}
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
            **{table: len(columns["model"]) for table, columns in tables.items()},
            "gpus": len(changes),
        },
        "lost_rows": 0,
    }
    run_folder.create(path)
    for table, columns in tables.items():
        if len(columns["model"]):
            run_folder.write_part(path, table, 1, to_table(table, [columns], [m.name for m in simulated.models]))
    run_folder.write_part(path, "gpus", 1, pa.Table.from_pylist(changes, schema=SCHEMAS["gpus"]))
    run_folder.write_info(path, described)


def _requests(run: SimulatedRun) -> dict[str, Any]:
    n = len(run.outcome)
    ran = run.request_batch >= 0
    reply = np.where(ran, run.finish_ns, run.decided_ns) + run.settings["reply_ns"]
    columns: dict[str, Any] = {
        "id": np.arange(n),
        "client": np.zeros(n, np.int32),
        "model": run.choices,
        "arrival_ns": run.arrivals_ns,
        "deadline_ns": run.deadlines_ns,
        "dispatch_ns": np.where(ran, run.decided_ns, -1),
        "start_ns": _of_batch(run, run.batch_start_ns),
        "end_ns": run.finish_ns,
        "reply_ns": reply,
        "outcome": run.outcome,
        "batch": run.request_batch.astype(np.int64),
        "gpu": _of_batch(run, run.batch_gpu),
        "bytes": np.zeros(n, np.int64),
    }
    # Rows of a run stand in the order of their end.
    order = np.argsort(reply, kind="stable")
    return {name: values[order] for name, values in columns.items()}


def _of_batch(run: SimulatedRun, values: Any) -> Any:
    """``values`` of batches for each request's batch, -1 where it was in none."""
    return np.append(values, values.dtype.type(-1))[run.request_batch]


def _batches(run: SimulatedRun) -> dict[str, Any]:
    columns: dict[str, Any] = {
        "batch": np.arange(len(run.batch_size)),
        "model": run.batch_model,
        "gpu": run.batch_gpu,
        "size": run.batch_size,
        "dispatch_ns": run.batch_dispatch_ns,
        "window_open_ns": run.batch_open_ns,
        "window_close_ns": run.batch_close_ns,
        "planned_start_ns": run.batch_planned_start_ns,
        "planned_end_ns": run.batch_planned_end_ns,
        "start_ns": np.where(run.batch_lost, -1, run.batch_start_ns),
        "end_ns": np.where(run.batch_lost, -1, run.batch_end_ns),
        "outcome": np.where(run.batch_lost, BatchOutcome.LOST, BatchOutcome.DONE).astype(np.int8),
    }
    order = np.argsort(run.batch_end_ns, kind="stable")
    return {name: values[order] for name, values in columns.items()}
