"""Measures how many GPUs a scheduler uses at a part of its capacity, beside the ideal number. Every figure is
simulated.

Busy GPUs: how many are running a batch, on average over time.
GPUs in use: the least number of GPUs that together do 99 % of the work, in GPU time. Those are the GPUs that a fleet
    would have to keep; the 1 % left is what the tail does in rare bursts.
Ideal: rate * l(b)/b at the best batches that the SLO allows at that rate (``bound.ideal_gpus``).
Load-proportional: GPUs in use are at most 1.05 times the ideal and one more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean
from typing import Any

import numpy as np
import polars as pl

from symphony_dask.errors import BadInput
from workloads.baselines.nexus import CannotPlace
from workloads.compare.bound import ideal_gpus
from workloads.compare.cells import CELL_SCHEMA, Cell
from workloads.compare.compare import CANNOT_PLACE, NO_SCHEDULER_CAN, SERVED, Search, searches
from workloads.compare.policies import compile_policies, scheduler
from workloads.simulation.process_pool import OnProgress, no_progress, run_all
from workloads.simulation.result import Simulated

PARTS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)

#: The outcome of a policy that serves a cell at no rate, or not with every seed.
NO_GOODPUT = "no goodput"

#: The part of the work that GPUs in use do.
WORK = 0.99

#: Columns of the frame that ``gpus_used`` returns.
SCHEMA: dict[str, Any] = {
    **CELL_SCHEMA,
    "policy": pl.String,
    "capacity_hz": pl.Float64,
    "part": pl.Float64,
    "load_hz": pl.Float64,
    "attainment": pl.Float64,
    "ideal_gpus": pl.Float64,
    "busy_gpus": pl.Float64,
    "gpus_in_use": pl.Float64,
    "most_gpus": pl.Float64,
    "busy_within": pl.Boolean,
    "in_use_within": pl.Boolean,
    "outcome": pl.String,
    "seconds": pl.Float64,
    "seeds": pl.Int64,
}


@dataclass(frozen=True)
class _Used:
    """At one part of the capacity, with one seed."""

    load_hz: float
    attainment: float
    busy_gpus: float
    gpus_in_use: int


def gpus_used(
    cells: Sequence[Cell],
    policies: Sequence[str],
    *,
    parts: Sequence[float] = PARTS,
    seeds: int = 1,
    requests: int = 200_000,
    seconds: float | None = None,
    processes: int | None = None,
    on_progress: OnProgress = no_progress,
) -> pl.DataFrame:
    """GPUs busy and in use at parts of each policy's own capacity, a row each with the columns of ``SCHEMA``.

    The capacity is the policy's goodput in the cell with the same seed. Figures are means over the seeds. requests,
    seconds: as ``compare.compare_goodput``; simulations of all parts last equally long.

    most_gpus is 1.05 * ideal_gpus + 1; busy_within and in_use_within say whether the other two are at most that.
    A policy without any goodput in a cell has one row there, whose ``outcome`` says why.

    Raises ``BadInput`` when a policy is unknown, or an argument cannot be used.
    """
    if not parts or any(not 0 < part <= 1 for part in parts):
        raise BadInput(f"parts {list(parts)}: give some, each above 0 and at most 1")
    items = searches(cells, policies, seeds, requests, seconds)
    compile_policies(policies)
    costs = [item.cost for item in items]
    measured = partial(_used, parts=tuple(parts))
    found = run_all(measured, items, costs, processes=processes, on_progress=on_progress)
    rows: list[dict[str, Any]] = []
    for i in range(0, len(items), seeds):
        item, of_seeds = items[i], found[i : i + seeds]
        same = {**item.cell.columns, "policy": item.policy, "seconds": item.seconds, "seeds": seeds}
        if not all(capacity_hz for capacity_hz, _ in of_seeds):
            rows.append({**same, "outcome": NO_GOODPUT if item.bound_hz > 0 else NO_SCHEDULER_CAN})
            continue
        same["capacity_hz"] = fmean(capacity_hz for capacity_hz, _ in of_seeds)
        for j, part in enumerate(parts):
            at_part = [used[j] for _, used in of_seeds]
            placed = [used for used in at_part if used is not None]
            if len(placed) == seeds:
                rows.append({**same, "part": part, **_figures(item.cell, placed), "outcome": SERVED})
            else:
                rows.append({**same, "part": part, "outcome": CANNOT_PLACE})
    return pl.DataFrame(rows, schema=SCHEMA)


def summary(frame: pl.DataFrame) -> pl.DataFrame:
    """A row for each policy: at how many of the loads the GPUs busy and in use are load-proportional.

    Columns policy; loads; busy_within and in_use_within, how many of them; and the median and the worst of GPUs in use
    beyond the ideal number, in GPUs: beyond_ideal_median, beyond_ideal_worst.
    """
    beyond = pl.col("gpus_in_use") - pl.col("ideal_gpus")
    return frame.group_by("policy", maintain_order=True).agg(
        (pl.col("outcome") == SERVED).sum().alias("loads"),
        pl.col("busy_within").sum(),
        pl.col("in_use_within").sum(),
        beyond.median().alias("beyond_ideal_median"),
        beyond.max().alias("beyond_ideal_worst"),
    )


def gpus_in_use(result: Simulated) -> int:
    """The least number of GPUs that together do ``WORK`` of the work, in GPU time."""
    took_ns = (result.batch_end_ns - result.batch_start_ns).astype(np.float64)
    work = np.sort(np.bincount(result.batch_gpu, weights=took_ns, minlength=result.gpus))[::-1].cumsum()
    # Less a billionth, so that rounding does not ask for one more GPU.
    return int(np.searchsorted(work, WORK * work[-1] * (1 - 1e-9))) + 1 if work[-1] > 0 else 0


def _figures(cell: Cell, found: Sequence[_Used]) -> dict[str, Any]:
    load_hz = fmean(each.load_hz for each in found)
    busy = fmean(each.busy_gpus for each in found)
    in_use = fmean(each.gpus_in_use for each in found)
    ideal = ideal_gpus(cell.bound_models(), load_hz)
    most = 1.05 * ideal + 1
    return {
        "load_hz": load_hz,
        "attainment": fmean(each.attainment for each in found),
        "ideal_gpus": ideal,
        "busy_gpus": busy,
        "gpus_in_use": in_use,
        "most_gpus": most,
        "busy_within": busy <= most,
        "in_use_within": in_use <= most,
    }


def _used(item: Search, parts: tuple[float, ...]) -> tuple[float, list[_Used | None]]:
    """The capacity in Hz, and what is used at each part of it; None where the scheduler cannot place that load."""
    capacity_hz = item.run().rate_hz
    simulated, models, mix = scheduler(item.policy), item.cell.sim_models(), item.mix()
    at_parts: list[_Used | None] = []
    for part in parts if capacity_hz > 0 else ():
        n = max(1, round(part * capacity_hz * item.seconds))
        try:
            result = simulated(models, item.cell.gpus, *mix.first(n, item.seconds))
        except CannotPlace:
            at_parts.append(None)
        else:
            at_parts.append(_Used(n / item.seconds, result.attainment, result.busy_gpus, gpus_in_use(result)))
    return capacity_hz, at_parts
