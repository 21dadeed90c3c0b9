"""Keeps the last batches, and the last minute second by second, for people who look.

A batch costs one packed record when it ends; all else is done a few times a second, for all batches since at once. The
dispatcher feeds it; the dashboard, ``symphony top`` and the metrics read it.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from symphony_dask.engine.request_kernels import LATENCY_BINS, LATENCY_BOUNDS_NS
from symphony_dask.engine.start_rules import START_RULES, UNKNOWN
from symphony_dask.trace import Outcome
from symphony_dask.units import NS_PER_S

#: A batch that ended. model: its id; times in ns on the host's clock; waited: 1 if another was at its GPU when it left.
#: Then the fields of ``Spent``, and which of ``START_RULES`` let it start.
BATCH = np.dtype(
    [
        (name, "<i8")
        for name in (
            *("model", "gpu", "size", "open", "close", "dispatch", "start", "end", "waited", "planned_ns"),
            *("answered", "answer_ns", "queue_ns", "input_ns", "infer_ns", "output_ns"),
            "rule",
        )
    ]
)
_PACK = struct.Struct(f"<{BATCH.itemsize // 8}q").pack_into

#: So many batches are kept.
KEPT = 8192

#: Seconds of history, and over how many of them figures of now are told.
HISTORY_S, RECENT_S = 60, 10

#: Up to where the bins of batch sizes reach, and of the share of the window that was left; one more bin for all above.
SIZE_BOUNDS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
LEFT_BOUNDS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)

#: Why a batch left when it did: its window opened; a GPU became free inside the window; an idle GPU took it early.
REASONS = ("opening", "gpu_free", "early")

#: A batch that leaves no later than this after the opening left because of it, ns: timers are so exact.
OPENING_NS = 1_000_000

#: Of the ends of requests, those that say whether the service kept its word.
_JUDGED = [Outcome.OK, Outcome.LATE, Outcome.DROPPED, Outcome.REJECTED, Outcome.FAILED]

Ints = npt.NDArray[np.int64]


class Facts(NamedTuple):
    """What a model is now."""

    name: str
    slo_ns: int
    queued: int
    target_batch: int


class Spent(NamedTuple):
    """Where the time of a batch's requests went.

    answered: how many got an answer; answer_ns: from when they came here to when their answers did, of all of these
    together, and queue_ns: of that, all before their batch was prepared and run. input_ns: for the batch, to decode and
    stack its samples and have them on the device; infer_ns: to call the model; output_ns: to encode its answers.
    """

    answered: int
    answer_ns: int
    queue_ns: int
    input_ns: int
    infer_ns: int
    output_ns: int


class Tally:
    """What the batches of one model add up to. sizes, left: counts by bin; reasons: by ``REASONS``; rules: by
    ``START_RULES``.

    spent: over all answered requests, each with the whole times of its batch. by_size: of batches of each size, how
    many ran, and what they spent on inputs, the model and outputs, ns. end_ns: of the last.
    """

    def __init__(self) -> None:
        self.sizes = np.zeros(len(SIZE_BOUNDS) + 1, np.int64)
        self.left = np.zeros(len(LEFT_BOUNDS) + 1, np.int64)
        self.reasons = np.zeros(len(REASONS), np.int64)
        self.rules = np.zeros(len(START_RULES), np.int64)
        self.requests = 0
        self.left_sum = 0.0
        self.run_ns = 0
        self.planned_ns = 0
        self.spent = Spent(0, 0, 0, 0, 0, 0)
        self.by_size: dict[int, tuple[int, int, int, int]] = {}
        self.end_ns = 0


class ModelCounts(NamedTuple):
    """All that was counted of a model. latencies: as ``request_kernels.settle`` makes them; drift: of l(b), by GPU
    class.
    """

    name: str
    outcomes: dict[str, int]
    latencies: Ints
    tally: Tally
    drift: dict[str, float]


class _Second(NamedTuple):
    """Counts so far, of each model: ``counts`` by outcome, ``latencies`` as ``request_kernels.settle`` makes them."""

    time_s: float
    counts: dict[int, Ints]
    latencies: dict[int, Ints]


class RecentActivity:
    """The last batches and seconds: call ``batch`` for each batch, ``fold`` some times a second, ``sample`` once."""

    def __init__(self) -> None:
        self._ring = np.zeros(KEPT, BATCH)
        self._buffer = self._ring.view(np.uint8).data
        self._n = 0
        self._folded = 0
        #: By model id.
        self.tallies: dict[int, Tally] = {}
        self._seconds: deque[_Second] = deque(maxlen=HISTORY_S + 1)

    def batch(
        self,
        model: int,
        gpu: int,
        size: int,
        window: tuple[int, int],
        dispatch: int,
        start: int,
        end: int,
        waited: bool,
        planned_ns: int,
        spent: Spent,
        rule: int = UNKNOWN,
    ) -> None:
        """A batch has ended."""
        n = self._n
        at = n % KEPT * BATCH.itemsize
        _PACK(self._buffer, at, model, gpu, size, *window, dispatch, start, end, waited, planned_ns, *spent, rule)
        self._n = n + 1
        if n - self._folded >= KEPT - 1:
            self.fold()

    def last(self, n: int = KEPT) -> npt.NDArray[Any]:
        """The last batches, (at most n,) of ``BATCH``, the oldest first."""
        n = min(n, self._n, KEPT)
        return self._ring[np.arange(self._n - n, self._n) % KEPT]

    def fold(self) -> None:
        """Take the batches since the last time into the tallies."""
        batches = self.last(self._n - self._folded)
        self._folded = self._n
        for model in np.unique(batches["model"]).tolist():
            _add(self.tallies.setdefault(model, Tally()), batches[batches["model"] == model])

    def sample(self, time_s: float, models: Iterable[tuple[int, Ints, Ints]]) -> None:
        """The counts of now, of each model: its id, its requests by outcome, and its latencies."""
        counts, latencies = {}, {}
        for model, by_outcome, took in models:
            counts[model], latencies[model] = by_outcome.copy(), took.copy()
        self.tallies = {model: tally for model, tally in self.tallies.items() if model in counts}
        if len(self._seconds) > RECENT_S + 1:  # older histograms are of no use
            self._seconds[-RECENT_S - 2].latencies.clear()
        self._seconds.append(_Second(time_s, counts, latencies))

    def models(self, now_ns: int, models: Mapping[int, Facts]) -> list[dict[str, Any]]:
        """How each model, by its id, did in the last ``RECENT_S`` seconds, as plain values; times in ns.

        Where nothing ended or ran there, attainment, latencies and mean batch are None.
        """
        batches = self._since(now_ns, RECENT_S)
        return [
            {
                "name": m.name,
                "slo_ns": m.slo_ns,
                "queued": m.queued,
                "target_batch": m.target_batch,
                **self._recent(model),
                **_shape(batches[batches["model"] == model]),
            }
            for model, m in models.items()
        ]

    def history(self, model: int) -> tuple[list[float], list[float], list[float]]:
        """Seconds up to the last sample (0, -1, ...), goodput in Hz and attainment (NaN: nothing ended) in each."""
        seconds, goodput, attainment = [], [], []
        for before, after in zip(self._seconds, list(self._seconds)[1:], strict=False):
            if model not in after.counts:
                continue
            ended = _ended(before, after, model)
            judged = int(ended[_JUDGED].sum())
            seconds.append(after.time_s - self._seconds[-1].time_s)
            goodput.append(float(ended[Outcome.OK]) / (after.time_s - before.time_s))
            attainment.append(float(ended[Outcome.OK]) / judged if judged else float("nan"))
        return seconds, goodput, attainment

    def _since(self, now_ns: int, seconds: float) -> npt.NDArray[Any]:
        batches = self.last()
        return batches[batches["end"] > now_ns - int(seconds * NS_PER_S)]

    def _recent(self, model: int) -> dict[str, Any]:
        """Rates and latencies over the last ``RECENT_S``."""
        none: dict[str, Any] = {"ended_hz": 0.0, "goodput_hz": 0.0, "attainment": None, "p50_ns": None, "p99_ns": None}
        if len(self._seconds) < 2 or model not in self._seconds[-1].counts:
            return none
        last = self._seconds[-1]
        first = next(s for s in self._seconds if s.time_s > last.time_s - RECENT_S - 0.5)
        if first is last:
            return none
        ended = _ended(first, last, model)
        judged = int(ended[_JUDGED].sum())
        took = last.latencies[model] - first.latencies.get(model, 0)
        span_s = last.time_s - first.time_s
        return {
            "ended_hz": judged / span_s,
            "goodput_hz": int(ended[Outcome.OK]) / span_s,
            "attainment": int(ended[Outcome.OK]) / judged if judged else None,
            "p50_ns": quantile_ns(took, 0.5),
            "p99_ns": quantile_ns(took, 0.99),
        }


def quantile_ns(latencies: Ints, q: float) -> int | None:
    """The q-quantile of a histogram as ``request_kernels.settle`` makes it, within one bin (12 %); None if it is
    empty.
    """
    counts = latencies[:LATENCY_BINS]
    total = int(counts.sum())
    if not total:
        return None
    cumulated = np.cumsum(counts)
    b = int(np.searchsorted(cumulated, q * total))
    low = int(LATENCY_BOUNDS_NS[b - 1]) if b else 0
    high = int(LATENCY_BOUNDS_NS[min(b, LATENCY_BINS - 2)])
    before = int(cumulated[b - 1]) if b else 0
    return low + round((high - low) * (q * total - before) / int(counts[b]))


def reasons(batches: npt.NDArray[Any]) -> npt.NDArray[np.intp]:
    """Why each batch left when it did, as an index into ``REASONS``."""
    late = batches["dispatch"] - batches["open"]
    return np.where(late < 0, 2, np.where((batches["waited"] != 0) | (late > OPENING_NS), 1, 0))


def window_left(batches: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """The share of its window that each batch had left when it was dispatched, above 1 if that had not opened yet."""
    width = np.maximum(batches["close"] - batches["open"], 1)
    left: npt.NDArray[np.float64] = np.clip((batches["close"] - batches["dispatch"]) / width, 0.0, 2.0)
    return left


def _add(tally: Tally, batches: npt.NDArray[Any]) -> None:
    left = window_left(batches)
    tally.sizes += _binned(SIZE_BOUNDS, batches["size"])
    tally.left += _binned(LEFT_BOUNDS, left)
    tally.reasons += np.bincount(reasons(batches), minlength=len(REASONS))
    tally.rules += np.bincount(batches["rule"], minlength=len(START_RULES))
    tally.requests += int(batches["size"].sum())
    tally.left_sum += float(left.sum())
    tally.run_ns += int((batches["end"] - batches["start"]).sum())
    tally.planned_ns += int(batches["planned_ns"].sum())
    _add_spent(tally, batches)


def _add_spent(tally: Tally, batches: npt.NDArray[Any]) -> None:
    of_batch = np.stack([batches[name] for name in ("input_ns", "infer_ns", "output_ns")])
    of_all = [batches[name].sum() for name in ("answered", "answer_ns", "queue_ns")]
    new = [*of_all, *(of_batch * batches["answered"]).sum(1)]
    tally.spent = Spent(*(before + int(more) for before, more in zip(tally.spent, new, strict=True)))
    for size in np.unique(batches["size"]).tolist():
        of_size = batches["size"] == size
        more = (int(of_size.sum()), *of_batch[:, of_size].sum(1).tolist())
        before = tally.by_size.get(size, (0, 0, 0, 0))
        tally.by_size[size] = (before[0] + more[0], before[1] + more[1], before[2] + more[2], before[3] + more[3])
    tally.end_ns = int(batches["end"].max())


def spent_by(tally: Tally, now_ns: int) -> dict[str, Any]:
    """Where the time of a model's requests went, as plain values: the fields of ``Spent``, ``Tally.by_size`` as a list
    of [size, batches, ns of inputs, of the model, of outputs], and for how long nothing has ended (None: nothing has).
    """
    idle_ns = now_ns - tally.end_ns if tally.end_ns else None
    by_size = [[size, *row] for size, row in sorted(tally.by_size.items())]
    return {**tally.spent._asdict(), "by_size": by_size, "idle_ns": idle_ns}


def _binned(bounds: Sequence[float], values: npt.NDArray[Any]) -> npt.NDArray[np.intp]:
    """How many values are in each bin; a bin includes its upper bound."""
    return np.bincount(np.searchsorted(bounds, values), minlength=len(bounds) + 1)


def _shape(batches: npt.NDArray[Any]) -> dict[str, Any]:
    n = len(batches)
    by_rule = np.bincount(batches["rule"], minlength=len(START_RULES))
    by_reason = np.bincount(reasons(batches), minlength=len(REASONS))
    return {
        "batches": n,
        "mean_batch": float(batches["size"].mean()) if n else None,
        "window_left": float(np.minimum(window_left(batches), 1.0).mean()) if n else None,
        "reasons": dict(zip(REASONS, by_reason.tolist(), strict=True)),
        "rules": {START_RULES[i]: int(by_rule[i]) for i in np.argsort(-by_rule, kind="stable") if by_rule[i]},
    }


def _ended(before: _Second, after: _Second, model: int) -> Ints:
    """Requests by outcome between two samples; what was not there yet had counted nothing."""
    ended: Ints = after.counts[model] - before.counts.get(model, 0)
    return ended
