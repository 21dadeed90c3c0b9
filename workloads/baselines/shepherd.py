"""Shepherd's Flex: the largest feasible batch at once, and preemption for a batch that is far larger.

Source: Zhang et al., "SHEPHERD: Serving DNNs in the Wild", NSDI 2023: its online serving algorithm, Flex, whose
competitive ratio is best at lambda = 3.03.

Rule 1. The candidate of a model is its largest batch that, started now, ends by the deadlines of all its requests.
        Requests that it passes over stay queued. (Were they dropped, 8 GPUs with a ResNet-50 at 25 ms would reach
        3,980 requests/s in place of 4,870.)
Rule 2. A free GPU runs the largest candidate of all models at once; of equal ones, that with the earliest deadline.
Rule 3. While all GPUs are busy, a candidate larger than ``LAMBDA`` times the smallest running batch replaces it. The
        work done on that batch is lost, and its requests queue again.
Rule 4. A request that cannot meet its deadline in a batch of 1 is dropped before candidates are formed. (The paper's
        algorithm leaves expired requests in the queue: its expiry fault, mended here.)

All GPUs serve all models: the periodic planner that splits models and GPUs into groups (Herd) is not simulated. A
preempted batch stands in the tables with the size it had and the time at which it was stopped.

Known faults: a free GPU never waits, so that batches stay small until the GPUs are full; requests passed over by a
larger candidate may wait until they expire; preemption throws away GPU time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from symphony_dask.scheduling.compiled import compiled
from workloads.baselines.run import END, GPU, MODEL, NEVER, SIZE, START, end_run, start_run
from workloads.simulated import SimModel, Simulated

#: A candidate must be more than this many times as large as a running batch to preempt it.
LAMBDA = 3.03


class _Flex(NamedTuple):
    """Queues are doubly linked lists in order of arrival; the requests of a running batch are chained by ``after``."""

    before: npt.NDArray[np.int64]  # (n,): -1 at the head
    after: npt.NDArray[np.int64]  # (n,): -1 at the tail
    head: npt.NDArray[np.int64]  # (m,)
    tail: npt.NDArray[np.int64]  # (m,)
    queued: npt.NDArray[np.int64]  # (m,)
    row: npt.NDArray[np.int64]  # (gpus,): the running batch in ``Run.batches``, -1 when the GPU is free
    first: npt.NDArray[np.int64]  # (gpus,): its first request
    found: npt.NDArray[np.int64]  # (2,): the candidate that ``_candidate`` found: first request, size


def shepherd(
    models: Sequence[SimModel],
    gpus: int,
    arrivals_ns: npt.NDArray[np.int64],
    choices: npt.NDArray[np.int32],
) -> Simulated:
    """What Shepherd's Flex does with these arrivals. Raises ``BadInput``."""
    run = start_run(models, gpus, arrivals_ns, choices)
    n, m = len(arrivals_ns), len(models)
    flex = _Flex(
        before=np.full(n, -1, np.int64),
        after=np.full(n, -1, np.int64),
        head=np.full(m, -1, np.int64),
        tail=np.full(m, -1, np.int64),
        queued=np.zeros(m, np.int64),
        row=np.full(gpus, -1, np.int64),
        first=np.full(gpus, -1, np.int64),
        found=np.full(2, -1, np.int64),
    )
    n_batches = _serve(run, flex, choices.astype(np.int64))
    return end_run(run, n_batches, gpus)


@compiled
def _candidate(run: Any, flex: Any, m: int, now: int) -> int:
    """Drop what has expired and find the model's candidate; its size, 0 when there is none."""
    latency = run.latency[m]
    while flex.head[m] >= 0 and run.deadline[flex.head[m]] < now + latency[1]:
        flex.head[m] = flex.after[flex.head[m]]
        flex.queued[m] -= 1
    if flex.head[m] < 0:
        flex.tail[m] = -1
        flex.found[1] = 0
        return 0
    flex.before[flex.head[m]] = -1
    first = flex.head[m]
    largest = 1
    left = flex.queued[m]
    node = first
    fits = 1  # a batch of so many that begins with ``node`` is in time
    while left > largest:
        while fits < run.largest[m] and now + latency[fits + 1] <= run.deadline[node]:
            fits += 1
        if min(fits, left) > largest:
            largest = min(fits, left)
            first = node
        node = flex.after[node]
        left -= 1
    flex.found[0] = first
    flex.found[1] = largest
    return largest


@compiled
def _start(run: Any, flex: Any, m: int, g: int, now: int, row: int) -> None:
    """Take the candidate that was found out of its queue and run it."""
    first = flex.found[0]
    size = flex.found[1]
    last = first
    for _ in range(size - 1):
        last = flex.after[last]
    outer = flex.before[first]
    inner = flex.after[last]
    if outer >= 0:
        flex.after[outer] = inner
    else:
        flex.head[m] = inner
    if inner >= 0:
        flex.before[inner] = outer
    else:
        flex.tail[m] = outer
    flex.after[last] = -1
    flex.queued[m] -= size
    flex.row[g] = row
    flex.first[g] = first
    batch = run.batches[row]
    batch[GPU] = g
    batch[MODEL] = m
    batch[SIZE] = size
    batch[START] = now
    batch[END] = now + run.latency[m, size]


@compiled
def _queue_again(flex: Any, m: int, first: int) -> None:
    """Merge the chain from ``first`` into the model's queue."""
    node = first
    outer = -1
    inner = flex.head[m]
    while node >= 0:
        while inner >= 0 and inner < node:
            outer = inner
            inner = flex.after[inner]
        following = flex.after[node]
        flex.before[node] = outer
        flex.after[node] = inner
        if outer >= 0:
            flex.after[outer] = node
        else:
            flex.head[m] = node
        if inner >= 0:
            flex.before[inner] = node
        else:
            flex.tail[m] = node
        flex.queued[m] += 1
        outer = node
        node = following


@compiled
def _fill(run: Any, flex: Any, g: int, now: int, row: int) -> bool:
    """Run the largest candidate on the free GPU; False when there is none."""
    model = -1
    largest = 0
    deadline = NEVER
    for m in range(len(flex.head)):
        if flex.queued[m] == 0:
            continue
        size = _candidate(run, flex, m, now)
        if size > largest or (size == largest and size > 0 and run.deadline[flex.found[0]] < deadline):
            model = m
            largest = size
            deadline = run.deadline[flex.found[0]]
    if model < 0:
        return False
    _candidate(run, flex, model, now)
    _start(run, flex, model, g, now, row)
    return True


@compiled
def _preempt(run: Any, flex: Any, m: int, now: int, row: int) -> int:
    """Replace the smallest running batch if the model's candidate is large enough; the model put back, or -1."""
    g = 0
    for i in range(1, len(flex.row)):
        if run.batches[flex.row[i], SIZE] < run.batches[flex.row[g], SIZE]:
            g = i
    running = run.batches[flex.row[g]]
    needed = LAMBDA * running[SIZE]
    if flex.queued[m] <= needed or _candidate(run, flex, m, now) <= needed:
        return -1
    stopped = flex.first[g]
    running[END] = now
    _start(run, flex, m, g, now, row)
    _queue_again(flex, running[MODEL], stopped)
    return int(running[MODEL])


@compiled
def _serve(run: Any, flex: Any, choices: Any) -> int:
    n = len(run.arrival)
    gpus = len(flex.row)
    came = 0
    busy = 0
    n_batches = 0
    while True:
        ends = NEVER
        ending = -1
        for g in range(gpus):
            if flex.row[g] >= 0 and run.batches[flex.row[g], END] < ends:
                ends = run.batches[flex.row[g], END]
                ending = g
        while came < n and run.arrival[came] < ends:
            now = run.arrival[came]
            m = choices[came]
            flex.before[came] = flex.tail[m]
            if flex.tail[m] >= 0:
                flex.after[flex.tail[m]] = came
            else:
                flex.head[m] = came
            flex.tail[m] = came
            flex.queued[m] += 1
            came += 1
            if busy < gpus:
                free = 0
                while flex.row[free] >= 0:
                    free += 1
                if _fill(run, flex, free, now, n_batches):
                    busy += 1
                    n_batches += 1
                    ends = min(ends, run.batches[n_batches - 1, END])
                    if ends == run.batches[n_batches - 1, END]:
                        ending = free
                continue
            returned = m
            replaced = False
            while returned >= 0:
                returned = _preempt(run, flex, returned, now, n_batches)
                if returned >= 0:
                    n_batches += 1
                    replaced = True
            if replaced:
                ending = -1
                break
        if ending < 0:
            if busy == 0 and came == n:
                return n_batches
            continue
        batch = run.batches[flex.row[ending]]
        node = flex.first[ending]
        while node >= 0:
            run.finish[node] = batch[END]
            node = flex.after[node]
        flex.row[ending] = -1
        if _fill(run, flex, ending, batch[END], n_batches):
            n_batches += 1
        else:
            busy -= 1
