"""Sums one run up in figures: outcomes, rates, latency and how busy its GPUs were."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import polars as pl

from symphony_dask.trace.schema import Outcome, names
from symphony_dask.units import NS_PER_MS, NS_PER_S


@dataclass(frozen=True)
class Summary:
    """Figures of a run, or of some of its models; None where a figure has no meaning, such as a rate over no time.

    requests, ok .. cancelled: numbers of requests; a request that was not served (imported trace) has no outcome.
    span_s: from the first arrival to the last arrival or reply.
    offered_hz, goodput_hz: requests, and requests with outcome ok, per second of the span.
    attainment: ok / requests with an outcome (SLO attainment, 0 to 1).
    p50_ms, p99_ms: reply - arrival over answered requests (ok and late), linearly interpolated as numpy does.
    mean_batch: requests per batch.
    busy_gpus: time that batches ran, per second of the span: the mean number of busy GPUs.
    gpus_used: GPUs that had a batch.
    """

    requests: int
    ok: int
    late: int
    dropped: int
    rejected: int
    failed: int
    cancelled: int
    span_s: float
    offered_hz: float | None
    attainment: float | None
    goodput_hz: float | None
    p50_ms: float | None
    p99_ms: float | None
    mean_batch: float | None
    busy_gpus: float | None
    gpus_used: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, in the order of the fields."""
        return asdict(self)


def summarize(requests: pl.LazyFrame, batches: pl.LazyFrame) -> Summary:
    """The figures of these rows of the requests and batches tables."""
    outcome, arrival_ns, reply_ns = pl.col("outcome"), pl.col("arrival_ns"), pl.col("reply_ns")
    latency_ms = (reply_ns - arrival_ns).filter(outcome.is_in(["ok", "late"])) / NS_PER_MS
    r = requests.select(
        pl.len().alias("requests"),
        outcome.count().alias("served"),
        *((outcome == name).sum().alias(name) for name in names(Outcome)),
        (pl.max_horizontal(arrival_ns.max(), reply_ns.max()) - arrival_ns.min()).alias("span_ns"),
        latency_ms.quantile(0.5, "linear").alias("p50_ms"),
        latency_ms.quantile(0.99, "linear").alias("p99_ms"),
    )
    b = batches.select(
        pl.col("size").mean().alias("mean_batch"),
        (pl.col("end_ns") - pl.col("start_ns")).sum().alias("busy_ns"),
        pl.col("gpu").n_unique().alias("gpus_used"),
    )
    row = {**r.collect().row(0, named=True), **b.collect().row(0, named=True)}
    span_s = (row["span_ns"] or 0) / NS_PER_S
    return Summary(
        requests=row["requests"],
        **{name: row[name] for name in names(Outcome)},
        span_s=span_s,
        offered_hz=_ratio(row["requests"], span_s),
        attainment=_ratio(row["ok"], row["served"]),
        goodput_hz=_ratio(row["ok"], span_s),
        p50_ms=row["p50_ms"],
        p99_ms=row["p99_ms"],
        mean_batch=row["mean_batch"],
        busy_gpus=_ratio(row["busy_ns"] / NS_PER_S, span_s),
        gpus_used=row["gpus_used"],
    )


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None
