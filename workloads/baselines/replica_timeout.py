"""Timeout batchers behind a round robin: what general model servers do.

Sources: Ray Serve ``@serve.batch`` (max_batch_size, batch_wait_timeout_s, one batch at a time), Triton's dynamic
batcher (max_queue_delay_microseconds, from the arrival of the oldest request), Mosec (max_batch_size, max_wait_time).

Rule 1. GPUs are split evenly among the models; with more models than GPUs, replicas of several models share a GPU.
Rule 2. The requests of a model go to its replicas round robin; nothing moves between replicas afterwards.
Rule 3. A replica whose last batch has ended forms the next when it has ``max_batch`` requests or its oldest has
        waited for the time-out, whichever is first, and at once where that is past.
Rule 4. A GPU runs the batches of its replicas in the order in which they were formed.
Rule 5. Deadlines are not known: late requests are run all the same, and nothing is dropped.

Knobs, one rule for every run: max_batch is the largest b with l(b) <= SLO, at least 1, and the time-out is the SLO over
``WAIT_PART``. Of 16 such rules (l(b) within the SLO, half of it or its part for each replica on the GPU, or any b; no
time-out, SLO/10, SLO/4 or SLO/2) this one had the best goodput in sum over one and 20 ResNet-50s with SLOs of 25 to
100 ms on 8 and 16 GPUs. All rules were within 3 % of it but for SLO/2, which lost up to 15 % with one model.

Known faults: one overload makes every later request late; the even split wastes the GPUs of unpopular models; a
time-out that fits one load is wrong for others.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from symphony_dask.scheduling.compiled import compiled
from workloads.baselines.replicas import round_robin, spread_evenly
from workloads.baselines.run import END, GPU, MODEL, NEVER, SIZE, START, end_run, queues, start_run
from workloads.simulated import SimModel, Simulated

#: The time-out is this part of the SLO.
WAIT_PART = 4


def replica_timeout(
    models: Sequence[SimModel],
    gpus: int,
    arrivals_ns: npt.NDArray[np.int64],
    choices: npt.NDArray[np.int32],
) -> Simulated:
    """What a timeout batcher per replica does with these arrivals. Raises ``BadInput``."""
    run = start_run(models, gpus, arrivals_ns, choices)
    replicas = spread_evenly(len(models), gpus)
    queue = queues(round_robin(choices, replicas), len(replicas.model))
    fits = [np.searchsorted(run.latency[m, 1 : run.largest[m] + 1], models[m].slo_ns, "right") for m in replicas.model]
    max_batch = np.maximum(np.array(fits, np.int64), 1)
    wait_ns = np.array([models[m].slo_ns // WAIT_PART for m in replicas.model], np.int64)
    head = queue.first[:-1].copy()
    ready = np.zeros(len(head), np.int64)
    n_batches = _serve(run, queue, replicas, max_batch, wait_ns, head, ready)
    return end_run(run, n_batches, gpus)


@compiled
def _serve(run: Any, queue: Any, replicas: Any, max_batch: Any, wait_ns: Any, head: Any, ready: Any) -> int:
    n_batches = 0
    for g in range(len(replicas.on_gpu) - 1):
        free = 0
        while True:
            formed = NEVER
            r = -1
            for i in range(replicas.on_gpu[g], replicas.on_gpu[g + 1]):
                if head[i] == queue.first[i + 1]:
                    continue
                at = run.arrival[queue.order[head[i]]] + wait_ns[i]
                full = head[i] + max_batch[i] - 1
                if full < queue.first[i + 1]:
                    at = min(at, run.arrival[queue.order[full]])
                at = max(at, ready[i])
                if at < formed:
                    formed = at
                    r = i
            if r < 0:
                break
            size = 1
            while (
                size < max_batch[r]
                and head[r] + size < queue.first[r + 1]
                and run.arrival[queue.order[head[r] + size]] <= formed
            ):
                size += 1
            m = replicas.model[r]
            start = max(free, formed)
            free = start + run.latency[m, size]
            for i in range(head[r], head[r] + size):
                run.finish[queue.order[i]] = free
            head[r] += size
            ready[r] = free
            row = run.batches[n_batches]
            row[GPU] = g
            row[MODEL] = m
            row[SIZE] = size
            row[START] = start
            row[END] = free
            n_batches += 1
    return n_batches
