"""Rows as the recorder takes them, and a way to wait for its writer thread."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from symphony_dask.trace import SCHEMAS, BatchOutcome, Outcome, Recorder, Run, open_run

MS = 1_000_000
Columns = dict[str, npt.NDArray[np.int64]]


def columns(table: str, **given: list[int]) -> Columns:
    """Columns of ``table`` as long as those ``given``; the others are -1 where they may be null, else 0."""
    rows = len(next(iter(given.values())))
    return {
        field.name: np.array(given.get(field.name, [-1 if field.nullable else 0] * rows), dtype=np.int64)
        for field in SCHEMAS[table]
    }


def wait_until(condition: Callable[[], object], timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true"
        time.sleep(0.002)


def record_example(folder: Path) -> Run:
    """Eight requests to the models a and b over half a second; times in ms below."""
    requests = {
        "id": [0, 1, 2, 3, 4, 5, 6, 7],
        "model": [0, 0, 1, 1, 0, 0, 1, 0],
        "arrival_ns": [t * MS for t in (0, 10, 100, 150, 160, 460, 500, 480)],
        "deadline_ns": [t * MS for t in (25, 35, 125, 175, 185, 510, 525, 505)],
        "reply_ns": [t if t < 0 else t * MS for t in (20, 20, 130, -1, 161, 500, -1, -1)],
        "outcome": [
            Outcome.OK,
            Outcome.OK,
            Outcome.LATE,
            Outcome.DROPPED,
            Outcome.REJECTED,
            Outcome.OK,
            Outcome.FAILED,
            Outcome.CANCELLED,
        ],
    }
    batches = {
        "batch": [0, 1, 2, 3],
        "model": [0, 1, 0, 1],
        "gpu": [0, 1, 0, 1],
        "size": [2, 1, 1, 1],
        "start_ns": [t if t < 0 else t * MS for t in (12, 105, 470, -1)],
        "end_ns": [t if t < 0 else t * MS for t in (18, 125, 494, -1)],
        "outcome": [BatchOutcome.DONE, BatchOutcome.DONE, BatchOutcome.DONE, BatchOutcome.LOST],
    }
    with Recorder(folder, {}) as recorder:
        recorder.add_model("a")
        recorder.add_model("b")
        recorder.record_requests(columns("requests", **requests))
        recorder.record_batches(columns("batches", **batches))
    return open_run(folder)
