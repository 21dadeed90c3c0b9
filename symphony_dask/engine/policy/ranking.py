"""Chooses which of several models gets a GPU, when there are fewer GPUs than models that could start.

Rule 1. A model's batch is the one that would be dispatched now. Its latest start is d - l(b), where d is the first
        deadline in it, and models are in the order of these: the one that can wait least comes first.
Rule 2. That order is followed into the future: each next batch to the GPU that comes free first. If one would start
        after its latest start, there is too little GPU time for all of them. Of those up to it the smallest batch then
        stands back, and the order is followed anew (the rule of Moore and Hodgson, which loses the fewest jobs on one
        machine). What comes first after that gets the GPU.
Rule 3. Only starts within HORIZON_TENTHS / 10 SLOs are looked at, and the first LOOK models and GPUs of their heaps:
        what comes later is not known yet.
"""

from __future__ import annotations

from symphony_dask.engine.native import heap
from symphony_dask.engine.native.compiled import inlined
from symphony_dask.engine.policy import window
from symphony_dask.engine.state import State

#: Rule 3. LOOK is three levels of a heap.
HORIZON_TENTHS, LOOK = 4, 21

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


@inlined
def _horizon(s: State, m: int) -> int:
    """Rule 3."""
    return _short(s.mod[m].slo * HORIZON_TENTHS // 10)


@inlined
def put(s: State, n: int, m: int, now: int) -> int:
    """Put a model among the ``n`` that are in order; returns how many there are then."""
    x = s.g[0].scratch
    mod = s.mod[m]
    latency = s.lat[m, mod.gpu_class]
    size = window.size_now(s, m, latency, now)
    start = _short(mod.first_at - s.g[0].control - now - latency[size])
    if n > 0 and start > x[STARTS] and start >= _horizon(s, m):
        return n
    i = n
    while i > 0 and (x[STARTS + i - 1] > start or (x[STARTS + i - 1] == start and x[MODELS + i - 1] > m)):
        for part in (MODELS, STARTS, SIZES, TIMES):
            x[part + i] = x[part + i - 1]
        i -= 1
    x[MODELS + i] = m
    x[STARTS + i] = start
    x[SIZES + i] = size
    x[TIMES + i] = _short(latency[size])
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


@inlined
def _all_in_time(s: State, n: int, now: int, horizon: int) -> bool:
    """Whether a glance tells that none is late: there are GPUs for all, or what waits can do so until as many more are
    free, or none comes free within the horizon.
    """
    x = s.g[0].scratch
    k = n - heap.size(s.open)
    if x[STARTS] < 0 or k > heap.size(s.busy):
        return False
    last = -_MOST
    for i in range(k):
        last = max(last, _short(s.busy[heap.ROOT + i, heap.KEY] - now))
    return bool(k <= 0 or last <= x[STARTS + n - k] or _short(heap.first_key(s.busy) - now) > horizon)


@inlined
def first(s: State, n: int, now: int) -> int:
    """Of the ``n`` models that were put in order the one that gets the GPU (rule 2)."""
    x = s.g[0].scratch
    horizon = _horizon(s, int(x[MODELS]))
    while n > 1 and x[STARTS + n - 1] >= horizon:  # cannot be late within the horizon
        n -= 1
    while n > 1 and not _all_in_time(s, n, now, horizon):
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
