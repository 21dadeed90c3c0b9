"""Defines the tables of a run folder: their columns, units and enums.

Rule 1: a time is int64 ns on the run's monotonic clock; 0 is the start of the run.
Rule 2: a nullable column is null where the thing did not happen (a dropped request has no ``start_ns``).
Rule 3: a change that an older reader would misread raises ``SCHEMA_VERSION``; docs/trace-format.md says it in words.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any

import pyarrow as pa

SCHEMA_VERSION = 1

#: The oldest version that this package reads; a later schema that can read it keeps this number.
OLDEST_VERSION = 1


class Outcome(IntEnum):
    """How a request ended; the tables hold the lower-case name."""

    #: Answered by its deadline.
    OK = 0
    #: Answered after its deadline.
    LATE = 1
    #: Given up before it ran, because it could no longer meet its deadline.
    DROPPED = 2
    #: Never queued: the queue was full, or no worker serves the model.
    REJECTED = 3
    #: The model raised, or the worker was lost.
    FAILED = 4
    #: Withdrawn by the client, or its model was undeployed.
    CANCELLED = 5


class BatchOutcome(IntEnum):
    """How a batch ended; the tables hold the lower-case name."""

    #: The worker reported its end.
    DONE = 0
    #: The model raised.
    FAILED = 1
    #: The worker left, or the batch was given up as hung, before it was reported.
    LOST = 2


GPU_EVENTS = ("join", "ready", "drain", "leave")


def names(enum: type[IntEnum]) -> list[str]:
    """The lower-case names of ``enum`` in order of code, as the tables spell them."""
    return [member.name.lower() for member in enum]


_label = pa.dictionary(pa.int32(), pa.string())


def _required(name: str, kind: pa.DataType) -> pa.Field:
    return pa.field(name, kind, nullable=False)


#: Schema of every table by name; a run folder has the parts ``<name>-000001.parquet`` and up.
SCHEMAS: dict[str, Any] = {
    "requests": pa.schema(
        [
            _required("id", pa.int64()),
            _required("client", pa.int32()),
            _required("model", _label),
            _required("arrival_ns", pa.int64()),
            _required("deadline_ns", pa.int64()),
            pa.field("dispatch_ns", pa.int64()),
            pa.field("start_ns", pa.int64()),
            pa.field("end_ns", pa.int64()),
            pa.field("reply_ns", pa.int64()),
            pa.field("outcome", _label),
            pa.field("batch", pa.int64()),
            pa.field("gpu", pa.int32()),
            _required("bytes", pa.int64()),
        ]
    ),
    "batches": pa.schema(
        [
            _required("batch", pa.int64()),
            _required("model", _label),
            _required("gpu", pa.int32()),
            _required("size", pa.int32()),
            pa.field("dispatch_ns", pa.int64()),
            pa.field("window_open_ns", pa.int64()),
            pa.field("window_close_ns", pa.int64()),
            pa.field("planned_start_ns", pa.int64()),
            pa.field("planned_end_ns", pa.int64()),
            pa.field("start_ns", pa.int64()),
            pa.field("end_ns", pa.int64()),
            _required("outcome", _label),
            pa.field("rule", _label),
        ]
    ),
    "gpus": pa.schema(
        [
            _required("time_ns", pa.int64()),
            _required("gpu", pa.int32()),
            _required("event", _label),
            pa.field("rank", pa.int32()),
            pa.field("gpu_class", pa.string()),
            pa.field("worker", pa.string()),
            pa.field("host", pa.string()),
        ]
    ),
    "events": pa.schema(
        [
            _required("event", pa.int64()),
            _required("time_ns", pa.int64()),
            _required("op", _label),
            _required("a", pa.int64()),
            _required("b", pa.int64()),
            _required("c", pa.int64()),
            _required("d", pa.int64()),
            _required("data", pa.binary()),
        ]
    ),
    "scaling": pa.schema(
        [
            _required("time_ns", pa.int64()),
            _required("inputs", pa.string()),
            _required("decision", pa.string()),
        ]
    ),
}

#: Columns that runs of earlier releases lack, by table; they read as null.
LATER = {"batches": ("rule",)}
