"""Finds why requests of a run were late or dropped, as far as its tables tell: one cause each, the first that holds.

Late, of a request that was answered after its deadline:
    no-time       it arrived with less than l(1) left, on the fastest GPU class of the run
    planned-late  its batch was dispatched although its planned end was after the deadline
    started-late, ran-long, way-back   else the largest of three delays: start beyond the planned start, execution
                  beyond the planned execution, and the way from the GPU's end to the reply
Dropped:
    no-time       as above
    no-gpu        no GPU was ready from its arrival until it was dropped
    all-busy      every ready GPU was busy from the opening of its window until it was dropped
    estimates     batches of its model had taken so much longer than its profile says that it was thought to be late
    left-out      it could still have run alone, but a batch of its model was formed without it, which would have missed
                  its deadline with it
    not-taken     a GPU was idle in its window, but did not take it: of too slow a class, or given to others first

A dropped request has no batch and so no recorded window: the one taken opens at deadline - l(b+1), b being the mean
batch of its model in the run. A GPU is busy from the dispatch of a batch to its end. On a live run gaps of up to
``LIVE_GAP_NS`` between two batches count as busy too: they are the way to the scheduler and back.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from symphony_dask.engine.latency_profile import LatencyProfile
from symphony_dask.errors import BadInput
from symphony_dask.trace import Run
from workloads.analysis.gpu_presence import presence_intervals

Ints = npt.NDArray[np.int64]

#: Causes by outcome, and what each means.
CAUSES = {
    "late": {
        "no-time": "arrived with less than l(1) left",
        "planned-late": "dispatched to end after its deadline",
        "started-late": "batch started late",
        "ran-long": "ran longer than its profile",
        "way-back": "answer took long on the way back",
        "unknown": "times were not reported",
    },
    "dropped": {
        "no-time": "arrived with less than l(1) left",
        "no-gpu": "no GPU was ready",
        "all-busy": "all GPUs busy from window opening to closing",
        "estimates": "batches of its model took longer than its profile, so it was thought to be late",
        "left-out": "a batch of its model left without it",
        "not-taken": "a GPU was idle but did not take it in time",
    },
}

LIVE_GAP_NS = 1_000_000

#: What batches of a model took is told from so many of them.
_RECENT = 5

#: Dropped requests are looked at so many at a time.
_SLICE = 2_000_000

_DROP_COLUMNS = ("id", "model", "arrival_ns", "deadline_ns", "reply_ns")

SCHEMA = {"id": pl.Int64, "model": pl.String, "arrival_ns": pl.Int64, "cause": pl.String}


def label(run: Run) -> str:
    """ "simulated", "emulated" (GPUs; everything else is real), "live", or "imported" for a trace not served."""
    said = str(run.info.get("label", ""))
    if run.info.get("clock") == "imported":
        return "imported"
    for kind in ("simulated", "emulated"):
        if said.startswith(kind) or (kind == "simulated" and run.info.get("clock") == "virtual"):
            return kind
    return "live"


def profiles(run: Run) -> dict[str, dict[str, LatencyProfile]]:
    """l(b) by model and GPU class, as run.json has them."""
    return {
        model["name"]: {c: LatencyProfile.from_dict(d) for c, d in model.get("profiles", {}).items()}
        for model in run.info.get("models", [])
    }


def fastest_ns(run: Run, model: str) -> Ints | None:
    """l(b) in ns, entry b, on the GPU class of the run that is the fastest at each b; None if no profile is known."""
    tables = [profile.latency_ns() for profile in profiles(run).get(model, {}).values()]
    if not tables:
        return None
    least: Ints = np.min([table[: min(map(len, tables))] for table in tables], axis=0)
    return least


def causes(run: Run, outcome: str, request: int | None = None) -> pl.DataFrame:
    """A row for each request of that outcome (only ``request`` where given), with the columns of ``SCHEMA``.

    Raises ``BadInput`` for an outcome that has no causes.
    """
    found = _requests(run, outcome)
    if request is not None:
        found = found.filter(pl.col("id") == request)
    if outcome == "late":
        return _late(run, found).collect(engine="streaming")
    dropped = found.select(_DROP_COLUMNS).collect(engine="streaming")
    return _Drops(run).causes(dropped) if dropped.height else pl.DataFrame(schema=SCHEMA)


def top(run: Run, outcome: str) -> list[dict[str, Any]]:
    """The causes of that outcome over the run, most frequent first: cause, meaning, requests, share, models, example.

    models: how many requests of each; example: the id of the first to arrive.
    """
    found = _requests(run, outcome)
    if outcome == "late":
        by_model = _counted(_late(run, found)).collect(engine="streaming")
    else:
        dropped = found.select(_DROP_COLUMNS).collect(engine="streaming")
        drops = _Drops(run) if dropped.height else None
        slices = dropped.iter_slices(_SLICE) if drops else ()
        parts = [_counted(drops.causes(rows).lazy()).collect() for rows in slices if drops]
        by_model = pl.concat(parts) if parts else _counted(pl.LazyFrame(schema=SCHEMA)).collect()
    by_model = (
        by_model.group_by("cause", "model")
        .agg(pl.col("requests").sum(), pl.col("id").sort_by("arrival_ns").first(), pl.col("arrival_ns").min())
        .sort("requests", "model", descending=[True, False])
    )
    rows = (
        by_model.group_by("cause")
        .agg(pl.col("requests").sum(), pl.col("id").sort_by("arrival_ns").first())
        .sort("requests", "cause", descending=[True, False])
    )
    total = rows["requests"].sum()
    return [
        {
            "cause": cause,
            "meaning": CAUSES[outcome][cause],
            "requests": requests,
            "share": requests / total,
            "models": dict(by_model.filter(pl.col("cause") == cause).select("model", "requests").iter_rows()),
            "example": example,
        }
        for cause, requests, example in rows.iter_rows()
    ]


def _requests(run: Run, outcome: str) -> pl.LazyFrame:
    if outcome not in CAUSES:
        raise BadInput(f"outcome {outcome!r} has no causes: choose one of {', '.join(CAUSES)}")
    return run.requests.filter(pl.col("outcome") == outcome)


def _counted(found: pl.LazyFrame) -> pl.LazyFrame:
    """By cause and model: how many requests, and the first to arrive."""
    return found.group_by("cause", "model").agg(
        pl.len().cast(pl.Int64).alias("requests"),
        pl.col("id").filter(pl.col("arrival_ns") == pl.col("arrival_ns").min()).first(),
        pl.col("arrival_ns").min(),
    )


def _late(run: Run, late: pl.LazyFrame) -> pl.LazyFrame:
    first = pl.LazyFrame(
        [(name, int(table[1])) for name in profiles(run) if (table := fastest_ns(run, name)) is not None],
        schema={"model": pl.String, "l1": pl.Int64},
        orient="row",
    )
    planned = run.batches.select("batch", "planned_start_ns", "planned_end_ns")
    rows = late.join(planned, on="batch", how="left").join(first, on="model", how="left")
    col = pl.col
    started = col("start_ns") - col("planned_start_ns")
    ran = (col("end_ns") - col("start_ns")) - (col("planned_end_ns") - col("planned_start_ns"))
    back = col("reply_ns") - col("end_ns")
    cause = (
        pl.when(col("deadline_ns") - col("arrival_ns") < col("l1"))
        .then(pl.lit("no-time"))
        .when((started + ran + back).is_null())
        .then(pl.lit("unknown"))
        .when(col("planned_end_ns") > col("deadline_ns"))
        .then(pl.lit("planned-late"))
        .when((started >= ran) & (started >= back))
        .then(pl.lit("started-late"))
        .when(ran >= back)
        .then(pl.lit("ran-long"))
        .otherwise(pl.lit("way-back"))
    )
    return rows.select("id", "model", "arrival_ns", cause=cause)


class _Drops:
    """What the causes of drops are told from: when GPUs were idle, and which batches left when."""

    def __init__(self, run: Run) -> None:
        self._gap_ns = 0 if run.info.get("clock") == "virtual" else LIVE_GAP_NS
        self._idle = idleness(run, self._gap_ns)
        batches = run.batches.select("model", "dispatch_ns").drop_nulls()
        self._batches = batches.collect(engine="streaming").sort("dispatch_ns")
        means = run.batches.group_by("model").agg(pl.col("size").mean()).collect(engine="streaming")
        self._mean = dict(means.iter_rows())
        self._tables = {name: fastest_ns(run, name) for name in profiles(run)}
        self._ratios = _observed(run, self._tables)

    def causes(self, rows: pl.DataFrame) -> pl.DataFrame:
        """The columns of ``SCHEMA`` for dropped requests with those of ``_DROP_COLUMNS``."""
        arrival, deadline = rows["arrival_ns"].to_numpy(), rows["deadline_ns"].to_numpy()
        ended = rows["reply_ns"].fill_null(rows["deadline_ns"]).to_numpy()
        l1, opens = np.zeros(rows.height, np.int64), arrival.copy()
        for name in rows["model"].unique():
            table = self._tables.get(name)
            if table is None:
                continue
            mine = (rows["model"] == name).to_numpy()
            b = min(max(round(self._mean.get(name) or 1), 1), len(table) - 2)
            l1[mine] = table[1]
            opens[mine] = np.maximum(arrival[mine], deadline[mine] - table[b + 1])
        # One dropped ahead of its window: what counts is whether a GPU was idle until that moment.
        opens = np.minimum(opens, ended - self._gap_ns)
        cause = np.select(
            [
                deadline - arrival < l1,
                ~self._idle.ready_between(arrival, ended),
                ~self._idle.idle_between(opens, ended),
                deadline - arrival < l1 * self._ratio_then(rows["model"], ended),
                (ended < deadline - l1) & self._formed_then(rows["model"], ended),
            ],
            ["no-time", "no-gpu", "all-busy", "estimates", "left-out"],
            "not-taken",
        )
        return rows.select("id", "model", "arrival_ns").with_columns(pl.Series("cause", cause, pl.String))

    def _ratio_then(self, models: pl.Series, times: Ints) -> npt.NDArray[np.float64]:
        """How many times as long as its profile says the last batches of each model had taken by then; 1 for none."""
        asked = pl.DataFrame({"model": models, "time": times}).with_row_index("row").sort("time")
        found = asked.join_asof(
            self._ratios, left_on="time", right_on="end_ns", by="model", check_sortedness=False
        ).sort("row")
        return found["ratio"].fill_null(1.0).to_numpy()

    def _formed_then(self, models: pl.Series, times: Ints) -> npt.NDArray[np.bool_]:
        """Whether a batch of each model was dispatched just then, or less than a gap before."""
        asked = pl.DataFrame({"model": models, "time": times}).with_row_index("row").sort("time")
        found = asked.join_asof(
            self._batches, left_on="time", right_on="dispatch_ns", by="model", check_sortedness=False
        ).sort("row")
        near = (found["time"] - found["dispatch_ns"]) <= self._gap_ns
        return near.fill_null(False).to_numpy()


def _observed(run: Run, tables: dict[str, Ints | None]) -> pl.DataFrame:
    """After each batch: its model, when it ended, and the mean of what the last ``_RECENT`` took over the profile."""
    parts = [pl.DataFrame(schema={"model": pl.String, "end_ns": pl.Int64, "ratio": pl.Float64})]
    ran = run.batches.select("model", "size", "start_ns", "end_ns").drop_nulls().collect(engine="streaming")
    for (name,), batches in ran.sort("end_ns").group_by("model", maintain_order=True):
        table = tables.get(str(name))
        if table is None:
            continue
        given = pl.Series(table[np.clip(batches["size"].to_numpy(), 1, len(table) - 1)])
        ratio = ((batches["end_ns"] - batches["start_ns"]) / given.clip(lower_bound=1)).rolling_mean(
            _RECENT, min_samples=1
        )
        parts.append(batches.select("model", "end_ns", ratio=ratio))
    return pl.concat(parts).sort("end_ns")


@dataclass(frozen=True)
class Idleness:
    """How many GPUs were ready and how many of them idle, as steps: at ``times`` (k,) ns, until the next."""

    times: Ints
    ready: Ints
    idle: Ints

    def ready_between(self, begin: Ints, end: Ints) -> npt.NDArray[np.bool_]:
        return self._any(self.ready > 0, begin, end)

    def idle_between(self, begin: Ints, end: Ints) -> npt.NDArray[np.bool_]:
        """Whether some GPU was idle for a time between the two; just before, where they are equal."""
        return self._any(self.idle > 0, begin, end)

    def _any(self, holds: npt.NDArray[np.bool_], begin: Ints, end: Ints) -> npt.NDArray[np.bool_]:
        if not len(self.times):
            return np.zeros(len(begin), np.bool_)
        spans = np.append(np.diff(self.times), 0) * holds
        before = np.concatenate(([0], np.cumsum(spans)[:-1]))

        def total(t: Ints) -> Ints:
            step = np.maximum(np.searchsorted(self.times, t, "right") - 1, 0)
            since: Ints = before[step] + np.maximum(t - self.times[step], 0) * holds[step]
            return since

        return total(end) > total(np.minimum(begin, end - 1))


def idleness(run: Run, gap_ns: int = 0) -> Idleness:
    """The steps of ready and idle GPUs of ``run``; gaps of up to ``gap_ns`` between batches count as busy."""
    there = presence_intervals(run).select("gpu", "ready_ns", "until_ns")
    end = pl.coalesce("end_ns", "planned_end_ns")
    batches = (
        run.batches.select("gpu", begin="dispatch_ns", end=end).drop_nulls().collect(engine="streaming").sort("begin")
    )
    if not there.height and batches.height:  # nobody told of GPUs, so they were there all the time
        first = int(batches["begin"][0])
        gpus = batches.select(pl.col("gpu").unique())
        there = gpus.with_columns(ready_ns=pl.lit(first, pl.Int64), until_ns=pl.lit(None, pl.Int64))
    batches = (
        batches.join_asof(
            there.sort("ready_ns"), left_on="begin", right_on="ready_ns", by="gpu", check_sortedness=False
        )
        # A batch that was lost ends with its GPU.
        .with_columns(pl.min_horizontal("end", "until_ns").alias("end"))
        .filter(pl.col("begin") < pl.col("end"))
        .sort("gpu", "begin")
    )
    # What one GPU does without a gap is one stretch.
    interval = ["gpu", "ready_ns"]
    reached = pl.col("end").cum_max().shift(1).over(interval)
    stretches = (
        batches.with_columns(stretch=(reached.is_null() | (pl.col("begin") > reached + gap_ns)).cum_sum())
        .group_by("stretch")
        .agg(pl.col("begin").min(), pl.col("end").max())
    )
    gone = there.drop_nulls("until_ns")
    steps = pl.concat(
        [
            there.select(time="ready_ns", ready=pl.lit(1), idle=pl.lit(1)),
            gone.select(time="until_ns", ready=pl.lit(-1), idle=pl.lit(-1)),
            stretches.select(time="begin", ready=pl.lit(0), idle=pl.lit(-1)),
            stretches.select(time="end", ready=pl.lit(0), idle=pl.lit(1)),
        ]
    )
    at = steps.group_by("time").agg(pl.col("ready", "idle").sum()).sort("time")
    at = at.with_columns(pl.col("ready", "idle").cast(pl.Int64).cum_sum())
    return Idleness(at["time"].to_numpy(), at["ready"].to_numpy(), at["idle"].to_numpy())
