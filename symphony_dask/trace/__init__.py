"""Writes a run as a folder of Parquet parts while it goes on, and reads it lazily. Knows nothing of Dask."""

from symphony_dask.trace.arrivals import read_trace, write_trace
from symphony_dask.trace.chunks import Names, arrival_chunks, count_requests
from symphony_dask.trace.reader import Run, open_run
from symphony_dask.trace.recorder import Recorder
from symphony_dask.trace.rows import read_rows
from symphony_dask.trace.schema import GPU_EVENTS, SCHEMA_VERSION, SCHEMAS, BatchOutcome, Outcome
from symphony_dask.trace.summary import Summary
from symphony_dask.trace.writer import TraceWriter

__all__ = [
    "GPU_EVENTS",
    "SCHEMAS",
    "SCHEMA_VERSION",
    "BatchOutcome",
    "Names",
    "Outcome",
    "Recorder",
    "Run",
    "Summary",
    "TraceWriter",
    "arrival_chunks",
    "count_requests",
    "open_run",
    "read_rows",
    "read_trace",
    "write_trace",
]
