"""Searches how many GPUs each scheduler needs for a given load, beside the ideal number. Every figure is simulated."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from statistics import fmean
from typing import Any

import polars as pl

from symphony_dask.errors import BadInput
from workloads.baselines.nexus import CannotPlace
from workloads.compare.bound import ideal_gpus
from workloads.compare.cells import CELL_SCHEMA, Cell
from workloads.compare.compare import DEFAULT, NO_SCHEDULER_CAN, SERVED
from workloads.compare.goodput import Mix
from workloads.compare.policies import compile_policies, scheduler
from workloads.simulation.process_pool import OnProgress, no_progress, run_all
from workloads.simulation.simulate import Scheduler

ATTAINMENT = 0.99

#: The outcome of a policy to which no number of GPUs tried was enough.
NOT_ATTAINED = "not attained"

#: Columns of the frame that ``gpus_needed`` returns: the cell's, without its GPUs, and these.
SCHEMA: dict[str, Any] = {
    **{name: kind for name, kind in CELL_SCHEMA.items() if name != "gpus"},
    "load_hz": pl.Float64,
    "policy": pl.String,
    "ideal_gpus": pl.Float64,
    "gpus_needed": pl.Int64,
    "gpus_tried": pl.Int64,
    "monotone": pl.Boolean,
    "adaptive_saving": pl.Float64,
    "outcome": pl.String,
    "seconds": pl.Float64,
    "seeds": pl.Int64,
}


@dataclass(frozen=True)
class Needed:
    """gpus: the least number that will do, None if none up to the limit does.

    monotone: whether all numbers tried from there on will do, and all tried below will not.
    """

    gpus: int | None
    monotone: bool


@dataclass(frozen=True)
class _Item:
    cell: Cell
    load_hz: float
    policy: str
    seeds: int
    seconds: float
    ideal: float


def gpus_needed(
    cells: Sequence[Cell],
    policies: Sequence[str],
    *,
    loads_hz: Sequence[float] = (),
    seeds: int = 1,
    requests: int = 200_000,
    seconds: float | None = None,
    processes: int | None = None,
    on_progress: OnProgress = no_progress,
) -> pl.DataFrame:
    """The least GPUs with which each policy attains 99 % of a load, a row each with the columns of ``SCHEMA``.

    loads_hz: offered, in requests/s; by default each cell's bound, in whole requests/s, whose ideal number of GPUs is
        thus the cell's. With loads given, cells that differ in nothing but their GPUs count once.
    seeds: of arrivals, over which the attainment is averaged. requests, seconds: as ``compare.compare_goodput``.

    ideal_gpus is ``bound.ideal_gpus``: load * l(b)/b at the best batches that the SLO allows; no scheduler can do with
    fewer, rounded up, when arrivals come at their mean spacing. adaptive_saving is the part of this policy's GPUs that
    the default policy does without. Where ``outcome`` is not "served", gpus_tried GPUs were not enough.

    Raises ``BadInput`` when a policy is unknown or an argument cannot be used.
    """
    if any(not 0 < load_hz < math.inf for load_hz in loads_hz):
        raise BadInput(f"loads {list(loads_hz)}: each must be a positive, finite number of requests a second")
    compile_policies(policies)
    settings: dict[tuple[Cell, float], None] = {}
    for cell in cells:
        for load_hz in loads_hz or [float(math.floor(cell.bound_hz()))]:
            settings[replace(cell, gpus=1) if loads_hz else cell, load_hz] = None
    items = []
    for cell, load_hz in settings:
        ideal = ideal_gpus(cell.bound_models(), load_hz) if load_hz > 0 else math.inf
        span_s = seconds or (cell.span_s(load_hz, requests) if load_hz > 0 else 0.0)
        items += [_Item(cell, load_hz, policy, seeds, span_s, ideal) for policy in policies]
    costs = [max(1.0, item.load_hz * item.seconds) for item in items]
    found = run_all(_needed, items, costs, processes=processes, on_progress=on_progress)
    rows = []
    for item, needed in zip(items, found, strict=True):
        columns = {name: value for name, value in item.cell.columns.items() if name != "gpus"}
        possible = math.isfinite(item.ideal)
        row = {
            **columns,
            "load_hz": item.load_hz,
            "policy": item.policy,
            "ideal_gpus": item.ideal if possible else None,
            "gpus_needed": needed.gpus,
            "gpus_tried": _limit(item) if possible else 0,
            "monotone": needed.monotone if needed.gpus is not None else None,
            "outcome": SERVED if needed.gpus is not None else NOT_ATTAINED if possible else NO_SCHEDULER_CAN,
            "seconds": item.seconds,
            "seeds": seeds,
        }
        rows.append(row)
    for start in range(0, len(rows), len(policies)):
        of_setting = rows[start : start + len(policies)]
        ours = next((row["gpus_needed"] for row in of_setting if row["policy"] == DEFAULT), None)
        for row in of_setting:
            both = ours is not None and row["gpus_needed"] is not None
            row["adaptive_saving"] = 1 - ours / row["gpus_needed"] if both else None
    return pl.DataFrame(rows, schema=SCHEMA)


def summary(frame: pl.DataFrame) -> pl.DataFrame:
    """Worst, median and best over the loads, a row for each policy.

    Columns policy; loads, and served of them; over_ideal_worst, _median, _best, of the GPUs needed over the ideal
    number rounded up; saving_worst, _median, _best, of the part of this policy's GPUs that the default one saves.
    """
    over = pl.col("gpus_needed") / pl.col("ideal_gpus").ceil()
    saving = pl.col("adaptive_saving")
    return frame.group_by("policy", maintain_order=True).agg(
        pl.len().alias("loads"),
        (pl.col("outcome") == SERVED).sum().alias("served"),
        over.max().alias("over_ideal_worst"),
        over.median().alias("over_ideal_median"),
        over.min().alias("over_ideal_best"),
        saving.min().alias("saving_worst"),
        saving.median().alias("saving_median"),
        saving.max().alias("saving_best"),
    )


def _limit(item: _Item) -> int:
    """Where the search gives up: a scheduler that packs models one a GPU needs as many as there are."""
    return 16 * math.ceil(item.ideal) + item.cell.models


def _needed(item: _Item) -> Needed:
    if not math.isfinite(item.ideal):
        return Needed(None, True)
    attained = attains(scheduler(item.policy), item.cell, item.load_hz, item.seconds, range(item.seeds))
    return least(attained, math.ceil(item.ideal), _limit(item))


def attains(
    simulated: Scheduler, cell: Cell, load_hz: float, seconds: float, seeds: Sequence[int]
) -> Callable[[int], bool]:
    """Whether so many GPUs attain 99 % of a load, over all seeds' requests; every number is given the same arrivals."""
    models = cell.sim_models()
    n = max(1, round(load_hz * seconds))
    drawn = [Mix(cell.shares(), cell.shape, seed).first(n, seconds) for seed in seeds]

    def attained(gpus: int) -> bool:
        try:
            return fmean(simulated(models, gpus, *arrivals).attainment for arrivals in drawn) >= ATTAINMENT
        except CannotPlace:
            return False

    return attained


def least(enough: Callable[[int], bool], start: int, limit: int) -> Needed:
    """The least number from 1 to ``limit`` that is enough, searched from ``start`` on.

    More should be as good, but a scheduler may have its quirks. So the two numbers on either side of the answer are
    tried as well: where one of those above is not enough, the answer moves beyond it.
    """
    enough = cache(enough)
    low, high, step = 0, min(start, limit), 1
    while not enough(high):
        if high == limit:
            return Needed(None, True)
        low, high, step = high, min(high + step, limit), 2 * step
    step = 1
    while low == 0 and high > 1:
        lower = max(high - step, 1)
        low, high, step = (0, lower, 2 * step) if enough(lower) else (lower, high, step)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    monotone = not any(enough(n) for n in (low - 1, low - 2) if n >= 1)
    while worse := [n for n in (high + 1, high + 2) if n <= limit and not enough(n)]:
        monotone = False
        high = worse[-1] + 1
        while high <= limit and not enough(high):
            high += 1
        if high > limit:
            return Needed(None, False)
    return Needed(high, monotone)
