"""Measures l(b), and fits alpha*b + beta to it."""

from __future__ import annotations

import math
import re
import statistics
import time
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from symphony_dask.backends.batch import Runner
from symphony_dask.engine.latency_profile import LatencyProfile
from symphony_dask.errors import BadInput, DeploymentError
from symphony_dask.units import NS_PER_MS, NS_PER_S
from symphony_dask.wire import codec, composite

_OUT_OF_MEMORY = "out of memory|can't allocate memory|MemoryError"


def measure(
    run_batch: Callable[[int], None],
    max_batch: int,
    *,
    budget_s: float = 5.0,
    repeats: int = 5,
    stop_above_ms: float = math.inf,
    sizes: Sequence[int] = (),
    clock: Callable[[], int] = time.perf_counter_ns,
) -> list[tuple[int, float]]:
    """l(b) as (batch size, ms) for b = 1, 2, 4, ... and ``max_batch``: medians of ``repeats`` runs after a warm-up.

    Ends early once ``budget_s`` is spent, after the first size that takes more than ``stop_above_ms``, or before a size
    that runs out of memory; the last size in the table is then the largest batch known to work. Size 1 is always there.

    sizes: other batch sizes to measure, rising; those up to ``max_batch`` are.
    clock: the time in ns.

    Raises what ``run_batch`` raises, except for running out of memory at a size above 1.
    """
    end_ns = clock() + budget_s * NS_PER_S
    table: list[tuple[int, float]] = []
    for b in [b for b in sizes if b <= max_batch] or _sizes(max_batch):
        try:
            times_ns = _time(run_batch, b, repeats, end_ns, clock)
        except Exception as error:
            if not table or not is_out_of_memory(error):
                raise
            break
        table.append((b, statistics.median(times_ns) / NS_PER_MS))
        if table[-1][1] > stop_above_ms or clock() >= end_ns:
            break
    return table


def fit(table: Sequence[tuple[int, float]]) -> LatencyProfile:
    """The profile of a measured table of (batch size, ms), sizes rising: the table, and alpha*b + beta beside it.

    alpha and beta, at least 0, have the least sum of squared relative errors, so that small batches count as much as
    large ones. A table of one row has beta 0. The profile's ``max_batch`` is the last size, as no larger one was tried.

    Raises ``BadInput`` for an empty table.
    """
    if not table:
        raise BadInput("profile table is empty: it must have at least one (batch size, ms)")
    b, ms = np.array(table, dtype=float).T
    weight = 1 / np.maximum(ms, 1 / NS_PER_MS)
    alpha, beta = _fit_line(b * weight, weight, ms * weight)
    return LatencyProfile(alpha, beta, int(b[-1]), tuple((int(size), float(t)) for size, t in table))


def profile_runner(
    runner: Runner,
    example: object,
    max_batch: int,
    slo_ns: int | None = None,
    *,
    clock: Callable[[], int] = time.perf_counter_ns,
) -> LatencyProfile:
    """l(b) of ``runner`` on batches of copies of ``example``, up to ``max_batch`` or the first l(b) above ``slo_ns``.

    Where batches are padded (``BatchRunner.batch_sizes``), l(b) has steps. clock: the time in ns.

    Raises ``BadInput`` if the example cannot be encoded and ``DeploymentError`` if the model fails on it.
    """
    payload = codec.encode(example)

    # Cached, so that the warm-up makes the batch and the timed runs only run it.
    @lru_cache(maxsize=1)
    def batch(b: int) -> tuple[memoryview, npt.NDArray[np.int64]]:
        return memoryview(payload * b), np.full(b, len(payload), np.int64)

    def run_batch(b: int) -> None:
        errors = runner.run(*batch(b)).errors
        if errors:
            what = f"a batch of {b} x {composite.describe(payload)}"
            raise DeploymentError(f"model failed on {what}:\n{errors[min(errors)]}")

    padded = getattr(runner, "batch_sizes", ())
    stop_above_ms = math.inf if slo_ns is None else slo_ns / NS_PER_MS
    table = measure(run_batch, max_batch, stop_above_ms=stop_above_ms, sizes=padded, clock=clock)
    return fit(_steps(table) if padded else table)


def _steps(table: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """A table in which sizes between two of ``table`` take as long as the larger."""
    steps: list[tuple[int, float]] = []
    for b, ms in table:
        if steps and b > steps[-1][0] + 1:
            steps.append((steps[-1][0] + 1, ms))
        steps.append((b, ms))
    return steps


def _sizes(max_batch: int) -> list[int]:
    if max_batch < 1:
        raise BadInput(f"max_batch is {max_batch}: it must be at least 1")
    return [2**i for i in range(max_batch.bit_length()) if 2**i < max_batch] + [max_batch]


def _time(run_batch: Callable[[int], None], b: int, repeats: int, end_ns: float, clock: Callable[[], int]) -> list[int]:
    """Times in ns of ``repeats`` runs after one that is not timed; once ``end_ns`` is past, of as few as one."""
    run_batch(b)
    times_ns: list[int] = []
    while len(times_ns) < repeats and (not times_ns or clock() < end_ns):
        start = clock()
        run_batch(b)
        times_ns.append(clock() - start)
    return times_ns


def is_out_of_memory(error: Exception) -> bool:
    """Whether a model raised for lack of memory."""
    # By text, because a runner hands over what the model raised (CUDA's, PyTorch's or Python's error) as a traceback.
    return isinstance(error, MemoryError) or re.search(_OUT_OF_MEMORY, str(error)) is not None


def _fit_line(x: npt.NDArray[Any], one: npt.NDArray[Any], y: npt.NDArray[Any]) -> tuple[float, float]:
    """alpha, beta >= 0 with the least |alpha*x + beta*one - y|, for positive x, one and y."""
    if len(y) > 1:
        (alpha, beta), *_ = np.linalg.lstsq(np.stack([x, one], axis=1), y, rcond=None)
        if alpha < 0:
            return 0.0, float(one @ y / (one @ one))
        if beta >= 0:
            return float(alpha), float(beta)
    return float(x @ y / (x @ x)), 0.0
