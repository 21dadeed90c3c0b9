"""Draws the comparisons as PNG figures. They need matplotlib, the extra ``plot``; nothing else of the project does."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from symphony_dask.cli.partial_files import whole_file
from symphony_dask.errors import BadInput
from symphony_dask.units import NS_PER_MS, format_duration
from workloads.compare.cells import CELL_SCHEMA
from workloads.compare.compare import DEFAULT

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Colour and marker of each policy, the same in all figures; colours that the colour-blind can tell apart (Okabe, Ito).
_STYLES = {
    "adaptive": ("#0072B2", "o"),
    "deferred": ("#E69F00", "s"),
    "eager": ("#009E73", "^"),
    "clockwork": ("#CC79A7", "D"),
    "nexus": ("#D55E00", "v"),
    "shepherd": ("#56B4E9", "P"),
    "replica-timeout": ("#7F7F7F", "X"),
    "clipper": ("#000000", "*"),
}
_OTHER = (("#8C6D31", "<"), ("#5254A3", ">"), ("#843C39", "h"))

_DPI = 130

#: Panels on one figure; there is a figure more for each so many settings beyond.
_MOST_PANELS = 12


def require_matplotlib() -> None:
    """Raises ``BadInput`` with the remedy where matplotlib is not installed."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise BadInput(
            f"figures need matplotlib, which cannot be imported ({error}): pip install 'symphony-dask[plot]'"
        ) from None


def goodput_figures(frame: pl.DataFrame, folder: Path) -> list[Path]:
    """Writes ``bound_fraction.png``, ``ratio.png`` and ``goodput_models.png`` from ``compare.compare_goodput``.

    Without the default policy among others there are no ratios, and no figure of them.
    """
    others = [policy for policy in _policies(frame) if policy != DEFAULT]
    files = [_bound_fraction(frame, folder / "bound_fraction.png")]
    if len(others) < len(_policies(frame)) and others:
        files.append(_ratio(frame, others, folder / "ratio.png"))
    return [*files, *_goodput_models(frame, folder)]


def needed_figures(frame: pl.DataFrame, folder: Path) -> list[Path]:
    """Writes ``gpus_needed.png`` from ``gpus_needed.gpus_needed``: GPUs against load, a panel a setting."""

    def panel(axes: Axes, rows: pl.DataFrame) -> None:
        ideal = rows.unique("load_hz").sort("load_hz").filter(pl.col("ideal_gpus").is_not_null())
        axes.plot(ideal["load_hz"], ideal["ideal_gpus"], color="black", linestyle="--", label="ideal")
        for policy in _policies(rows):
            _line(axes, rows.filter(pl.col("policy") == policy).sort("load_hz"), policy, "load_hz", "gpus_needed")
        if rows["load_hz"].n_unique() > 1 and rows["load_hz"].max() > 4 * rows["load_hz"].min():  # type: ignore[operator]
            axes.set_xscale("log")
            axes.set_yscale("log")
        _plain_numbers(axes)

    setting = [name for name in CELL_SCHEMA if name != "gpus"]
    title = "GPUs needed for 99 % of requests within their SLO (simulated)"
    return _panels(frame, setting, panel, title, "load, requests/s", "GPUs", folder, "gpus_needed")


def used_figures(frame: pl.DataFrame, folder: Path) -> list[Path]:
    """Writes ``gpus_used.png`` from ``gpus_used.gpus_used``: GPUs busy and in use against load, a panel a cell."""
    frame = frame.filter(pl.col("ideal_gpus").is_not_null())

    def panel(axes: Axes, rows: pl.DataFrame) -> None:
        ideal = rows.sort("load_hz")
        axes.plot(ideal["load_hz"], ideal["ideal_gpus"], color="black", linestyle="--", label="ideal")
        axes.fill_between(
            ideal["load_hz"], ideal["ideal_gpus"], ideal["most_gpus"], color="0.88", label="up to 1.05 ideal + 1"
        )
        for policy in _policies(rows):
            mine = rows.filter(pl.col("policy") == policy).sort("load_hz")
            _line(axes, mine, policy, "load_hz", "busy_gpus", f"{policy}, busy")
            colour, _ = _style(policy)
            axes.step(
                mine["load_hz"],
                mine["gpus_in_use"],
                where="mid",
                color=colour,
                linewidth=1.3,
                linestyle=":",
                label=f"{policy}, in use",
            )
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0)
        _plain_numbers(axes)

    title = (
        "GPUs at 10 to 100 % of each policy's own goodput (simulated)\n"
        "busy: on average over time; in use: do 99 % of the work"
    )
    return _panels(frame, list(CELL_SCHEMA), panel, title, "load, requests/s", "GPUs", folder, "gpus_used")


def _bound_fraction(frame: pl.DataFrame, path: Path) -> Path:
    """Goodput as a fraction of the bound: a panel for each profile and number of GPUs, a column for each cell."""
    groups = frame.partition_by(["profile", "gpus", "popularity"], maintain_order=True)
    policies = _policies(frame)
    widest = max(rows.select(list(CELL_SCHEMA)).n_unique() for rows in groups)
    wide = min(max(8.0, 0.34 * widest + 2), 20.0)
    figure = _figure(wide, 3.4 * len(groups) + 1)
    for i, rows in enumerate(groups):
        axes = figure.add_subplot(len(groups), 1, i + 1)
        cells = rows.select("models", "slo_ms", "shape").unique().sort("models", "slo_ms", "shape").rows()
        column = {cell: x for x, cell in enumerate(cells)}
        for p, policy in enumerate(policies):
            mine = rows.filter((pl.col("policy") == policy) & pl.col("bound_fraction").is_not_null())
            offset = 0.5 * (p - (len(policies) - 1) / 2) / max(len(policies), 2)
            at = [column[cell] + offset for cell in mine.select("models", "slo_ms", "shape").rows()]
            colour, marker = _style(policy)
            axes.scatter(at, mine["bound_fraction"], s=26, color=colour, marker=marker, label=policy, zorder=3)
        for x in range(1, len(cells)):
            if cells[x][0] != cells[x - 1][0]:
                axes.axvline(x - 0.5, color="0.35", linewidth=1)
            elif cells[x][1] != cells[x - 1][1]:
                axes.axvline(x - 0.5, color="0.8", linewidth=1)
        axes.axhline(1, color="0.35", linewidth=1, linestyle="--")
        axes.set_xlim(-0.5, len(cells) - 0.5)
        axes.set_ylim(bottom=0)
        axes.set_xticks(range(len(cells)), [f"{shape:g}" for _, _, shape in cells], fontsize=8)
        for models, middle in _middles([cell[0] for cell in cells]):
            text = f"{models} model{'s' if models > 1 else ''}"
            axes.annotate(text, (middle, 0), (0, -34), "data", "offset points", ha="center", fontsize=9, weight="bold")
        for (_, slo_ms), middle in _middles([cell[:2] for cell in cells]):
            text = format_duration(slo_ms * NS_PER_MS)
            axes.annotate(text, (middle, 0), (0, -23), "data", "offset points", ha="center", fontsize=8)
        axes.annotate("shape\nSLO", (0, 0), (-8, -22), "axes fraction", "offset points", ha="right", fontsize=8)
        axes.set_ylabel("goodput / bound")
        axes.set_title(f"{rows['profile'][0]}, {rows['gpus'][0]} GPUs{_popularity(rows)}", loc="left", fontsize=10)
        axes.grid(axis="y", color="0.9")
    _legend(figure)
    figure.suptitle("Goodput at 99 % as a fraction of the bound (simulated)")
    return _save(figure, path)


def _ratio(frame: pl.DataFrame, others: Sequence[str], path: Path) -> Path:
    """The default policy's goodput over each other's: every cell as a point, and the part of cells below a ratio."""
    figure = _figure(11, 0.5 * len(others) + 3.2)
    strip, steps = figure.subplots(1, 2, width_ratios=(1.5, 1))
    scatter = np.random.Generator(np.random.PCG64(0))
    for row, policy in enumerate(others):
        mine = frame.filter(pl.col("policy") == policy)
        ratios = mine["adaptive_over_policy"].drop_nulls().sort().to_numpy()
        colour, marker = _style(policy)
        missing = mine.height - len(ratios)
        if missing:
            text = f"{missing} of {mine.height}\nwithout a ratio"
            strip.annotate(text, (1, row), (4, 0), ("axes fraction", "data"), "offset points", va="center", fontsize=7)
        if not len(ratios):
            continue
        y = row + scatter.uniform(-0.25, 0.25, len(ratios))
        strip.scatter(ratios, y, s=18, color=colour, marker=marker, alpha=0.6, linewidths=0)
        median = float(np.median(ratios))
        strip.plot([median, median], [row - 0.36, row + 0.36], color="black", linewidth=2)
        strip.annotate(f"{median:.2f}", (median, row - 0.36), (0, 1), "data", "offset points", ha="center", fontsize=8)
        parts = np.arange(1, len(ratios) + 1) / len(ratios)
        steps.step([ratios[0], *ratios], [0, *parts], where="post", color=colour, label=policy)
    strip.set_title("each cell; the bar is the median", fontsize=10)
    steps.set_ylabel("part of the cells at or below")
    steps.set_title("all cells", fontsize=10)
    steps.legend(fontsize=8, loc="lower right")
    for axes in (strip, steps):
        axes.set_xscale("log")
        axes.axvline(1, color="0.35", linewidth=1, linestyle="--")
        axes.set_xlabel(f"goodput of {DEFAULT} / goodput of the other")
        axes.grid(axis="x", color="0.9")
        _plain_numbers(axes)
    strip.set_yticks(range(len(others)), others)
    strip.set_ylim(len(others) - 0.4, -0.6)
    figure.suptitle(f"Goodput of {DEFAULT} over that of the others (simulated)")
    return _save(figure, path)


def _goodput_models(frame: pl.DataFrame, folder: Path) -> list[Path]:
    """Goodput against the number of models, for the least bursty of the shapes."""
    shape = max(frame["shape"].to_list())

    def panel(axes: Axes, rows: pl.DataFrame) -> None:
        bound = rows.unique("models").sort("models")
        axes.plot(bound["models"], bound["bound_hz"], color="black", linestyle="--", label="bound")
        for policy in _policies(rows):
            _line(axes, rows.filter(pl.col("policy") == policy).sort("models"), policy, "models", "goodput_hz")
        axes.set_xscale("log")
        axes.set_xticks(bound["models"].to_list())
        axes.minorticks_off()
        axes.set_ylim(bottom=0)
        _plain_numbers(axes)

    by = [name for name in CELL_SCHEMA if name not in ("models", "shape")]
    rows = frame.filter(pl.col("shape") == shape).sort("profile", "gpus", "slo_ms", descending=[True, False, False])
    title = f"Goodput at 99 % against the number of models, gamma shape {shape:g} (simulated)"
    return _panels(rows, by, panel, title, "models", "goodput, requests/s", folder, "goodput_models")


def _panels(
    frame: pl.DataFrame,
    by: Sequence[str],
    panel: Callable[[Any, pl.DataFrame], None],
    title: str,
    x_label: str,
    y_label: str,
    folder: Path,
    name: str,
) -> list[Path]:
    """A panel for each setting, on as many figures as that takes: NAME.png, or NAME-1.png and so on."""
    groups = frame.partition_by(by, maintain_order=True)
    pages = [groups[i : i + _MOST_PANELS] for i in range(0, len(groups), _MOST_PANELS)]
    files = []
    for number, page in enumerate(pages, 1):
        columns = 2 if len(page) in (2, 4) else min(3, len(page))
        lines = math.ceil(len(page) / columns)
        figure = _figure(max(7.0, 4.4 * columns), 3.1 * lines + 1.4)
        for i, rows in enumerate(page):
            axes = figure.add_subplot(lines, columns, i + 1)
            panel(axes, rows)
            axes.set_title(_setting(rows, by), fontsize=9)
            axes.grid(color="0.9")
            if i >= len(page) - columns:
                axes.set_xlabel(x_label)
            if i % columns == 0:
                axes.set_ylabel(y_label)
        _legend(figure)
        figure.suptitle(title if len(pages) == 1 else f"{title}, {number} of {len(pages)}")
        files.append(_save(figure, folder / (f"{name}.png" if len(pages) == 1 else f"{name}-{number}.png")))
    return files


def _setting(rows: pl.DataFrame, by: Sequence[str]) -> str:
    row = rows.row(0, named=True)
    texts = {
        "profile": row["profile"],
        "models": f"{row['models']} model{'s' if row['models'] > 1 else ''}",
        "gpus": f"{row.get('gpus')} GPUs",
        "slo_ms": f"SLO {format_duration(row['slo_ms'] * NS_PER_MS)}",
        "shape": f"shape {row['shape']:g}",
    }
    return ", ".join(texts[name] for name in by if name in texts) + _popularity(rows)


def _popularity(rows: pl.DataFrame) -> str:
    popularity: str = rows["popularity"][0]
    return "" if popularity == "equal" else f", {popularity}"


def _policies(frame: pl.DataFrame) -> list[str]:
    return frame["policy"].unique(maintain_order=True).to_list()


def _style(policy: str) -> tuple[str, str]:
    return _STYLES.get(policy) or _OTHER[sum(policy.encode()) % len(_OTHER)]


def _line(axes: Axes, rows: pl.DataFrame, policy: str, x: str, y: str, label: str | None = None) -> None:
    """A gap where there is no figure."""
    colour, marker = _style(policy)
    values = rows[y].cast(pl.Float64).fill_null(float("nan"))
    front = 4 if policy == DEFAULT else 3
    axes.plot(
        rows[x], values, color=colour, marker=marker, markersize=5, linewidth=1.4, label=label or policy, zorder=front
    )


def _middles(keys: Sequence[Any]) -> list[tuple[Any, float]]:
    """Each run of equal keys, and the middle of its positions."""
    runs: dict[Any, list[int]] = {}
    for x, key in enumerate(keys):
        runs.setdefault(key, []).append(x)
    return [(key, (xs[0] + xs[-1]) / 2) for key, xs in runs.items()]


def _plain_numbers(axes: Axes) -> None:
    """Numbers as people write them, and few of them on logarithmic axes."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter

    for axis, scale in ((axes.xaxis, axes.get_xscale()), (axes.yaxis, axes.get_yscale())):
        if scale == "log" and not isinstance(axis.get_major_locator(), FixedLocator):
            low, high = axis.get_view_interval()
            axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 100 * low else (1,)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}" if value < 1e5 else f"{value:,.0f}"))
        axis.set_minor_formatter(NullFormatter())


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=_DPI, layout="constrained")


def _legend(figure: Figure) -> None:
    """One legend for all panels, below them."""
    entries = {}
    for axes in figure.axes:
        entries.update({label: handle for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)})
    inches = 0.7 + 0.085 * max(map(len, entries))
    columns = min(len(entries), max(1, int(figure.get_figwidth() / inches)))
    figure.legend(
        entries.values(), entries.keys(), loc="outside lower center", ncols=columns, frameon=False, fontsize=9
    )


def _save(figure: Figure, path: Path) -> Path:
    with whole_file(path) as beside:
        figure.savefig(beside)
    return path
