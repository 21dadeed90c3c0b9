"""Measures how long GPUs were there in a run. A number is used again once its GPU has left, so a GPU may have several
intervals.
"""

from __future__ import annotations

import polars as pl

from symphony_dask.trace import Run


def presence_intervals(run: Run) -> pl.DataFrame:
    """A row for each interval: gpu, gpu_class, rank, ready_ns, until_ns (drain or leave, from which it gets no batches)
    and leave_ns (null both while it is there), by gpu and time. A GPU that never became ready has none."""
    events = run.gpus.collect().sort("gpu", "time_ns", maintain_order=True)
    ready, leave = pl.col("event") == "ready", pl.col("event") == "leave"
    return (
        events.with_columns(interval=ready.cum_sum().over("gpu"))
        .filter(pl.col("interval") > 0)
        .group_by("gpu", "interval", maintain_order=True)
        .agg(
            pl.col("gpu_class").first(),
            pl.col("rank").first(),
            ready_ns=pl.col("time_ns").filter(ready).first(),
            until_ns=pl.col("time_ns").filter(leave | (pl.col("event") == "drain")).first(),
            leave_ns=pl.col("time_ns").filter(leave).first(),
        )
        .drop("interval")
    )
