"""Says which models a GPU can run: those that are loaded there.

Rule 1. A GPU can run every model until the host says otherwise, and what the host says holds until the GPU or the model
        is removed. Batches at the GPU are none of it: they run.
Rule 2. A model is matched only with GPUs that can run it; its targets follow their number, its windows their fastest
        class. Without any it keeps its queue, and requests that could not be served even at once are dropped.
Rule 3. While every GPU can run every model (``n_ineligible`` is 0) nothing here is looked at.

A pair of model and GPU is one bit of ``State.aside``, behind the scratch: an array of its own would cost every call of
the engine some 3 %, where most have no use for it.
"""

from __future__ import annotations

from symphony_dask.engine.native.compiled import compiled, inlined
from symphony_dask.engine.state import ABSENT, OPEN, REMOVED, UNUSED, State


@inlined
def _word(s: State, m: int, g: int) -> int:
    """Where the bit of a pair is; ``state.ineligible_rows`` is the same to Python."""
    return len(s.mod) + len(s.gpu) + g * ((len(s.mod) + 15) >> 4) + (m >> 4)


@inlined
def can_run(s: State, m: int, g: int) -> bool:
    return (int(s.aside[_word(s, m, g)]) >> (m & 15)) & 1 == 0


@compiled
def put(s: State, m: int, g: int, eligible: bool) -> None:
    if can_run(s, m, g) != eligible:
        at = _word(s, m, g)
        s.aside[at] = int(s.aside[at]) ^ (1 << (m & 15))
        s.g[0].n_ineligible += -1 if eligible else 1


@compiled
def forget_model(s: State, m: int) -> None:
    """What was said of a model that is gone."""
    if s.g[0].n_ineligible > 0:
        for g in range(len(s.gpu)):
            put(s, m, g, True)


@compiled
def forget_gpu(s: State, g: int) -> None:
    """What was said of a GPU that is gone."""
    if s.g[0].n_ineligible > 0:
        for m in range(len(s.mod)):
            put(s, m, g, True)


@compiled
def count(s: State, m: int, gpu_class: int) -> int:
    """GPUs that take batches and can run the model, of one class or (-1) of all."""
    n = 0
    for g in range(len(s.gpu)):
        gpu = s.gpu[g]
        counts = gpu.state != ABSENT and gpu.draining == 0 and (gpu_class < 0 or gpu.gpu_class == gpu_class)
        if counts and can_run(s, m, g):
            n += 1
    return n


@compiled
def first_open(s: State, m: int) -> int:
    """The open GPU of the lowest rank that can run the model; -1 if there is none."""
    best = -1
    for g in range(len(s.gpu)):
        if s.gpu[g].state == OPEN and (best < 0 or s.gpu[g].rank < s.gpu[best].rank) and can_run(s, m, g):
            best = g
    return best


def is_served(s: State, m: int) -> bool:
    """Whether there is a model of this index."""
    return bool(s.mod["state"][m] not in (UNUSED, REMOVED))
