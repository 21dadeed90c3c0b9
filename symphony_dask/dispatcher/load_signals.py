"""Counts what a scaling policy needs to know of the load, once a second.

Nothing is done per request: arrivals follow from counts that are kept anyhow, and a GPU's busy time grows once a batch.
The dispatcher feeds a ``Sampler`` under the wall clock, trials feed one under virtual time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from symphony_dask.units import NS_PER_S

#: Over how many seconds rates are told.
WINDOWS_S = (1, 10, 30, 60)

#: Over how many seconds bad requests and busy time are told.
RECENT_S = 10

#: A rate at which batches are as large as the SLO allows at all, requests a second.
_HIGH_HZ = 1e7

Floats = npt.NDArray[np.float64]


class ModelFacts(NamedTuple):
    """What a model is. latency_ns: l(b) in ns by GPU class, as ``LatencyProfile.latency_ns`` gives it."""

    name: str
    slo_ns: int
    queued: int
    latency_ns: Mapping[str, npt.NDArray[np.int64]]


class GpuFacts(NamedTuple):
    """What a slot is."""

    gpu: int
    rank: int
    gpu_class: str
    worker: str
    draining: bool


def gpu_seconds_per_request(latency_ns: npt.NDArray[np.int64], slo_ns: int, rate_hz: float) -> float:
    """l(b)/b in s at the mean size b of deferred batches at this rate: b = 1 + rate * (SLO - l(b)).

    A batch is its first request and those that come while it can wait, so at low rates it stays small and a request
    costs up to l(1). b is no whole number, as it is a mean: whole ones would have a load cost more GPUs than a larger
    one where b steps up. latency_ns: (largest batch + 2,), as ``LatencyProfile.latency_ns`` gives it.
    """
    times = latency_ns[1:-1]
    sizes = np.arange(1, len(times) + 1)
    beyond = 1 + rate_hz / NS_PER_S * (slo_ns - times) - sizes  # falls with the size; b is where it is 0
    k = int(np.searchsorted(-beyond, 0.0, side="right"))
    if k in (0, len(times)):
        return float(times[max(k - 1, 0)]) / max(k, 1) / NS_PER_S
    part = beyond[k - 1] / (beyond[k - 1] - beyond[k])
    return float((times[k - 1] + part * (times[k] - times[k - 1])) / (k + part)) / NS_PER_S


class Sampler:
    """The last minute's counts, and what follows from them; ``add`` about once a second, ``reply`` when asked."""

    def __init__(self) -> None:
        #: Rows of one sample each; every row of ``_models`` has a column for each of ``_model_keys``, and so for GPUs.
        self._times: deque[float] = deque(maxlen=WINDOWS_S[-1] + 1)
        self._models: deque[Floats] = deque(maxlen=WINDOWS_S[-1] + 1)
        self._gpus: deque[Floats] = deque(maxlen=WINDOWS_S[-1] + 1)
        self._model_keys: tuple[Any, ...] = ()
        self._gpu_keys: tuple[Any, ...] = ()

    def add(
        self,
        time_s: float,
        models: Sequence[Any],
        arrived: npt.ArrayLike,
        bad: npt.ArrayLike,
        ongoing: npt.ArrayLike,
        gpus: Sequence[Any],
        busy_s: Sequence[float],
    ) -> None:
        """Take in the counts of now; ``time_s`` rises from call to call.

        models, gpus: keys, a new one for each deployment and each slot that joins, from whose 0 the counts start.
        arrived, bad: requests so far that came, and that ended late, dropped or rejected; ongoing: that wait or run
        now. busy_s: time for which each GPU has run batches so far.
        """
        model_keys, gpu_keys = tuple(models), tuple(gpus)
        if model_keys != self._model_keys:
            rows = _followed(self._models, self._model_keys, model_keys)
            self._models, self._model_keys = deque(rows, self._models.maxlen), model_keys
        if gpu_keys != self._gpu_keys:
            rows = _followed(self._gpus, self._gpu_keys, gpu_keys)
            self._gpus, self._gpu_keys = deque(rows, self._gpus.maxlen), gpu_keys
        self._times.append(time_s)
        self._models.append(np.array((arrived, bad, ongoing), float).reshape(3, len(model_keys)))
        self._gpus.append(np.array(busy_s, float).reshape(1, len(gpu_keys)))

    @property
    def time_s(self) -> float:
        """Of the latest sample; minus infinity before there is one."""
        return self._times[-1] if self._times else -np.inf

    def reply(self, models: Mapping[Any, ModelFacts], gpus: Mapping[Any, GpuFacts]) -> dict[str, Any]:
        """Plain values for ``autoscale.Signals.from_reply``, of what is there now, by the keys of ``add``.

        At least one sample must have been added. Windows are whole seconds as strings. What was not sampled twice has
        no rate yet: it is told as 0.
        """
        times = np.array(self._times)
        counts = _followed(self._models, self._model_keys, tuple(models))  # (samples, 3, models)
        busy_s = _followed(self._gpus, self._gpu_keys, tuple(gpus))[:, 0]
        rates: dict[str, Floats] = {}
        spreads: dict[str, Floats] = {}
        ongoing: dict[str, Floats] = {}
        for window_s in WINDOWS_S:
            first = _first(times, window_s)
            rates[str(window_s)] = _slope(times, counts[:, 0], first)
            spreads[str(window_s)] = _spread(times[first:], counts[first:, 0])
            ongoing[str(window_s)] = counts[min(first + 1, len(times) - 1) :, 2].mean(0)
        recent = _first(times, RECENT_S)
        bad = _slope(times, counts[:, 1], recent)
        busy = np.clip(_slope(times, busy_s, recent), 0.0, 1.0)
        of_cost = rates[str(RECENT_S)]
        return {
            "time_s": float(times[-1]),
            "models": [
                {
                    "name": model.name,
                    "slo_ns": int(model.slo_ns),
                    "rate_hz": {w: float(values[m]) for w, values in rates.items()},
                    "spread_hz": {w: float(values[m]) for w, values in spreads.items()},
                    "ongoing": {w: float(values[m]) for w, values in ongoing.items()},
                    "bad_hz": float(bad[m]),
                    "queued": int(model.queued),
                    "gpu_seconds_per_request": {
                        name: gpu_seconds_per_request(table, int(model.slo_ns), float(of_cost[m]))
                        for name, table in model.latency_ns.items()
                    },
                    "least_gpu_seconds": {
                        name: gpu_seconds_per_request(table, int(model.slo_ns), _HIGH_HZ)
                        for name, table in model.latency_ns.items()
                    },
                }
                for m, model in enumerate(models.values())
            ],
            "gpus": [{**gpu._asdict(), "busy": float(busy[g])} for g, gpu in enumerate(gpus.values())],
        }


def _followed(rows: deque[Floats], old: tuple[Any, ...], new: tuple[Any, ...]) -> Floats:
    """The rows as one array, with the columns of ``new``; what was not there yet had counted nothing."""
    found: Floats = np.array(rows)
    if old == new or not len(found):
        return found
    at = {key: i for i, key in enumerate(old)}
    columns = np.array([at.get(key, len(old)) for key in new], int)
    followed: Floats = np.concatenate((found, np.zeros((*found.shape[:2], 1))), axis=2)[:, :, columns]
    return followed


def _first(times: Floats, window_s: float) -> int:
    """The sample with which a window that ends with the latest begins; samples may be half a second off."""
    return int(np.searchsorted(times, times[-1] - window_s - 0.5))


def _slope(times: Floats, counts: Floats, first: int) -> Floats:
    """Counts a second since sample ``first``, by column."""
    span = times[-1] - times[first]
    slope: Floats = (counts[-1] - counts[first]) / span if span > 0 else np.zeros(counts.shape[1])
    return slope


def _spread(times: Floats, counts: Floats) -> Floats:
    """Standard deviation of the rates between samples, by column."""
    if len(times) < 3:
        return np.zeros(counts.shape[1])
    spread: Floats = (np.diff(counts, axis=0) / np.diff(times)[:, None]).std(axis=0)
    return spread
