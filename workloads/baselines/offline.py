"""Schedules with perfect knowledge: all arrivals are known beforehand, and a search looks for the best batches.

Source: the search is our own. The problem is one of parallel batching (Brucker, "Scheduling Algorithms", 2007, section
8.3; Baptiste, "Batching identical jobs", Mathematical Methods of Operations Research 52, 2000): identical machines,
release dates, deadlines in the order of the release dates, batches whose time grows with their size, and as many jobs
in time as can be.

Rule 1. A batch holds neighbours: requests of a model in order of arrival, with none between them left out.
Rule 2. Batches are placed in order of urgency. The undecided request with the earliest latest start, d - l(1), is next:
        it is given up, or is the first of a batch of any size that ends by its deadline.
Rule 3. A batch starts as soon as its last request has come and a GPU is free; of those free by then, on the one that
        became so last. So a GPU may be held back for requests that are known to come.
Rule 4. At each place in that order the best ``WIDTH`` schedules so far are kept for each of ``PRICES`` (beam search,
        ``offline_search``).
Rule 5. Where one of ``ONLINE`` has more requests in time, its schedule is taken.

What the figure is: a *lower* bound of what perfect knowledge reaches. Rule 4 forgets schedules, and rules 1 and 2 leave
some out: a small batch that starts and ends during a larger one of its model may hold older requests, and the less
urgent of two models may go first. With one model on one GPU rule 4 alone does (``test_offline`` has cells of 8 requests
where all schedules are tried).

Known faults: arrivals are not known in life, so nobody can run it; it takes some 0.5 ms a request, so it
refuses what is large; it looks only at whether requests are in time, and leaves GPUs idle or busy as it happens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from heapq import heappop, heappush

import numpy as np
import numpy.typing as npt

from symphony_dask.errors import BadInput
from workloads.baselines.offline_search import GIVEN_UP, ROOT, Beam, new_beam, search
from workloads.baselines.run import END, GPU, MODEL, SIZE, START, Queues, Run, end_run, queues, start_run
from workloads.simulation.result import SimModel, Simulated
from workloads.simulation.simulate import simulate

#: The largest cells that are taken.
MOST_REQUESTS, MOST_GPUS, MOST_MODELS = 40_000, 32, 50

#: Schedules that are kept at each step, for each price.
WIDTH = 32

#: What a missed request counts as, in GPU times of a request in the largest batch that its SLO allows.
PRICES = (1, 1.4, 2, 2.8, 4, 5.6, 8, 16, 32)

#: Schedules whose GPUs become free within this part of the SLO of each other count as one.
GRAIN = 1 / 250

#: Policies whose schedule is taken where it is better.
ONLINE = ("adaptive", "eager", "deferred")


def check_size(requests: int, gpus: int, models: int) -> None:
    """Raise ``BadInput`` for more than can be searched."""
    if requests > MOST_REQUESTS or gpus > MOST_GPUS or models > MOST_MODELS:
        raise BadInput(
            f"policy 'offline' searches at most {MOST_REQUESTS:,} requests, {MOST_GPUS} GPUs and {MOST_MODELS} models, "
            f"and these are {requests:,}, {gpus} and {models}: give fewer seconds, a shorter trace or a smaller cell"
        )


def offline(
    models: Sequence[SimModel],
    gpus: int,
    arrivals_ns: npt.NDArray[np.int64],
    choices: npt.NDArray[np.int32],
    *,
    width: int = WIDTH,
    online: Sequence[str] = ONLINE,
) -> Simulated:
    """The best schedule that is found for these arrivals, or a better one of the policies ``online``.

    width: in place of ``WIDTH``. Raises ``BadInput``, at once where the cell is too large.
    """
    if width < 1:
        raise BadInput(f"width is {width}: give at least 1")
    run = start_run(models, gpus, arrivals_ns, choices)
    check_size(len(arrivals_ns), gpus, len(models))
    queue = queues(choices, len(models))
    largest = [
        max(1, int(np.searchsorted(row[1 : most + 1], model.slo_ns, "right")))
        for row, most, model in zip(run.latency, run.largest, models, strict=True)
    ]
    least_ns = (run.latency[np.arange(len(models)), largest] / largest)[choices].mean()
    span_ns = int(run.deadline.max() - run.arrival[0])
    beam = new_beam(
        run,
        choices,
        gpus,
        prices=[round(price * least_ns) for price in PRICES],
        credit=gpus * span_ns // len(choices),
        grain=max(1, round(GRAIN * min(model.slo_ns for model in models))),
        width=width,
    )
    last = search(beam, run, queue)
    found = end_run(run, _fill(run, queue, beam, last, gpus), gpus)
    others = [simulate(models, gpus, arrivals_ns, choices, policy=policy) for policy in online]
    best = max([found, *others], key=lambda result: result.attainment)
    return Simulated(**{field.name: getattr(best, field.name) for field in fields(Simulated)})


def _fill(run: Run, queue: Queues, beam: Beam, last: int, gpus: int) -> int:
    """Write the schedule that ends with step ``last`` into the run's tables; gives its number of batches."""
    steps = []
    while beam.steps[last, 2] != ROOT:
        steps.append(beam.steps[last, 1:].tolist())
        last = int(beam.steps[last, 0])
    place = queue.first[:-1].copy()
    batches = []
    for m, size, start in reversed(steps):
        if size == GIVEN_UP:
            place[m] += 1
            continue
        end = start + int(run.latency[m, size])
        run.finish[queue.order[place[m] : place[m] + size]] = end
        place[m] += size
        batches.append((start, end, m, size))
    # No more batches overlap than there are GPUs, so each finds one that is free, the lowest.
    free, busy = list(range(gpus)), list[tuple[int, int]]()
    for k, (start, end, m, size) in enumerate(sorted(batches)):
        while busy and busy[0][0] <= start:
            heappush(free, heappop(busy)[1])
        gpu = heappop(free)
        heappush(busy, (end, gpu))
        row = run.batches[k]
        row[GPU], row[MODEL], row[SIZE], row[START], row[END] = gpu, m, size, start, end
    return len(batches)
