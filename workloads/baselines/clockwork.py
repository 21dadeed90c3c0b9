"""Simulates Clockwork: a central controller commits batches of fixed sizes to a schedule per GPU, 10 ms ahead.

Sources: Gujarati et al., "Serving DNNs like Clockwork: Performance Predictability from the Bottom Up", OSDI 2020, on
the controller's scheduling of INFER actions; its public code, ``src/clockwork/controller/infer5/infer5_scheduler.cpp``
(a queue per batch size, strategies by latest start, catching up after a batch) and its controller's defaults
(schedule_ahead 10 ms, max_batch 16).

Rule 1. Batch sizes are 1, 2, 4, 8 and 16. A model has a strategy for each size that its queue can fill with requests
        that would still be in time: its latest start is d - l(b), d the deadline of the first of them.
Rule 2. A GPU takes work when its schedule ends within ``AHEAD`` from now; the one that ends first takes it first.
Rule 3. The strategy with the earliest latest start is taken, at the largest size that its model can fill in time.
Rule 4. A request that cannot meet its deadline in a batch of 1 at the earliest GPU is dropped; so is one that was
        passed over by a batch of later requests.

Where this is kinder than the public code: GPUs are asked in turn there, so that one busy for the next 9 ms may take
work while another is idle, and here the one that ends first is asked; there requests are held to a deadline 5 ms
early, to allow for the network, of which there is none here; batches take exactly l(b), so no estimate is off. All
models are taken to be in every GPU's memory: loading and eviction, half of the paper, are not simulated.

Known faults: batches are committed up to 10 ms early, so that what arrives meanwhile misses them; it never waits for a
batch to fill; sizes beyond 16 and between the powers of two are not used; latest start favours large batches only where
queues are long already.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from symphony_dask.engine.native.arrays import Int64s
from symphony_dask.engine.native.compiled import compiled
from symphony_dask.errors import BadInput
from symphony_dask.units import NS_PER_MS
from workloads.baselines.run import END, GPU, MODEL, NEVER, SIZE, START, Queues, Run, end_run, queues, start_run
from workloads.simulation.result import SimModel, Simulated

#: The only batch sizes, ascending.
SIZES = (1, 2, 4, 8, 16)

#: How far ahead of now a GPU's schedule is filled.
AHEAD = 10 * NS_PER_MS


def clockwork(
    models: Sequence[SimModel],
    gpus: int,
    arrivals_ns: npt.NDArray[np.int64],
    choices: npt.NDArray[np.int32],
    *,
    ahead_ns: int = AHEAD,
    max_batch: int = SIZES[-1],
) -> Simulated:
    """What Clockwork does with these arrivals.

    ahead_ns: how far ahead of now schedules are filled. max_batch: larger ones of ``SIZES`` are not used.
    Raises ``BadInput``.
    """
    if ahead_ns < 0 or max_batch < 1:
        raise BadInput(f"ahead_ns={ahead_ns}, max_batch={max_batch}: give at least 0, and at least 1")
    run = start_run(models, gpus, arrivals_ns, choices)
    queue = queues(choices, len(models))
    sizes = np.array([size for size in SIZES if size <= max_batch], np.int64)
    head = np.repeat(queue.first[:-1, None], len(sizes), axis=1)
    tail = queue.first[:-1].copy()
    end = np.zeros(gpus, np.int64)
    n_batches = _serve(run, queue, choices.astype(np.int64), sizes, head, tail, end, ahead_ns)
    return end_run(run, n_batches, gpus)


@compiled
def _serve(
    run: Run, queue: Queues, choices: Int64s, sizes: Int64s, head: Int64s, tail: Int64s, end: Int64s, ahead: int
) -> int:
    # head[m, k]: first of model m's requests that a batch of sizes[k] could still take; tail[m]: past those that came.
    # end[g]: when GPU g's schedule ends.
    n = len(run.arrival)
    now = run.arrival[0]
    came = 0
    n_batches = 0
    while True:
        while came < n and run.arrival[came] <= now:
            tail[choices[came]] += 1
            came += 1
        waiting = True
        while waiting:
            g = 0
            for i in range(1, len(end)):
                if end[i] < end[g]:
                    g = i
            start = max(end[g], now)
            if start > now + ahead:
                break
            m = -1
            soonest = NEVER
            for i in range(len(tail)):
                for k in range(len(sizes) - 1, -1, -1):
                    if sizes[k] > run.largest[i]:
                        continue
                    latency = run.latency[i, sizes[k]]
                    while head[i, k] < tail[i] and run.deadline[queue.order[head[i, k]]] < start + latency:
                        head[i, k] += 1
                    if tail[i] - head[i, k] < sizes[k]:
                        continue
                    latest_start = run.deadline[queue.order[head[i, k]]] - latency
                    if latest_start < soonest:
                        soonest = latest_start
                        m = i
            if m < 0:
                waiting = False
                break
            best = 0
            for k in range(1, len(sizes)):
                if sizes[k] <= run.largest[m] and tail[m] - head[m, k] >= sizes[k]:
                    best = k
            size = sizes[best]
            end[g] = start + run.latency[m, size]
            past = head[m, best] + size
            for i in range(head[m, best], past):
                run.finish[queue.order[i]] = end[g]
            for k in range(len(sizes)):
                head[m, k] = max(head[m, k], past)
            row = run.batches[n_batches]
            row[GPU] = g
            row[MODEL] = m
            row[SIZE] = size
            row[START] = start
            row[END] = end[g]
            n_batches += 1
        if came == n and not waiting:
            return n_batches
        if waiting:
            opens = NEVER
            for i in range(len(end)):
                opens = min(opens, end[i] - ahead)
            now = opens if came == n else min(opens, run.arrival[came])
        else:
            now = run.arrival[came]
