"""The goodput bound: the largest rate at which batches that keep their SLOs fit into the GPUs' time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from symphony_dask.errors import BadInput
from symphony_dask.scheduling.profile import LatencyProfile
from symphony_dask.units import NS_PER_S
from workloads.zoo import checked_shares

_PRECISION = 1e-9


@dataclass(frozen=True)
class BoundModel:
    """One model of a mix: its profile, its SLO in ns, and its share of the total rate (0 to 1)."""

    profile: LatencyProfile
    slo_ns: int
    share: float


@dataclass(frozen=True)
class BoundResult:
    """bound_hz: the largest total rate. batch_sizes: of each model there; 0 for one without a share, and at bound 0."""

    bound_hz: float
    batch_sizes: tuple[float, ...]


@dataclass(frozen=True)
class _Curve:
    """A model in the terms of the formulas: l(1) .. l(max_batch) and SLO in seconds, and its share, above 0."""

    latency: npt.NDArray[np.float64]
    slo: float
    share: float


def goodput_bound(models: Sequence[BoundModel], gpus: int, *, whole: bool = False) -> BoundResult:
    """The largest total rate R that ``gpus`` GPUs can serve within every SLO, for arrivals at r_m = share_m * R.

    R is the largest for which batch sizes 1 <= b_m <= max_batch exist with

        (b_m - 1)/r_m + l_m(b_m) <= SLO_m          the first of a batch waits for the last
        sum over m of r_m * l_m(b_m)/b_m <= gpus   GPU time

    Why one bisection on R finds it. At a given R the models meet only in the sum, so each takes the allowed b_m with
    the least GPU time a request, l(b)/b. The left side of the first line rises with b, so what is allowed is an
    interval from 1. For l(b) = alpha*b + beta, l(b)/b falls with b and the end of that interval is best:
    b = (SLO - beta + 1/r)/(alpha + 1/r). For a measured table, linear in between, l(b)/b is monotone on each piece,
    so the best is the interval's end or a whole b inside it. The least GPU time never falls as R rises: if b serves a
    rate r, then b' = 1 + x*(b - 1) serves x*r for 0 < x < 1 with the same wait and l(b') <= l(b), and since
    b' >= x*b, x*r*l(b')/b' <= r*l(b)/b.

    What it leaves out: b is real, arrivals come at their mean spacing (bursts fill batches sooner, so a very bursty
    trace can pass it), and every request must be in time; goodput at 99 % may lie 1 % above.

    whole: each b_m must be a whole number, the same for every batch of its model. What a fixed batch size can reach;
    not a bound on schedulers that mix sizes.

    Raises ``BadInput`` when there is no model or GPU, an SLO is not positive, the shares do not sum to 1, or every
    model has a batch size that takes no time. The bound is 0 when a model with a share misses its SLO at b = 1.
    """
    if gpus < 1:
        raise BadInput(f"gpus is {gpus}: give at least 1")
    checked_shares([model.share for model in models])
    for model in models:
        if model.slo_ns <= 0:
            raise BadInput(f"slo_ns is {model.slo_ns}: it must be positive")
    curves = {m: _curve(model) for m, model in enumerate(models) if model.share > 0}
    sizes = [0.0] * len(models)
    if any(curve.latency[0] > curve.slo for curve in curves.values()):
        return BoundResult(0.0, tuple(sizes))
    if not any(_cost(curve).min() > 0 for curve in curves.values()):
        raise BadInput("every profile has a batch size that takes 0 ms: such models have no bound")

    largest = _largest_whole if whole else _largest_real
    rate_hz = largest(list(curves.values()), gpus)
    for m, curve in curves.items():
        sizes[m], _ = _cheapest(curve, rate_hz, whole)
    return BoundResult(rate_hz, tuple(sizes))


def _curve(model: BoundModel) -> _Curve:
    latency = model.profile.latency_ns()[1 : model.profile.max_batch + 1] / NS_PER_S
    return _Curve(latency, model.slo_ns / NS_PER_S, model.share)


def _largest_real(curves: Sequence[_Curve], gpus: int) -> float:
    """The largest total rate in Hz with real batch sizes, by bisection."""
    # Were there no SLOs, each model would take its cheapest batch of all, and the GPUs be full at this rate.
    low, high = 0.0, gpus / sum(curve.share * float(_cost(curve).min()) for curve in curves)
    while high - low > _PRECISION * high:
        rate_hz = (low + high) / 2
        work = sum(curve.share * rate_hz * _cheapest(curve, rate_hz, whole=False)[1] for curve in curves)
        low, high = (rate_hz, high) if work <= gpus else (low, rate_hz)
    return low


def _largest_whole(curves: Sequence[_Curve], gpus: int) -> float:
    """The largest total rate in Hz with whole batch sizes, the same for all batches of a model.

    A batch size opens at the rate from which its first request no longer waits too long. Between two openings the GPU
    time is proportional to the rate; at an opening it may fall, so every stretch is looked at.
    """
    opens, savings = [], []
    for curve in curves:
        fits = int(np.searchsorted(curve.latency, curve.slo))  # those with l(b) < SLO; b = 1 may also equal it
        fits = max(fits, 1)
        waits = np.arange(fits)
        slack = np.maximum(curve.slo - curve.latency[:fits], 1e-12)
        opens.append(waits / slack / curve.share)
        cheapest = np.minimum.accumulate(_cost(curve)[:fits])
        savings.append(curve.share * np.diff(cheapest, prepend=0.0))
    order = np.argsort(np.concatenate(opens), kind="stable")
    starts = np.concatenate(opens)[order]
    ends = np.append(starts[1:], np.inf)
    with np.errstate(divide="ignore"):
        full = gpus / np.concatenate(savings)[order].cumsum()
    return float(np.minimum(full, ends)[full >= starts].max())


def _cost(curve: _Curve) -> npt.NDArray[np.float64]:
    """l(b)/b in seconds for b = 1 .. max_batch."""
    return curve.latency / np.arange(1, len(curve.latency) + 1)


def _cheapest(curve: _Curve, rate_hz: float, whole: bool) -> tuple[float, float]:
    """The allowed b with the least l(b)/b at that total rate, and that l(b)/b in seconds."""
    gap = 1 / (curve.share * rate_hz)
    answered = np.arange(len(curve.latency)) * gap + curve.latency
    fits = int(np.searchsorted(answered, curve.slo, side="right"))
    costs = _cost(curve)[:fits]
    best = int(costs.argmin())
    if whole or fits == len(curve.latency):
        return float(best + 1), float(costs[best])
    step = curve.latency[fits] - curve.latency[fits - 1]
    part = (curve.slo - answered[fits - 1]) / (gap + step)
    end, end_cost = fits + part, (curve.latency[fits - 1] + part * step) / (fits + part)
    return (float(end), float(end_cost)) if end_cost <= costs[best] else (float(best + 1), float(costs[best]))


def ideal_gpus(models: Sequence[BoundModel], rate_hz: float) -> float:
    """The least GPU time a second that ``rate_hz`` needs: sum over m of r_m * l_m(b_m)/b_m, at the best b_m allowed.

    As in ``goodput_bound``, which this turns round: the least number of GPUs whose bound is at least ``rate_hz`` is
    this, rounded up. Infinite when a model with a share misses its SLO at b = 1.

    Raises ``BadInput`` when the rate is not positive and finite, or the shares do not sum to 1.
    """
    if not 0 < rate_hz < np.inf:
        raise BadInput(f"rate_hz is {rate_hz}: it must be positive and finite")
    checked_shares([model.share for model in models])
    shared = [model for model in models if model.share > 0]
    if any(model.profile.latency_ns()[1] > model.slo_ns for model in shared):
        return float("inf")
    curves = [curve for model in shared if (curve := _curve(model)) is not None]
    return sum(curve.share * rate_hz * _cheapest(curve, rate_hz, whole=False)[1] for curve in curves)
