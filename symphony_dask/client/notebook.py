"""Shows the client's objects in notebooks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from symphony_dask.units import format_duration


def table(title: str, rows: Iterable[tuple[str, Any]]) -> str:
    """Names and values below a title."""
    lines = "".join(f"<tr>{_cell(name, 'th')}{_cell(value)}</tr>" for name, value in rows)
    return f"<div><strong>{escape(title)}</strong><table>{lines}</table></div>"


def grid(title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Rows below column names and a title."""
    head = "".join(_cell(name, "th") for name in columns)
    lines = "".join("<tr>" + "".join(map(_cell, row)) + "</tr>" for row in rows)
    return f"<div><strong>{escape(title)}</strong><table><tr>{head}</tr>{lines}</table></div>"


def serving_html(address: str, names: Sequence[str], status: Mapping[str, Any] | None) -> str:
    """A cluster by ``Serving.status()``, with the names of its pipelines; where that could not be had, by the names of
    all that is known to be deployed.
    """
    if status is None:
        return table(
            "Symphony", [("scheduler", address), ("models", ", ".join(names) or "none"), ("status", "unknown")]
        )
    workers = status["workers"].values()
    serving, slots = sum(w.get("serving") or 0 for w in workers), sum(w.get("slots") or 0 for w in workers)
    rows: list[tuple[str, Any]] = [
        ("scheduler", address),
        ("policy", status["policy"]),
        ("GPU slots", f"{serving} of {slots} serve"),
    ]
    models = [
        (name, format_duration(m["slo_ns"]), m["queued"], f"{m['rate_hz']:.0f}", _mean(m["mean_batch"]), _ended(m))
        for name, m in sorted(status["models"].items())
    ]
    columns = ("model", "SLO", "queued", "requests/s", "mean batch", "outcomes")
    if names:
        rows.append(("pipelines", ", ".join(names)))
    return table("Symphony", rows) + grid("Models", columns, models)


def latency_text(profiles: Mapping[str, Any]) -> str:
    """l(1) and the largest batch by GPU class."""
    return ", ".join(
        f"{gpu_class}: {format_duration(int(p.latency_ns()[1]))}, up to {p.max_batch} in "
        f"{format_duration(int(p.latency_ns()[p.max_batch]))}"
        for gpu_class, p in sorted(profiles.items())
    )


def _cell(value: object, tag: str = "td") -> str:
    return f'<{tag} style="text-align: left">{escape(str(value))}</{tag}>'


def _mean(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def _ended(model: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {n}" for name, n in model["outcomes"].items() if n) or "none yet"
