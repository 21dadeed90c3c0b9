"""Compares the goodput of several schedulers over a grid of cells: fractions of the bound, and the default's lead.

Every figure is simulated. All policies of a cell are given the same arrivals.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import polars as pl

from symphony_dask.errors import BadInput
from symphony_dask.names import name_list
from workloads.compare.cells import CELL_SCHEMA, Cell
from workloads.compare.goodput import Found, Mix, expected_requests, over_seeds, search
from workloads.compare.policies import check_size, compile_policies, scheduler
from workloads.simulation.process_pool import OnProgress, no_progress, run_all

#: The policy that the others are compared with, and the two whose better it should not fall behind.
DEFAULT = "adaptive"
BETTER_OF = ("deferred", "eager")

#: What the summary calls the better of the two in each cell.
BETTER = "better of deferred and eager"

#: What a row tells; without goodput, no scheduler can meet the SLO at all, or this one finds no place for the models.
SERVED, NO_SCHEDULER_CAN, CANNOT_PLACE = "served", "no scheduler can", "cannot place"

#: Columns of the frame that ``compare_goodput`` returns.
SCHEMA: dict[str, Any] = {
    **CELL_SCHEMA,
    "policy": pl.String,
    "goodput_hz": pl.Float64,
    "low_hz": pl.Float64,
    "high_hz": pl.Float64,
    "bound_hz": pl.Float64,
    "bound_fraction": pl.Float64,
    "mean_batch": pl.Float64,
    "adaptive_over_policy": pl.Float64,
    "adaptive_over_better": pl.Float64,
    "outcome": pl.String,
    "seconds": pl.Float64,
    "seeds": pl.Int64,
}


@dataclass(frozen=True)
class Search:
    """For one policy's goodput in a cell, with one seed's arrivals; ``seconds`` is the length of each simulation."""

    cell: Cell
    policy: str
    seed: int
    bound_hz: float
    seconds: float

    @property
    def cost(self) -> float:
        """Requests in one simulation at the bound."""
        return self.bound_hz * self.seconds

    def mix(self) -> Mix:
        return Mix(self.cell.shares(), self.cell.shape, self.seed)

    def run(self) -> Found:
        """Where the bound is 0, there is nothing to search."""
        if self.bound_hz == 0:
            return Found(0.0, 0.0, False)
        models = self.cell.sim_models()
        return search(scheduler(self.policy), models, self.cell.gpus, self.mix(), self.bound_hz, self.seconds)


def searches(
    cells: Sequence[Cell], policies: Sequence[str], seeds: int, requests: int, seconds: float | None
) -> list[Search]:
    """By cell, then by policy, then by seed. Raises ``BadInput`` when a number is not positive."""
    if seeds < 1 or requests < 1 or not 0 < (1 if seconds is None else seconds) < math.inf:
        raise BadInput(f"seeds={seeds}, requests={requests}, seconds={seconds}: each must be positive and finite")
    found = []
    for cell in cells:
        bound_hz = cell.bound_hz()
        span_s = seconds or (cell.span_s(bound_hz, requests) if bound_hz > 0 else 0.0)
        for policy in policies:
            check_size(policy, expected_requests(bound_hz, span_s), cell.gpus, cell.models)
        found += [Search(cell, policy, seed, bound_hz, span_s) for policy in policies for seed in range(seeds)]
    return found


def compare_goodput(
    cells: Sequence[Cell],
    policies: Sequence[str],
    *,
    seeds: int = 1,
    requests: int = 200_000,
    seconds: float | None = None,
    processes: int | None = None,
    on_progress: OnProgress = no_progress,
) -> pl.DataFrame:
    """Goodput of each policy in each cell, a row each, with the columns of ``SCHEMA``.

    requests: aimed at in one simulation at the bound, within the limits of ``Cell.span_s``; seconds: instead of that.

    low_hz and high_hz are a confidence interval over the seeds, which with one seed is the figure itself.
    adaptive_over_policy is the default policy's goodput in the cell over this policy's, and adaptive_over_better over
    the better of deferred and eager (the same in all rows of a cell); null where either is missing, or the other is 0.
    Where ``outcome`` is not "served", there is no goodput. bound_fraction can pass 1 in bursty cells, since the bound
    is one for arrivals at their mean spacing.

    Raises ``BadInput`` when a policy is unknown or an argument cannot be used.
    """
    policies = name_list(policies, "policy")
    items = searches(cells, policies, seeds, requests, seconds)
    compile_policies(policies)
    costs = [item.cost for item in items]
    found = run_all(Search.run, items, costs, processes=processes, on_progress=on_progress)
    rows = []
    for i in range(0, len(items), seeds):
        item = items[i]
        same = {**item.cell.columns, "policy": item.policy, "seconds": item.seconds, "seeds": seeds}
        rows.append({**same, **_figures(found[i : i + seeds], item.bound_hz)})
    for i in range(0, len(rows), len(policies)):
        _add_ratios(rows[i : i + len(policies)])
    return pl.DataFrame(rows, schema=SCHEMA)


def _figures(found: Sequence[Found], bound_hz: float) -> dict[str, Any]:
    """The figures of one row from its searches."""
    if not any(each.placed for each in found):
        return {"bound_hz": bound_hz, "outcome": CANNOT_PLACE if bound_hz > 0 else NO_SCHEDULER_CAN}
    goodput = over_seeds(found, bound_hz)
    return {**asdict(goodput), "bound_fraction": goodput.goodput_hz / bound_hz, "outcome": SERVED}


def _add_ratios(rows: Sequence[dict[str, Any]]) -> None:
    """To the rows of one cell, the default policy's goodput over theirs."""
    goodputs_hz = {row["policy"]: row.get("goodput_hz") for row in rows}
    ours_hz = goodputs_hz.get(DEFAULT)
    both_hz = [goodputs_hz.get(policy) for policy in BETTER_OF]
    better_hz = None if None in both_hz else max(hz for hz in both_hz if hz is not None)
    for row in rows:
        row["adaptive_over_policy"] = _ratio(ours_hz, row.get("goodput_hz"))
        row["adaptive_over_better"] = _ratio(ours_hz, better_hz)


def _ratio(ours: float | None, others: float | None) -> float | None:
    return ours / others if ours is not None and others else None


def summary(frame: pl.DataFrame) -> pl.DataFrame:
    """Worst, median and best over the cells: a row for each policy, and one for the better of deferred and eager.

    Columns policy; cells, and served of them; bound_fraction_worst, _median, _best; ratio_worst, _median, _best, of the
    default policy's goodput over this policy's; and the cells where that is at least 0.99 (within 1 %) and 1.03.
    """
    better = frame.filter(pl.col("policy") == DEFAULT).with_columns(
        pl.lit(BETTER).alias("policy"),
        pl.col("adaptive_over_better").alias("adaptive_over_policy"),
        pl.col("bound_fraction") / pl.col("adaptive_over_better"),
    )
    ratio = pl.col("adaptive_over_policy")
    return (
        pl.concat([frame, better.filter(pl.col("adaptive_over_better").is_not_null())])
        .group_by("policy", maintain_order=True)
        .agg(
            pl.len().alias("cells"),
            (pl.col("outcome") == SERVED).sum().alias("served"),
            *_spread("bound_fraction", "bound_fraction"),
            *_spread("adaptive_over_policy", "ratio"),
            (ratio >= 0.99).sum().alias("within_1_percent"),
            (ratio >= 1.03).sum().alias("ahead_by_3_percent"),
        )
    )


def _spread(column: str, name: str) -> list[pl.Expr]:
    values = pl.col(column)
    return [
        values.min().alias(f"{name}_worst"),
        values.median().alias(f"{name}_median"),
        values.max().alias(f"{name}_best"),
    ]
