"""Draws reports of runs as one PNG, a column for each run; needs matplotlib, the extra ``plot``."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from symphony_dask.cli.partial_files import whole_file
from workloads.analysis.report import OTHERS
from workloads.analysis.svg import COLOURS, REST

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_STYLES = ("-", "--", ":", "-.")


def draw(reports: Sequence[dict[str, Any]], path: str) -> None:
    """Write the figures of what ``report.report`` gave for each run."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    models = list(dict.fromkeys(m for r in reports for m in r["shown_models"] if m != OTHERS))
    styles = {m: (COLOURS[i % len(COLOURS)], _STYLES[i % len(_STYLES)]) for i, m in enumerate(models)}
    styles[OTHERS] = (REST, "-")
    panels = (_latency, _attainment, _goodput, _sizes, _gantt, _windows, _causes)
    figure = Figure(figsize=(1.5 + 6.5 * len(reports), 3.1 * len(panels)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(panels), len(reports), squeeze=False)
    for column, r in enumerate(reports):
        axes[0][column].set_title(f"{r['name']} ({r['label']}, {r['policy'] or 'policy unknown'})", fontsize=11)
        for row, panel in enumerate(panels):
            axes[row][column].spines[["top", "right"]].set_visible(False)
            panel(axes[row][column], r, styles)
    for row in range(4):  # what is compared has one scale
        lows, highs = zip(*(ax.get_xlim() for ax in axes[row]), strict=True)
        for ax in axes[row]:
            ax.set_xlim(min(lows), max(highs))
    with whole_file(path) as beside:
        figure.savefig(beside, dpi=110)


def _latency(ax: Axes, r: dict[str, Any], styles: dict[str, tuple[str, str]]) -> None:
    slos = sorted({m["slo_ms"] for m in r["by_model"] if m["slo_ms"]})
    ms = [0.0, *(p["ms"] for p in r["latency"])]
    ax.step(ms, [0.0, *(100 * p["share"] for p in r["latency"])], where="post", color=COLOURS[0])
    for slo in slos[:4]:
        ax.axvline(slo, color="0.4", linestyle=":")
        ax.annotate(f"SLO {slo:.4g} ms", (slo, 3), fontsize=8, rotation=90, ha="right")
    if slos:
        ax.set_xlim(0, 1.03 * max(min(ms[-1], 4 * slos[-1]), slos[-1]))
    ax.set_ylim(0, 102)
    _name(ax, "latency, ms", "requests answered within, %")


def _over_time(ax: Axes, r: dict[str, Any], styles: dict[str, tuple[str, str]], key: str, factor: float) -> None:
    for model, (colour, line) in styles.items():
        rows = [row for row in r["over_time"]["rows"] if row["model"] == model]
        if rows:
            ax.plot(
                [row["t_s"] for row in rows],
                [math.nan if row[key] is None else factor * row[key] for row in rows],
                line,
                color=colour,
                label=model,
                lw=1.3,
            )
    ax.legend(fontsize=8, loc="lower left")


def _attainment(ax: Axes, r: dict[str, Any], styles: dict[str, tuple[str, str]]) -> None:
    _over_time(ax, r, styles, "attainment", 100)
    _name(ax, "time, s", "SLO attainment, %")


def _goodput(ax: Axes, r: dict[str, Any], styles: dict[str, tuple[str, str]]) -> None:
    _over_time(ax, r, styles, "goodput_hz", 1)
    ax.set_ylim(bottom=0)
    _name(ax, "time, s", "goodput, requests/s")


def _sizes(ax: Axes, r: dict[str, Any], styles: dict[str, tuple[str, str]]) -> None:
    ax.bar([s["size"] for s in r["batch_sizes"]], [s["batches"] for s in r["batch_sizes"]], color=COLOURS[0])
    _name(ax, "requests in a batch", "batches")


def _gantt(ax: Axes, r: dict[str, Any], styles: dict[str, tuple[str, str]]) -> None:
    t = r["timeline"]
    row = {g: i for i, g in enumerate(t["gpus"])}
    for b in t["batches"]:
        ax.barh(row[b["gpu"]], b["end_s"] - b["start_s"], left=b["start_s"], height=0.75, color=styles[b["model"]][0])
    ax.set_xlim(t["from_s"], t["to_s"])
    ax.set_yticks(range(len(row)), [f"GPU {g}" for g in t["gpus"]], fontsize=8)
    _name(ax, "time, s", "")


def _windows(ax: Axes, r: dict[str, Any], styles: dict[str, tuple[str, str]]) -> None:
    use = r["window_use"]
    at = [h["at_ms"] for h in use["histogram"]]
    ax.bar(at, [h["batches"] for h in use["histogram"]], width=use["bin_ms"], align="edge", color=COLOURS[2])
    ax.axvline(0, color="0.3", linestyle=":")
    _name(ax, "dispatch after the window's opening, ms", "batches")


def _causes(ax: Axes, r: dict[str, Any], styles: dict[str, tuple[str, str]]) -> None:
    bars = [(f"{kind}: {row['meaning']}", row["requests"]) for kind in ("late", "dropped") for row in r["causes"][kind]]
    bars += [(kind, n) for kind, n in r["causes"]["other"].items() if n]
    ax.barh([textwrap.fill(name, 26) for name, _ in bars], [n for _, n in bars], color=COLOURS[3])
    ax.invert_yaxis()
    if not bars:
        ax.set_yticks([])
        ax.annotate("all answered in time", (0.5, 0.5), xycoords="axes fraction", ha="center")
    ax.tick_params(axis="y", labelsize=8)
    _name(ax, "requests", "")


def _name(ax: Axes, x: str, y: str) -> None:
    ax.set_xlabel(x)
    ax.set_ylabel(y)
