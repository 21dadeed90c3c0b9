"""Aggregates the figures of a run lazily, so that a run of any length becomes a few thousand numbers.

Latency is counted in bins 0.2 % wide, which is how exact its quantiles are; all else is exact.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl

from autoscale.providers.prices import Prices
from symphony_dask.errors import BadInput
from symphony_dask.trace import Outcome, Run
from symphony_dask.units import NS_PER_MS, NS_PER_S
from workloads.analysis.causes import CAUSES, label, top
from workloads.analysis.gpu_presence import presence_intervals

#: Points of time in the figures over time, points of the latency curve, batches and GPUs of the timeline, at most.
BUCKETS, CURVE_POINTS, MOST_BATCHES, MOST_GPUS = 100, 400, 800, 32

#: Models told apart in the figures; the requests of all others are taken together.
MOST_MODELS = 6
OTHERS = "other models"

_BINS_PER_E = 500
_OUTCOMES = [outcome.name.lower() for outcome in Outcome]


def report(
    run: Run, prices: Prices, *, from_ns: int = 0, length_ns: int | None = None, name: str | None = None
) -> dict[str, Any]:
    """All figures of ``run`` as plain values for JSON; times are seconds since its first arrival unless said otherwise.

    from_ns, length_ns: the part of the run that the timeline of GPUs shows, from the first arrival on; by default from
        its begin as long as ``MOST_BATCHES`` batches last.
    name: what the run is called; by default its folder's name.

    Raises ``BadInput`` when the run holds no requests, or none that was served.
    """
    counts = _counts(run)
    if not counts["requests"] or not counts["served"]:
        raise BadInput(
            f"{str(run.folder)!r} has {counts['requests'] or 0} requests, 0 of them served: give a recorded run, or "
            "simulate the trace first (symphony simulate TRACE --folder RUN)"
        )
    begin: int = counts["begin_ns"]
    span_ns = max(counts["end_ns"] - begin, 1)
    span_s = span_ns / NS_PER_S
    by_time = _by_time(run, begin, span_ns)
    latency = _latency(run)
    sizes = _batch_sizes(run)
    figures = _figures(by_time, latency, sizes, span_s)
    busy = run.batches.select(
        busy_ns=(pl.col("end_ns") - pl.col("start_ns")).sum(), used=pl.col("gpu").n_unique()
    ).collect(engine="streaming")
    summary = {
        **figures[0],
        "span_s": span_s,
        "busy_gpus": busy["busy_ns"][0] / span_ns,
        "gpus_used": busy["used"][0],
    }
    shown = [row["model"] for row in figures[1 : 1 + MOST_MODELS]]
    cost = _cost(run, prices, begin, counts["end_ns"])
    good = summary["ok"]
    cost["usd_per_million_good"] = None if cost["usd"] is None or not good else cost["usd"] / good * 1e6
    return {
        "name": name or run.folder.name,
        "folder": str(run.folder),
        "label": label(run),
        "says": run.info.get("label"),
        "partial": run.partial,
        "policy": run.info.get("policy"),
        "closed": bool(run.info.get("closed")),
        "lost_rows": run.info.get("lost_rows", 0),
        "summary": summary,
        "by_model": [{**row, "slo_ms": _slo_ms(run, row["model"])} for row in figures[1:]],
        "shown_models": [*shown, OTHERS] if len(figures) - 1 > len(shown) else shown,
        "latency": _curve(latency, summary["requests"]),
        "over_time": _over_time(by_time, shown, span_s),
        "batch_sizes": (
            sizes.group_by("size")
            .agg(pl.col("batches").sum())
            .sort("size")
            .with_columns(requests=pl.col("size") * pl.col("batches"))
            .to_dicts()
        ),
        "timeline": _timeline(run, begin, from_ns, length_ns, shown),
        "window_use": _window_use(run),
        "causes": {
            **{outcome: top(run, outcome) if summary[outcome] else [] for outcome in CAUSES},
            "other": {outcome: summary[outcome] for outcome in ("rejected", "failed", "cancelled")},
        },
        "cost": cost,
    }


def names(paths: Sequence[str]) -> list[str]:
    """What to call the runs at ``paths``: the last parts of each that tell them apart, numbered where nothing does."""
    parts = [path.rstrip("/").split("/") if "://" in path else Path(path).resolve().parts for path in paths]
    for n in range(1, max(map(len, parts)) + 1):
        found = ["/".join(each[-n:]) for each in parts]
        if len(set(found)) == len(found):
            return found
    return [f"{each[-1]} ({i + 1})" for i, each in enumerate(parts)]


def _counts(run: Run) -> dict[str, Any]:
    last = pl.max_horizontal(pl.col("arrival_ns").max(), pl.col("reply_ns").max())
    found = run.requests.select(
        requests=pl.len(), served=pl.col("outcome").count(), begin_ns=pl.col("arrival_ns").min(), end_ns=last
    )
    return found.collect(engine="streaming").row(0, named=True)


def _by_time(run: Run, begin: int, span_ns: int) -> pl.DataFrame:
    """Requests by model, bucket of arrival and outcome."""
    width = -(-span_ns // BUCKETS)
    return (
        run.requests.select("model", "outcome", bucket=(pl.col("arrival_ns") - begin) // width)
        .group_by("model", "bucket", "outcome")
        .agg(pl.len().alias("n"))
        .collect(engine="streaming")
    )


def _latency(run: Run) -> pl.DataFrame:
    """Answered requests by model and latency: columns model, ms (middle of the bin), n; by ms."""
    us = ((pl.col("reply_ns") - pl.col("arrival_ns")) / 1_000).clip(lower_bound=1e-3)
    return (
        run.requests.filter(pl.col("outcome").is_in(["ok", "late"]))
        .select("model", bin=(us.log() * _BINS_PER_E).floor().cast(pl.Int32))
        .group_by("model", "bin")
        .agg(pl.len().alias("n"))
        .select("model", ms=((pl.col("bin") + 0.5) / _BINS_PER_E).exp() / 1_000, n="n")
        .sort("ms")
        .collect(engine="streaming")
    )


def _batch_sizes(run: Run) -> pl.DataFrame:
    found = run.batches.group_by("model", "size").agg(pl.len().alias("batches"))
    return found.collect(engine="streaming").sort("model", "size")


def _quantile(latency: pl.DataFrame, share: float) -> float | None:
    total = float(latency["n"].sum())
    if not total:
        return None
    by_ms = latency.group_by("ms").agg(pl.col("n").sum()).sort("ms")
    return float(by_ms.filter(pl.col("n").cum_sum() >= share * total)["ms"][0])


def _figures(by_time: pl.DataFrame, latency: pl.DataFrame, sizes: pl.DataFrame, span_s: float) -> list[dict[str, Any]]:
    """Of the whole run, then of each model, the one with the most requests first."""
    counts = by_time.group_by("model").agg(
        requests=pl.col("n").sum(),
        **{name: pl.col("n").filter(pl.col("outcome") == name).sum() for name in _OUTCOMES},
    )
    rows = counts.sort("requests", "model", descending=[True, False]).to_dicts()
    whole = {"model": None, **{name: sum(row[name] for row in rows) for name in ("requests", *_OUTCOMES)}}
    for row in (whole, *rows):
        mine = pl.lit(True) if row["model"] is None else pl.col("model") == row["model"]
        answered, batches = latency.filter(mine), sizes.filter(mine)
        served = sum(row[name] for name in _OUTCOMES)
        n_batches = float(batches["batches"].sum())
        row |= {
            "attainment": row["ok"] / served if served else None,
            "goodput_hz": row["ok"] / span_s,
            "offered_hz": row["requests"] / span_s,
            "p50_ms": _quantile(answered, 0.5),
            "p99_ms": _quantile(answered, 0.99),
            "mean_batch": float((batches["size"] * batches["batches"]).sum()) / n_batches if n_batches else None,
        }
    return [whole, *rows]


def _slo_ms(run: Run, model: str) -> float | None:
    slos = {described["name"]: described.get("slo_ns") for described in run.info.get("models", [])}
    slo_ns = slos.get(model)
    return None if slo_ns is None else slo_ns / NS_PER_MS


def _curve(latency: pl.DataFrame, requests: int) -> list[dict[str, float]]:
    """Latency in ms, and the share of all requests that were answered within it: up to ``CURVE_POINTS`` points."""
    by_ms = (
        latency.group_by("ms").agg(pl.col("n").sum()).sort("ms").with_columns(share=pl.col("n").cum_sum() / requests)
    )
    if by_ms.height > CURVE_POINTS:
        step = (by_ms["share"] * CURVE_POINTS).floor()
        keep = (step != step.shift(1)).fill_null(True)
        # Equal steps of share in the middle, and all of the slowest hundredth, where the tail is.
        keep |= by_ms["share"] >= 0.99 * by_ms["share"][-1]
        by_ms = by_ms.filter(keep)
    return by_ms.select("ms", "share").to_dicts()


def _over_time(by_time: pl.DataFrame, shown: list[str], span_s: float) -> dict[str, Any]:
    """Attainment (None where nothing arrived) and goodput by model and time of arrival."""
    width_s = span_s / BUCKETS
    name = pl.when(pl.col("model").is_in(shown)).then(pl.col("model")).otherwise(pl.lit(OTHERS))
    rows = (
        by_time.with_columns(model=name)
        .group_by("model", "bucket")
        .agg(requests=pl.col("n").sum(), ok=pl.col("n").filter(pl.col("outcome") == "ok").sum())
    )
    every = rows.select(pl.col("model").unique()).join(pl.DataFrame({"bucket": range(BUCKETS)}), how="cross")
    rows = (
        every.with_columns(pl.col("bucket").cast(rows["bucket"].dtype))
        .join(rows, on=["model", "bucket"], how="left")
        .with_columns(pl.col("requests", "ok").fill_null(0))
        .sort("model", "bucket")
        .select(
            "model",
            t_s=(pl.col("bucket") + 0.5) * width_s,
            requests="requests",
            attainment=pl.when(pl.col("requests") > 0).then(pl.col("ok") / pl.col("requests")),
            offered_hz=pl.col("requests") / width_s,
            goodput_hz=pl.col("ok") / width_s,
        )
    )
    return {"bucket_s": width_s, "rows": rows.to_dicts()}


def _timeline(run: Run, begin: int, from_ns: int, length_ns: int | None, shown: list[str]) -> dict[str, Any]:
    """Batches at GPUs in a part of the run: the first ``MOST_BATCHES`` of ``MOST_GPUS`` GPUs, those of lowest rank."""
    low = begin + from_ns
    ran = run.batches.filter(pl.col("end_ns") > low).filter(pl.col("start_ns").is_not_null())
    if length_ns is not None:
        ran = ran.filter(pl.col("start_ns") < low + length_ns)
    used = ran.select(pl.col("gpu").unique()).collect(engine="streaming")["gpu"]
    ranks = run.gpus.select("gpu", "rank").collect().unique("gpu", keep="first")
    order = pl.DataFrame({"gpu": used}).join(ranks, on="gpu", how="left").sort("rank", "gpu")["gpu"].to_list()
    gpus = order[:MOST_GPUS]
    columns = ("gpu", "model", "size", "start_ns", "end_ns")
    bars = ran.filter(pl.col("gpu").is_in(gpus)).select(columns).bottom_k(MOST_BATCHES + 1, by="start_ns")
    found = bars.collect(engine="streaming").sort("start_ns", "gpu")
    cut = found.height > MOST_BATCHES
    if cut and length_ns is None:
        high = int(found["start_ns"][MOST_BATCHES])
    else:
        high = low + length_ns if length_ns is not None else max(int(found["end_ns"].max() or low), low + 1)  # type: ignore[arg-type]
    return {
        "from_s": from_ns / NS_PER_S,
        "to_s": (high - begin) / NS_PER_S,
        "gpus": gpus,
        "gpus_left_out": len(order) - len(gpus),
        "cut": cut,
        "batches": [
            {
                "gpu": row["gpu"],
                "model": row["model"] if row["model"] in shown else OTHERS,
                "size": row["size"],
                "start_s": (max(row["start_ns"], low) - begin) / NS_PER_S,
                "end_s": (min(row["end_ns"], high) - begin) / NS_PER_S,
            }
            for row in found.head(MOST_BATCHES).to_dicts()
        ],
    }


def _window_use(run: Run) -> dict[str, Any]:
    """How many batches left before, within and after their window, and how long after its opening, ms.

    histogram: at_ms (the begin of a bin, bin_ms wide), batches. The outermost hundredth on
    either side is in the end bins.
    """
    col = pl.col
    at = col("dispatch_ns") - col("window_open_ns")
    windows = run.batches.filter(col("window_open_ns").is_not_null() & col("window_close_ns").is_not_null())
    counts = (
        windows.select(
            before=(at < 0).sum(),
            within=(col("dispatch_ns").is_between("window_open_ns", "window_close_ns")).sum(),
            after=(col("dispatch_ns") > col("window_close_ns")).sum(),
            low=at.quantile(0.01),
            high=at.quantile(0.99),
        )
        .collect(engine="streaming")
        .row(0, named=True)
    )
    low, high = int(counts.pop("low") or 0), int(counts.pop("high") or 0)
    width = max((high - low) // 40, NS_PER_MS // 20)
    bins = (
        windows.select(bin=(at.clip(low, high) - low) // width)
        .group_by("bin")
        .agg(pl.len().alias("batches"))
        .collect(engine="streaming")
        .sort("bin")
    )
    histogram = bins.select(at_ms=(low + col("bin") * width) / NS_PER_MS, batches="batches").to_dicts()
    return {**counts, "bin_ms": width / NS_PER_MS, "histogram": histogram}


def _cost(run: Run, prices: Prices, begin: int, end: int) -> dict[str, Any]:
    """GPU-hours from ready to leave, or from the first arrival to the end of the run, and USD by class.

    GPUs are paid as parts of their instance; usd is None where a class has no known price.
    """
    there = presence_intervals(run)
    hours = (
        (pl.col("leave_ns").fill_null(end).clip(upper_bound=end) - pl.col("ready_ns").clip(lower_bound=begin))
        .clip(lower_bound=0)
        .truediv(3600 * NS_PER_S)
    )
    rows = []
    by_class = (
        there.with_columns(hours=hours)
        .group_by("gpu_class")
        .agg(gpus=pl.col("gpu").n_unique(), hours=pl.col("hours").sum())
    )
    for row in by_class.sort("gpu_class").to_dicts():
        known = prices.find(row["gpu_class"] or "")
        rows.append(
            {
                "gpu_class": row["gpu_class"],
                "gpus": row["gpus"],
                "gpu_hours": row["hours"],
                "rented_as": known.name if known else None,
                "usd": None if known is None else row["hours"] * known.usd_per_hour / known.gpus,
            }
        )
    usd = [row["usd"] for row in rows]
    return {
        "gpu_hours": math.fsum(row["gpu_hours"] for row in rows),
        "usd": None if not usd or None in usd else math.fsum(usd),
        "rows": rows,
        "basis": prices.basis(),
    }
