"""Turns the dispatcher's overview into the texts that the dashboard and ``symphony top`` show."""

from __future__ import annotations

import math
from typing import Any

from symphony_dask.observe.colours import is_busy
from symphony_dask.units import NS_PER_MS, format_duration

#: Keys of ``model_row`` and of ``gpu_row``, and their titles.
MODEL_COLUMNS = (
    ("model", "model"),
    ("slo", "SLO"),
    ("rate", "req/s"),
    ("goodput", "goodput/s"),
    ("attainment", "in time %"),
    ("p50", "p50 ms"),
    ("p99", "p99 ms"),
    ("queued", "queued"),
    ("batch", "batch"),
)

GPU_COLUMNS = (
    ("rank", "rank"),
    ("busy", "busy, last 10 s"),
    ("gpu_class", "class"),
    ("worker", "worker"),
    ("state", "state"),
)


def model_row(model: dict[str, Any]) -> dict[str, str]:
    """A model of ``Dispatcher.overview`` as texts, by ``MODEL_COLUMNS``."""
    return {
        "model": model["name"],
        "slo": format_duration(model["slo_ns"]),
        "rate": f"{model['rate_hz']:,.0f}",
        "goodput": f"{model['goodput_hz']:,.0f}",
        "attainment": percent(model["attainment"]),
        "p50": milliseconds(model["p50_ns"]),
        "p99": milliseconds(model["p99_ns"]),
        "queued": f"{model['queued']:,}",
        "batch": "-" if model["mean_batch"] is None else f"{model['mean_batch']:.1f}",
    }


def rules_text(model: dict[str, Any]) -> str:
    """By which rules a model of ``Dispatcher.overview`` started its batches: "packing 90 %, window 10 %"."""
    n = sum(model["rules"].values())
    return ", ".join(f"{rule} {100 * k / n:.0f} %" for rule, k in model["rules"].items()) or "-"


def by_activity(models: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Models of ``Dispatcher.overview``, the busy ones first: by the power of two of their rate, so that rows of about
    one rate do not change places at every look; then by name.
    """

    def key(model: dict[str, Any]) -> tuple[int, str]:
        rate_hz = max(model["rate_hz"], model["ended_hz"])
        return (-round(math.log2(1 + rate_hz)) - is_busy(model), model["name"])

    return sorted(models, key=key)


def gpu_row(gpu: dict[str, Any]) -> dict[str, Any]:
    """A GPU of ``Dispatcher.overview`` as texts, by ``GPU_COLUMNS``; busy is whole per cent."""
    return {
        "rank": str(gpu["rank"]),
        "busy": round(100 * gpu["busy"]),
        "gpu_class": gpu["gpu_class"],
        "worker": gpu["worker"],
        "state": gpu_state(gpu),
    }


def gpu_state(gpu: dict[str, Any]) -> str:
    """What a GPU of ``Dispatcher.overview`` is doing."""
    if gpu["draining"]:
        return "draining"
    return ("slow, " if gpu["slow"] else "") + ("running" if gpu["in_flight"] else "idle")


def percent(share: float | None) -> str:
    """A share as per cent, cut off and not rounded: 100 says that nothing was missed."""
    return "-" if share is None else f"{math.floor(share * 1000) / 10:g}"


def milliseconds(ns: int | None) -> str:
    if ns is None:
        return "-"
    ms = ns / NS_PER_MS
    return f"{ms:,.0f}" if ms >= 100 else f"{ms:.3g}"


def several(n: int, what: str) -> str:
    """ "1 client", "2 clients"."""
    return f"{n:,} {what}{'' if n == 1 else 's'}"


def fleet_lines(overview: dict[str, Any]) -> list[str]:
    """A line for each fleet, as its controller last saw it, and for each drain under way."""
    lines = []
    for name, fleet in overview["fleets"].items():
        instances = ", ".join(f"{n} {phase}" for phase, n in fleet["instances"].items() if n) or "no instances"
        wanted = f"{several(fleet['gpus'], 'GPU')} wanted"
        lines.append(f"fleet {name}: {instances}, {wanted}, {fleet['usd_per_hour']:.2f} USD an hour")
    for key, drain in overview["drains"].items():
        lines.append(f"{key} {drain['state']}, {drain['in_flight']} batches in flight: {drain['why']}")
    return lines
