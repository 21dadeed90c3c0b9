"""Writes the comparisons as tables to read: on a terminal, or as Markdown for a document."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import polars as pl

from symphony_dask.units import NS_PER_MS, format_duration
from workloads.compare.cells import CELL_SCHEMA
from workloads.compare.compare import DEFAULT

if TYPE_CHECKING:
    from rich.table import Table as RichTable

#: What stands for a figure that there is not.
NONE = "–"


@dataclass(frozen=True)
class Table:
    """Cells of text under heads; the first ``left`` columns are words, the others numbers."""

    title: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    left: int = 1
    note: str = ""

    def rich(self) -> RichTable:
        """For ``rich.console.Console.print``."""
        from rich.table import Table as Rich

        table = Rich(title=self.title, caption=self.note or None, caption_justify="left")
        for i, head in enumerate(self.heads):
            table.add_column(head, justify="left" if i < self.left else "right", no_wrap=True)
        for row in self.rows:
            table.add_row(*row)
        return table

    def markdown(self) -> str:
        rule = ["---" if i < self.left else "---:" for i in range(len(self.heads))]
        heads = [head.replace("\n", " ") for head in self.heads]
        lines = [f"| {' | '.join(cells)} |" for cells in (heads, rule, *self.rows)]
        return "\n".join([f"**{self.title}**", "", *lines, *(["", self.note] if self.note else [])])


def goodput_tables(frame: pl.DataFrame, summary: pl.DataFrame) -> list[Table]:
    """A row for each cell, and the summary, from ``compare.compare_goodput`` and ``compare.summary``."""
    policies = frame["policy"].unique(maintain_order=True).to_list()
    compared = DEFAULT in policies
    others = [policy for policy in policies if policy != DEFAULT]
    heads = [*_CELL_HEADS, "bound\nreq/s"]
    if compared:
        heads += [f"{DEFAULT}\nreq/s", "of the\nbound", "mean\nbatch"]
        heads += ["over\nbetter"] if frame["adaptive_over_better"].count() else []
        heads += [f"over\n{policy}" for policy in others]
    else:
        heads += [f"{policy}\nreq/s" for policy in policies]
    rows = []
    for of_cell in _groups(frame, list(CELL_SCHEMA)):
        by_policy = {row["policy"]: row for row in of_cell}
        cells = [*_cell(of_cell[0]), _integer(of_cell[0]["bound_hz"])]
        if compared:
            ours = by_policy[DEFAULT]
            cells += [_integer(ours["goodput_hz"]), _percent(ours["bound_fraction"]), _tenths(ours["mean_batch"])]
            cells += [_ratio(ours["adaptive_over_better"])] if "over\nbetter" in heads else []
            cells += [_ratio(by_policy[policy]["adaptive_over_policy"]) for policy in others]
        else:
            cells += [_integer(by_policy[policy]["goodput_hz"]) for policy in policies]
        rows.append(cells)
    note = f"{NONE}: no scheduler can serve the cell, or the other one cannot place its models or serves nothing."
    if compared:
        note += f" over: {DEFAULT}'s goodput over the other's; better: of deferred and eager."
    spread = (("of bound", "bound_fraction", _percent), (f"{DEFAULT} over it", "ratio", _ratio))
    return [
        Table("Goodput at 99 % (simulated)", heads, rows, note=note),
        Table(
            "Over all cells (simulated)",
            ["policy", "cells", "served", *_spread_heads(spread), "cells where\n≥ 0.99", "cells where\n≥ 1.03"],
            [
                [
                    *(str(row[name]) for name in ("policy", "cells", "served")),
                    *_spread(row, spread),
                    *(str(row[name]) for name in ("within_1_percent", "ahead_by_3_percent")),
                ]
                for row in summary.to_dicts()
            ],
        ),
    ]


def needed_tables(frame: pl.DataFrame, summary: pl.DataFrame) -> list[Table]:
    """A row for each load, and the summary, from ``gpus_needed.gpus_needed`` and its ``summary``."""
    policies = frame["policy"].unique(maintain_order=True).to_list()
    setting = [name for name in CELL_SCHEMA if name != "gpus"]
    rows = []
    for of_load in _groups(frame, [*setting, "load_hz"]):
        needed = {row["policy"]: row["gpus_needed"] for row in of_load}
        first = [*_cell(of_load[0]), _integer(of_load[0]["load_hz"]), _tenths(of_load[0]["ideal_gpus"])]
        quirks = [row["policy"] for row in of_load if row["monotone"] is False]
        rows.append([*first, *(_integer(needed[policy]) for policy in policies), ", ".join(quirks)])
    heads = [head for head in _CELL_HEADS if head != "GPUs"]
    spread = (("over ideal", "over_ideal", _ratio), (f"saved by {DEFAULT}", "saving", _percent))
    return [
        Table(
            "GPUs needed for 99 % (simulated)",
            [*heads, "load\nreq/s", "ideal", *policies, "not\nmonotone"],
            rows,
            note=f"{NONE}: no number of GPUs that was tried is enough.",
        ),
        Table(
            "Over all loads (simulated)",
            ["policy", "loads", "served", *_spread_heads(spread)],
            [
                [row["policy"], str(row["loads"]), str(row["served"]), *_spread(row, spread)]
                for row in summary.to_dicts()
            ],
        ),
    ]


def used_tables(frame: pl.DataFrame, summary: pl.DataFrame) -> list[Table]:
    """A row for each load of each policy, and the summary, from ``gpus_used.gpus_used`` and its ``summary``."""
    rows = [
        [
            *_cell(row),
            row["policy"],
            _percent(row["part"], 0),
            _integer(row["load_hz"]),
            *(_tenths(row[name]) for name in ("ideal_gpus", "busy_gpus", "gpus_in_use", "most_gpus")),
            _yes(row["busy_within"]),
            _yes(row["in_use_within"]),
        ]
        for row in frame.to_dicts()
    ]
    figures = ["policy", "part", "load\nreq/s", "ideal\nGPUs", "busy\nGPUs", "in use", "1.05 ideal\n+ 1"]
    return [
        Table(
            "GPUs used at parts of each policy's own goodput (simulated)",
            [*_CELL_HEADS, *figures, "busy\nwithin", "in use\nwithin"],
            rows,
            note="busy: on average over time; in use: the least number of GPUs that do 99 % of the work.",
        ),
        Table(
            "Over all loads (simulated)",
            ["policy", "loads", "busy\nwithin", "in use\nwithin", "in use beyond\nideal, median", "worst"],
            [
                [
                    *(str(row[name]) for name in ("policy", "loads", "busy_within", "in_use_within")),
                    *(_tenths(row[name]) for name in ("beyond_ideal_median", "beyond_ideal_worst")),
                ]
                for row in summary.to_dicts()
            ],
        ),
    ]


_CELL_HEADS = ("profile", "models", "GPUs", "SLO", "shape")


def _cell(row: dict[str, Any]) -> list[str]:
    """The setting in words; Zipf popularity stands with the number of models, GPUs only where a row has them."""
    models = f"{row['models']}" if row["popularity"] == "equal" else f"{row['models']} {row['popularity']}"
    gpus = [str(row["gpus"])] if "gpus" in row else []
    return [row["profile"], models, *gpus, format_duration(row["slo_ms"] * NS_PER_MS), f"{row['shape']:g}"]


def _groups(frame: pl.DataFrame, by: Sequence[str]) -> Iterable[list[dict[str, Any]]]:
    return (group.to_dicts() for group in frame.partition_by(by, maintain_order=True))


_Spread = Sequence[tuple[str, str, Callable[[float | None], str]]]


def _spread_heads(spread: _Spread) -> list[str]:
    return [f"{title}\n{which}" for title, _, _ in spread for which in ("worst", "median", "best")]


def _spread(row: dict[str, Any], spread: _Spread) -> list[str]:
    return [text(row[f"{name}_{which}"]) for _, name, text in spread for which in ("worst", "median", "best")]


def significant(value: float, decimals: int = 1) -> str:
    """A figure of any size, with so many decimals, below 1 with enough to tell it from nothing: 1,234.5, 0.0123."""
    return f"{value:,.{decimals}f}" if abs(value) >= 1 or not value else f"{value:.3g}"


def _integer(value: float | None) -> str:
    return NONE if value is None else f"{value:,.0f}"


def _tenths(value: float | None) -> str:
    return NONE if value is None else f"{value:,.1f}"


def _percent(value: float | None, digits: int = 1) -> str:
    return NONE if value is None else f"{100 * value:.{digits}f} %"


def _ratio(value: float | None) -> str:
    return NONE if value is None else f"{value:.3f}" if value < 10 else f"{value:,.1f}"


def _yes(value: bool | None) -> str:
    return NONE if value is None else "yes" if value else "no"
