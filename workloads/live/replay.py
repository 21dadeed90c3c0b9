"""Replays requests to a live cluster at their times with a future for each, for who wants to see the answers.

``load_generator`` offers more requests a second, and sees only what became of them.
Latency counts from the time that the trace says, not from when the request was in fact submitted, so a replayer that
falls behind cannot hide it; its lateness is reported too.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from symphony_dask.backends import Emulated
from symphony_dask.client.future import InferenceFuture
from symphony_dask.client.model import Model
from symphony_dask.errors import BadInput, SymphonyError
from symphony_dask.units import NS_PER_MS, NS_PER_S

#: Requests due within so long are submitted together, ns: less than a timer can tell apart.
_TOGETHER_NS = 50_000


@dataclass(frozen=True)
class Replayed:
    """How a replay went, as the client saw it: ``ok`` was answered within the SLO of its scheduled time.

    lateness_*_ms: how much later than scheduled requests were submitted.
    """

    requests: int
    ok: int
    late: int
    dropped: int
    rejected: int
    failed: int
    cancelled: int
    attainment: float
    offered_hz: float
    goodput_hz: float
    p50_ms: float | None
    p99_ms: float | None
    lateness_p50_ms: float
    lateness_p99_ms: float
    lateness_max_ms: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def replay(
    models: Sequence[Model],
    arrivals_ns: npt.NDArray[np.int64],
    choices: npt.NDArray[np.int32],
    *,
    payload: Callable[[int], Any] = lambda i: None,
    speed: float = 1.0,
    drain_s: float = 30.0,
    on_progress: Callable[[int], None] = lambda n: None,
    on_answer: Callable[[int, InferenceFuture], None] | None = None,
) -> Replayed:
    """Submit request i to ``models[choices[i]]`` at ``arrivals_ns[i] / speed`` from now.

    arrivals_ns: (n,) rising, from any origin; choices: (n,).
    payload: makes the sample of request i; it runs in the replaying thread, so it must be quick.
    drain_s: how long to wait for the last answers; requests without one by then count as failed.
    on_progress: called now and then with the number submitted.
    on_answer: called with each request's index and future, done, after the replay.

    Raises ``BadInput`` if there is nothing to replay or ``speed`` is not positive.
    """
    offsets = scaled(arrivals_ns, speed)
    n = len(offsets)
    done_ns = np.full(n, -1, np.int64)
    futures: list[InferenceFuture | None] = [None] * n
    submitted = np.empty(n, np.int64)

    # A full garbage collection in the middle would be lateness of the replayer's own making.
    gc.collect()
    gc.freeze()
    start = time.monotonic_ns() + 50 * NS_PER_MS
    due = (offsets + start).tolist()
    which = choices.tolist()
    i = 0
    while i < n:
        now = time.monotonic_ns()
        if due[i] - now > _TOGETHER_NS:
            time.sleep((due[i] - now) / NS_PER_S)
            now = time.monotonic_ns()
        first = i
        while i < n and due[i] <= now + _TOGETHER_NS:
            try:
                future = models[which[i]].submit(payload(i))
            except SymphonyError:
                pass  # counted as failed below: no future
            else:
                futures[i] = future
                future.add_done_callback(_stamp(done_ns, i))
            i += 1
        submitted[first:i] = time.monotonic_ns()
        on_progress(i)
    _await(futures, drain_s)
    gc.unfreeze()

    outcomes = [f.outcome if f is not None and f.done() else "failed" for f in futures]
    latency = done_ns - start - offsets
    slos = np.array([m.slo_ns for m in models])[choices]
    answered = np.array([o in ("ok", "late") for o in outcomes]) & (done_ns >= 0)
    ok = answered & (latency <= slos)
    counts = {o: outcomes.count(o) for o in ("dropped", "rejected", "failed", "cancelled")}
    if on_answer is not None:
        for k, future in enumerate(futures):
            if future is not None and future.done():
                on_answer(k, future)
    span_s = max(float(offsets[-1]), 1.0) / NS_PER_S
    late_ms = np.maximum(submitted - start - offsets, 0) / NS_PER_MS
    quantiles = np.quantile(latency[answered], [0.5, 0.99]) / NS_PER_MS if answered.any() else (None, None)
    return Replayed(
        requests=n,
        ok=int(ok.sum()),
        late=int((answered & ~ok).sum()),
        **counts,
        attainment=float(ok.mean()),
        offered_hz=n / span_s,
        goodput_hz=float(ok.sum()) / span_s,
        p50_ms=quantiles[0],
        p99_ms=quantiles[1],
        lateness_p50_ms=float(np.quantile(late_ms, 0.5)),
        lateness_p99_ms=float(np.quantile(late_ms, 0.99)),
        lateness_max_ms=float(late_ms.max()),
    )


def scaled(arrivals_ns: npt.NDArray[np.int64], speed: float) -> npt.NDArray[np.int64]:
    """The arrivals counted from the first, ``speed`` times as fast; raises ``BadInput`` as ``replay`` does."""
    if len(arrivals_ns) == 0:
        raise BadInput("the trace has no requests to replay")
    if not speed > 0:
        raise BadInput(f"speed {speed!r}: give a number above 0; 2 replays twice as fast as recorded")
    return ((arrivals_ns - arrivals_ns[0]) / speed).astype(np.int64)


def choose_models(names: Mapping[str, int] | None, trace_models: Sequence[str], n_models: int) -> npt.NDArray[np.int32]:
    """Which of ``n_models`` serves each request: by the names in ``names``, else the trace's models in turn."""
    known = dict(names or {})
    for name in trace_models:
        known.setdefault(name, len(known) % n_models)
    return np.array([known[name] for name in trace_models], np.int32)


def parse_model(text: str) -> tuple[str, Emulated, str]:
    """Name, model and SLO of "NAME=ALPHA,BETA@SLO", as in "resnet50=1.053,5.072@50ms"; raises ``BadInput``."""
    name, _, rest = text.partition("=")
    profile, _, slo = rest.partition("@")
    if not (name and profile and slo):
        raise BadInput(f'model {text!r} cannot be read: write NAME=ALPHA,BETA@SLO, such as "resnet50=1.053,5.072@50ms"')
    return name, Emulated.parse(profile), slo


def _stamp(done_ns: npt.NDArray[np.int64], i: int) -> Callable[[Any], None]:
    def stamp(future: Future[Any]) -> None:
        done_ns[i] = time.monotonic_ns()

    return stamp


def _await(futures: Sequence[InferenceFuture | None], drain_s: float) -> None:
    """Wait until all are done, for at most ``drain_s``."""
    end = time.monotonic() + drain_s
    for future in futures:
        if future is None or future.done():
            continue
        try:
            future.exception(timeout=max(0.0, end - time.monotonic()))
        except Exception:
            if not future.done():
                return
