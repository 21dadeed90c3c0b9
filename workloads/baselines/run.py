"""Holds the tables of one simulated run, which every baseline's compiled loop reads and fills.

Rule 1. Times are int64 ns of virtual time; the network takes none, and a batch takes exactly l(b).
Rule 2. A model has one SLO, so a queue in order of arrival is a queue in order of deadline.
Rule 3. A loop ends when every request has been run or given up: one without a finish time was dropped.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from symphony_dask.errors import BadInput
from symphony_dask.trace.schema import Outcome
from workloads.simulation.result import SimModel, Simulated, check_times

#: "No time": later than any event.
NEVER = 2**62

#: Columns of ``Run.batches``.
GPU, MODEL, SIZE, START, END = range(5)


class Run(NamedTuple):
    """n requests of m models; b is the largest batch of any of them."""

    arrival: npt.NDArray[np.int64]  # (n,)
    deadline: npt.NDArray[np.int64]  # (n,)
    latency: npt.NDArray[np.int64]  # (m, b + 1): l(b) in ns; past a model's largest batch, its last value
    largest: npt.NDArray[np.int64]  # (m,): largest batch of each model
    finish: npt.NDArray[np.int64]  # (n,): to be filled; -1 where the request was not run
    batches: npt.NDArray[np.int64]  # (2n, 5): to be filled, in any order


class Queues(NamedTuple):
    """Requests by queue: those of queue q, in order of arrival, are order[first[q]:first[q + 1]]."""

    order: npt.NDArray[np.int64]  # (n,)
    first: npt.NDArray[np.int64]  # (queues + 1,)


def start_run(
    models: Sequence[SimModel], gpus: int, arrivals_ns: npt.NDArray[np.int64], choices: npt.NDArray[np.int32]
) -> Run:
    """Tables for these arrivals. Raises ``BadInput`` when there is nothing to simulate or the arrays do not fit."""
    if gpus < 1:
        raise BadInput(f"gpus is {gpus}: give at least 1")
    if not models:
        raise BadInput("no models: give at least 1")
    for model in models:
        if model.slo_ns <= 0:
            raise BadInput(f"slo_ns of {model.name} is {model.slo_ns}: it must be positive")
    n = len(arrivals_ns)
    if n == 0 or len(choices) != n:
        raise BadInput(f"{n} arrivals and {len(choices)} choices: give at least one arrival, and a choice for each")
    if (np.diff(arrivals_ns) < 0).any():
        raise BadInput("arrivals_ns falls: give the arrivals in order of time")
    if choices.min() < 0 or choices.max() >= len(models):
        raise BadInput(f"choices reach from {choices.min()} to {choices.max()}: there are {len(models)} models")
    check_times(arrivals_ns, np.array([model.slo_ns for model in models]))

    largest = np.array([model.profile.max_batch for model in models], np.int64)
    latency = np.empty((len(models), int(largest.max()) + 1), np.int64)
    for m, model in enumerate(models):
        row = model.profile.latency_ns()[: model.profile.max_batch + 1]
        latency[m, : len(row)] = row
        latency[m, len(row) :] = row[-1]
    arrival = np.ascontiguousarray(arrivals_ns, np.int64)
    slo = np.array([model.slo_ns for model in models], np.int64)
    return Run(
        arrival=arrival,
        deadline=arrival + slo[choices],
        latency=latency,
        largest=largest,
        finish=np.full(n, -1, np.int64),
        batches=np.empty((2 * n, 5), np.int64),
    )


def queues(choices: npt.NDArray[np.int32], n_queues: int) -> Queues:
    """The queue of each request, laid out by queue."""
    order = np.argsort(choices, kind="stable").astype(np.int64)
    first = np.zeros(n_queues + 1, np.int64)
    np.cumsum(np.bincount(choices, minlength=n_queues), out=first[1:])
    return Queues(order, first)


def end_run(run: Run, n_batches: int, gpus: int) -> Simulated:
    """The outcome of a run whose loop has ended and filled ``n_batches`` rows."""
    late = np.where(run.finish <= run.deadline, Outcome.OK, Outcome.LATE)
    outcome = np.where(run.finish < 0, Outcome.DROPPED, late).astype(np.int8)
    rows = run.batches[:n_batches]
    rows = rows[np.lexsort((rows[:, GPU], rows[:, START]))]
    last = max(int(run.arrival[-1]), int(rows[:, END].max(initial=0)))
    return Simulated(
        outcome=outcome,
        finish_ns=run.finish,
        batch_gpu=rows[:, GPU].astype(np.int32),
        batch_model=rows[:, MODEL].astype(np.int32),
        batch_size=rows[:, SIZE].astype(np.int32),
        batch_start_ns=rows[:, START].copy(),
        batch_end_ns=rows[:, END].copy(),
        gpus=gpus,
        span_ns=last - int(run.arrival[0]),
    )
