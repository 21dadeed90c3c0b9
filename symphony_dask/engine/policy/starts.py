"""Finds the rule that let a batch start: what a person asks first of one that left early, or small (``start_rules``).

It is found from where the model stands when its batch is given to a GPU, and kept with the batch while that is there.
What a batch then still waits for, a GPU, is another matter.
"""

from __future__ import annotations

from symphony_dask.engine.native import heap
from symphony_dask.engine.native.compiled import compiled, inlined
from symphony_dask.engine.policy import window
from symphony_dask.engine.policy.window import EAGER, LATEST, TARGET, TIMEOUT
from symphony_dask.engine.start_rules import (
    BY_CONTENTION,
    BY_EAGER,
    BY_FULL,
    BY_LATEST,
    BY_MAX_DELAY,
    BY_PACKING,
    BY_TARGET,
    BY_TIMEOUT,
    BY_WINDOW,
    UNKNOWN,
)
from symphony_dask.engine.state import DEPTH, READY, State


@inlined
def of(s: State, m: int, now: int, early_ns: float) -> int:
    """The rule by which model ``m`` may start a batch now, on a GPU that was taken out of the open heap.

    early_ns: how long before its opening GPUs that are short let it start.
    """
    mod = s.mod[m]
    policy = window.policy_of(s, m)
    if mod.state != READY:
        packed = s.g[0].live_gpus - heap.size(s.open) <= s.g[0].packed and mod.prefers_gpus == 0
        soon = now >= mod.open - int(early_ns)
        return BY_CONTENTION if soon and not (packed and s.g[0].rules > 0) else BY_PACKING
    if policy == EAGER:
        return BY_EAGER
    rest = mod.n - mod.skipped
    if policy == TARGET and rest >= mod.target:
        return BY_TARGET
    if rest >= mod.max_batch and mod.ready_since < mod.open:
        return BY_FULL
    if policy in (LATEST, TIMEOUT) and mod.open == mod.close:
        return BY_LATEST
    if policy == TIMEOUT:
        return BY_TIMEOUT
    if mod.delay > 0 and mod.open == window.waited_until(s, m, mod.first_at):
        return BY_MAX_DELAY
    return BY_WINDOW


@compiled
def put(s: State, g: int, rule: int) -> None:
    """Say of the last batch that a GPU was given that another rule let it start."""
    s.flight[g * DEPTH + s.gpu[g].n_flight - 1].rule = rule


@inlined
def of_batch(s: State, g: int, batch: int) -> int:
    """The rule that let a batch start, which is at the GPU; UNKNOWN if it is not."""
    for i in range(g * DEPTH, g * DEPTH + s.gpu[g].n_flight):
        if s.flight[i].batch == batch:
            return int(s.flight[i].rule)
    return UNKNOWN
