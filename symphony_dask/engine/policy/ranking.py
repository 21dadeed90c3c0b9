"""Chooses which of several models gets a GPU, when there are fewer GPUs than models that could start.

Rule 1. A model's batch is the one that would be dispatched now. Its latest start is d - l(b), where d is the first
        deadline in it, and models are in the order of these: the one that can wait least comes first.
Rule 2. That order is followed into the future: each next batch to the GPU that comes free first. If one would start
        after its latest start, there is too little GPU time for all of them. Of those up to it the smallest batch then
        stands back, and the order is followed anew (the rule of Moore and Hodgson, which loses the fewest jobs on one
        machine). What comes first after that gets the GPU.
Rule 3. Only starts within HORIZON SLOs are looked at, and the first LOOK models and GPUs of their heaps: what comes
        later is not known yet.
"""

from __future__ import annotations

from symphony_dask.engine.native import heap
from symphony_dask.engine.native.compiled import compiled, inlined
from symphony_dask.engine.policy import window
from symphony_dask.engine.state import State

#: Rule 3. LOOK is three levels of a heap.
HORIZON, LOOK = 0.4, 21

#: Most models in order.
MOST = 32

#: Times in the scratch are in units of 2**SHIFT ns from now, so that they fit 32 bits.
SHIFT = 10
_MOST = (1 << 31) - 1

# The scratch: models in order, their latest starts, sizes and times; then when GPUs come free.
MODELS, STARTS, SIZES, TIMES, GPUS = 0, 32, 64, 96, 128


@inlined
def _short(ns: int) -> int:
    return min(max(ns >> SHIFT, -_MOST), _MOST)


@compiled
def put(s: State, n: int, m: int, now: int) -> int:
    """Put a model among the ``n`` that are in order; returns how many there are then."""
    x = s.g[0].scratch
    latency = s.lat[m, s.mod[m].gpu_class]
    at, _, size = window.shape(s, m, latency, now + s.g[0].control)
    start = _MOST
    if size > 0:
        start = _short(s.req[at].deadline - latency[size] - s.g[0].control - now)
    i = n
    while i > 0 and (x[STARTS + i - 1] > start or (x[STARTS + i - 1] == start and x[MODELS + i - 1] > m)):
        for part in (MODELS, STARTS, SIZES, TIMES):
            x[part + i] = x[part + i - 1]
        i -= 1
    x[MODELS + i] = m
    x[STARTS + i] = start
    x[SIZES + i] = size
    x[TIMES + i] = _short(latency[size]) if size > 0 else 0
    return n + 1


@inlined
def _take_out(s: State, n: int, i: int) -> None:
    x = s.g[0].scratch
    for j in range(i, n - 1):
        for part in (MODELS, STARTS, SIZES, TIMES):
            x[part + j] = x[part + j + 1]


@inlined
def _list_gpus(s: State, n: int, now: int) -> int:
    """When the next GPUs come free, in order, at most ``n``; returns how many there are."""
    x = s.g[0].scratch
    k = min(n, heap.size(s.open))
    for i in range(k):
        x[GPUS + i] = 0
    for i in range(min(LOOK, heap.size(s.busy))):
        free = _short(s.busy[heap.ROOT + i, heap.KEY] - now)
        if k == n and free >= x[GPUS + k - 1]:
            continue
        j = k if k < n else n - 1
        while j > 0 and x[GPUS + j - 1] > free:
            x[GPUS + j] = x[GPUS + j - 1]
            j -= 1
        x[GPUS + j] = free
        k = min(k + 1, n)
    return k


@compiled
def first(s: State, n: int, now: int) -> int:
    """Of the ``n`` models that were put in order the one that gets the GPU (rule 2)."""
    x = s.g[0].scratch
    horizon = _short(int(HORIZON * s.mod[x[MODELS]].slo))
    while n > 1 and heap.size(s.open) < n:
        gpus = _list_gpus(s, n, now)
        late = -1
        for i in range(n):
            start = x[GPUS]
            if start > horizon:
                break
            if start > x[STARTS + i]:
                late = i
                break
            free = start + x[TIMES + i]
            j = 0
            while j + 1 < gpus and x[GPUS + j + 1] < free:
                x[GPUS + j] = x[GPUS + j + 1]
                j += 1
            x[GPUS + j] = free
        if late <= 0:
            break
        least = 0
        for i in range(1, late + 1):
            if x[SIZES + i] < x[SIZES + least]:
                least = i
        _take_out(s, n, least)
        n -= 1
    return int(x[MODELS])
