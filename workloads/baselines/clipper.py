"""Simulates Clipper: eager batches whose largest size is learnt by additive increase, multiplicative decrease.

Source: Crankshaw et al., "Clipper: A Low-Latency Online Prediction Serving System", NSDI 2017, section 4.3.1 (AIMD) and
4.4.1 (every replica has a queue and learns on its own); public code ucbrise/clipper (``task_executor.hpp``: requests
past their deadline leave the queue when a batch is taken).

Rule 1. GPUs are split evenly among the models; with more models than GPUs, replicas of several models share a GPU.
Rule 2. The requests of a model go to its replicas round robin.
Rule 3. A replica whose last batch has ended takes what its queue holds, up to its cap, at once; a request whose
        deadline has passed by then is dropped.
Rule 4. A full batch answered within the SLO raises the cap by ``STEP``; one that took longer lowers it by a tenth. The
        time counts from when the batch was taken, so waiting for a shared GPU is in it and waiting in the queue is not.
Rule 5. A GPU runs the batches of its replicas in the order in which they were taken.

Known faults: the cap settles where l(cap) is the SLO, and a request that had to wait for such a batch is late; nothing
is dropped until it is too late, so that late requests keep GPUs busy; the even split wastes the GPUs of unpopular
models.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from symphony_dask.engine.native.arrays import Int64s
from symphony_dask.engine.native.compiled import compiled
from symphony_dask.errors import BadInput
from workloads.baselines.replicas import Replicas, round_robin, spread_evenly
from workloads.baselines.run import END, GPU, MODEL, NEVER, SIZE, START, Queues, Run, end_run, queues, start_run
from workloads.simulation.result import SimModel, Simulated

#: What a full batch in time adds to the cap: "a fixed amount" in the paper, which names none.
STEP = 1


def clipper(
    models: Sequence[SimModel],
    gpus: int,
    arrivals_ns: npt.NDArray[np.int64],
    choices: npt.NDArray[np.int32],
    *,
    step: int = STEP,
) -> Simulated:
    """What Clipper does with these arrivals; ``step`` in place of ``STEP``. Raises ``BadInput``."""
    if step < 1:
        raise BadInput(f"step={step}: must be at least 1")
    run = start_run(models, gpus, arrivals_ns, choices)
    replicas = spread_evenly(len(models), gpus)
    queue = queues(round_robin(choices, replicas), len(replicas.model))
    slo = np.array([models[m].slo_ns for m in replicas.model], np.int64)
    head = queue.first[:-1].copy()
    ready = np.zeros(len(head), np.int64)
    cap = np.ones(len(head), np.int64)
    n_batches = _serve(run, queue, replicas, slo, head, ready, cap, step)
    return end_run(run, n_batches, gpus)


@compiled
def _serve(
    run: Run, queue: Queues, replicas: Replicas, slo: Int64s, head: Int64s, ready: Int64s, cap: Int64s, step: int
) -> int:
    n_batches = 0
    for g in range(len(replicas.on_gpu) - 1):
        free = 0
        while True:
            taken = NEVER
            r = -1
            for i in range(replicas.on_gpu[g], replicas.on_gpu[g + 1]):
                while head[i] < queue.first[i + 1] and run.deadline[queue.order[head[i]]] <= ready[i]:
                    head[i] += 1
                if head[i] == queue.first[i + 1]:
                    continue
                at = max(ready[i], run.arrival[queue.order[head[i]]])
                if at < taken:
                    taken = at
                    r = i
            if r < 0:
                break
            size = 1
            while (
                size < cap[r]
                and head[r] + size < queue.first[r + 1]
                and run.arrival[queue.order[head[r] + size]] <= taken
            ):
                size += 1
            m = replicas.model[r]
            start = max(free, taken)
            free = start + run.latency[m, size]
            for i in range(head[r], head[r] + size):
                run.finish[queue.order[i]] = free
            head[r] += size
            ready[r] = free
            if free - taken > slo[r]:
                cap[r] = max(1, cap[r] * 9 // 10)
            elif size == cap[r]:
                cap[r] = min(cap[r] + step, run.largest[m])
            row = run.batches[n_batches]
            row[GPU] = g
            row[MODEL] = m
            row[SIZE] = size
            row[START] = start
            row[END] = free
            n_batches += 1
    return n_batches
