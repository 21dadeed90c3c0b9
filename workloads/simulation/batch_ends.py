"""Emulates GPUs: keeps the batches that run on them, for an engine that is told of each end when it comes."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from symphony_dask.engine import kernels
from symphony_dask.engine.native import heap
from symphony_dask.engine.native.arrays import Int64s, Records
from symphony_dask.engine.native.compiled import compiled
from symphony_dask.engine.state import DEPTH, Profiles, State


class Ends(NamedTuple):
    """Batches that run. Sizes: G GPUs."""

    heap: Int64s  # (G + 1,) heap of GPUs by the next report of an end
    gpu: Records  # (G,) _GPU
    start: Int64s  # (G * DEPTH,) int64, oldest first for each GPU
    end: Int64s  # (G * DEPTH,) int64
    batch: Int64s  # (G * DEPTH,) int64


_GPU = np.dtype([("key", "i8"), ("free_at", "i8"), ("n", "i4"), ("pad", "i4")], align=True)


def make_ends(gpus: int) -> Ends:
    """``gpus`` GPUs, none of which runs anything."""
    return Ends(
        heap=heap.make_heap(gpus),
        gpu=np.zeros(gpus, _GPU).view(np.recarray),
        start=np.zeros(gpus * DEPTH, np.int64),
        end=np.zeros(gpus * DEPTH, np.int64),
        batch=np.zeros(gpus * DEPTH, np.int64),
    )


@compiled
def begin(ends: Ends, g: int, batch: int, earliest: int, took: int, reply: int) -> int:
    """Run a batch on GPU ``g``, not before ``earliest``; returns when it will have ended.

    Raises ``IndexError`` if the GPU has DEPTH batches, or there is no such GPU.
    """
    if g < 0 or g >= len(ends.gpu) or ends.gpu[g].n >= DEPTH:
        raise IndexError("a batch for a GPU that has as many as it can, or that is not there")
    gpu = ends.gpu[g]
    end = int(max(earliest, gpu.free_at)) + took
    gpu.free_at = end
    ends.start[g * DEPTH + gpu.n] = end - took
    ends.end[g * DEPTH + gpu.n] = end
    ends.batch[g * DEPTH + gpu.n] = batch
    gpu.n += 1
    if gpu.n == 1:
        heap.push(ends.heap, ends.gpu, g, end + reply)
    return end


@compiled
def _end_oldest(s: State, p: Profiles, ends: Ends, g: int, now: int) -> None:
    """Tell the engine of the oldest end on GPU ``g``, which leaves the heap."""
    gpu = ends.gpu[g]
    base = g * DEPTH
    kernels.completed(s, p, now, g, ends.batch[base], ends.start[base], ends.end[base])
    heap.remove(ends.heap, g)
    gpu.n -= 1
    for i in range(gpu.n):
        ends.start[base + i] = ends.start[base + i + 1]
        ends.end[base + i] = ends.end[base + i + 1]
        ends.batch[base + i] = ends.batch[base + i + 1]


@compiled
def report(s: State, p: Profiles, ends: Ends, now: int, reply: int) -> None:
    """Tell the engine of all ends that it hears of by ``now``."""
    while heap.size(ends.heap) > 0 and heap.first_key(ends.heap) <= now:
        g = heap.top(ends.heap)
        _end_oldest(s, p, ends, g, now)
        if ends.gpu[g].n > 0:
            heap.push(ends.heap, ends.gpu, g, ends.end[g * DEPTH] + reply)


@compiled
def lose(s: State, p: Profiles, ends: Ends, g: int, now: int) -> None:
    """GPU ``g`` goes: tell the engine of what it has ended, whose answers are on their way, and forget the rest."""
    gpu = ends.gpu[g]
    while gpu.n > 0 and ends.end[g * DEPTH] <= now:
        _end_oldest(s, p, ends, g, now)
        if gpu.n > 0:
            heap.push(ends.heap, ends.gpu, g, ends.end[g * DEPTH])
    if gpu.n > 0:
        heap.remove(ends.heap, g)
    gpu.n = 0
    gpu.free_at = 0
