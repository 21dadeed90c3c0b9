"""Calculates the goodput bound: the largest rate at which batches that keep their SLOs fit into the GPUs' time."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from symphony_dask.engine.latency_profile import LatencyProfile
from symphony_dask.errors import BadInput
from symphony_dask.units import NS_PER_S
from workloads.simulation.fleet import Gpus, groups
from workloads.traces.zoo import checked_shares

_PRECISION = 1e-9


@dataclass(frozen=True)
class BoundModel:
    """One model of a mix: its profile, its SLO in ns, and its share of the total rate (0 to 1).

    profiles: by GPU class, where it is another than ``profile``.
    """

    profile: LatencyProfile
    slo_ns: int
    share: float
    profiles: Mapping[str, LatencyProfile] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class BoundResult:
    """bound_hz: the largest total rate.

    batch_sizes: of each model there, on the GPU class that was named first; 0 for one without a share, where the class
    is too slow for it, and at bound 0.
    """

    bound_hz: float
    batch_sizes: tuple[float, ...]


@dataclass(frozen=True)
class _Curve:
    """A model in the terms of the formulas: l(1) .. l(max_batch) and SLO in seconds, and its share, above 0."""

    latency: npt.NDArray[np.float64]
    slo: float
    share: float


def goodput_bound(models: Sequence[BoundModel], gpus: Gpus, *, whole: bool = False) -> BoundResult:
    """The largest total rate R that ``gpus`` can serve within every SLO, for arrivals at r_m = share_m * R.

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

    GPUs of several classes c, G_c of each: l, b and thus the least GPU time a request, t_mc, depend on the class, and
    model m may send x_mc of its rate there. R is feasible when some x >= 0 has

        sum over c of x_mc = r_m      and      sum over m of x_mc * t_mc <= G_c   for each c

    (the batches of a model on any class hold requests of its one stream, so the first waits (b - 1)/r_m). By LP duality
    there is no such x if and only if some prices w >= 0 of GPU time have

        sum over m of r_m * min over c of w_c * t_mc  >  sum over c of w_c * G_c

    for the left side is then the least that the work can cost, and the right side what all GPUs are worth. So any w
    proves an upper bound, and ``_priced_out`` looks for the best; R is as before the point where proofs begin, and
    again feasible rates scale down, on each class by itself.

    What it leaves out: b is real, arrivals come at their mean spacing (bursts fill batches sooner, so a very bursty
    trace can pass it), and every request must be in time; goodput at 99 % may lie 1 % above.

    whole: each b_m must be a whole number, the same for every batch of its model. What a fixed batch size can reach;
    not a bound on schedulers that mix sizes. For GPUs of one class only.

    Raises ``BadInput`` when there is no model or GPU, an SLO is not positive, the shares do not sum to 1, or every
    model has a batch size that takes no time. The bound is 0 when a model with a share misses its SLO at b = 1.
    """
    given = [group for group in groups(gpus) if group.number > 0]
    counts: dict[str, int] = {}
    for group in given:
        counts[group.gpu_class] = counts.get(group.gpu_class, 0) + group.number
    if not counts:
        raise BadInput(f"gpus is {gpus}: give at least 1")
    if whole and len(counts) > 1:
        raise BadInput(f"whole batches on GPU classes {', '.join(counts)}: this bound is for one class")
    checked_shares([model.share for model in models])
    for model in models:
        if model.slo_ns <= 0:
            raise BadInput(f"slo_ns is {model.slo_ns}: it must be positive")
    # By class, the curves of the models that have a share; None where not even one request is in time.
    by_class = [
        [_curve(replace(model, profile=model.profiles.get(name, model.profile))) for model in models if model.share > 0]
        for name in counts
    ]
    sizes = [0.0] * len(models)
    if any(all(curve is None for curve in of_model) for of_model in zip(*by_class, strict=True)):
        return BoundResult(0.0, tuple(sizes))
    found = [curve for curves in by_class for curve in curves if curve is not None]
    if not any(_cost(curve).min() > 0 for curve in found):
        raise BadInput("every profile has a batch size that takes 0 ms: such models have no bound")

    if len(counts) > 1:
        rate_hz = _largest_on_classes(by_class, list(counts.values()))
    else:
        largest = _largest_whole if whole else _largest_real
        rate_hz = largest(found, next(iter(counts.values())))
    shared = [m for m, model in enumerate(models) if model.share > 0]
    for m, curve in zip(shared, by_class[0], strict=True):
        if curve is not None and rate_hz > 0:
            sizes[m], _ = _cheapest(curve, rate_hz, whole)
    return BoundResult(rate_hz, tuple(sizes))


def _curve(model: BoundModel) -> _Curve | None:
    latency = model.profile.latency_ns()[1 : model.profile.max_batch + 1] / NS_PER_S
    curve = _Curve(latency, model.slo_ns / NS_PER_S, model.share)
    return curve if curve.latency[0] <= curve.slo else None


def _largest_real(curves: Sequence[_Curve], gpus: int) -> float:
    """The largest total rate in Hz with real batch sizes, by bisection."""
    # Were there no SLOs, each model would take its cheapest batch of all, and the GPUs be full at this rate.
    low, high = 0.0, gpus / sum(curve.share * float(_cost(curve).min()) for curve in curves)
    while high - low > _PRECISION * high:
        rate_hz = (low + high) / 2
        work = sum(curve.share * rate_hz * _cheapest(curve, rate_hz, whole=False)[1] for curve in curves)
        low, high = (rate_hz, high) if work <= gpus else (low, rate_hz)
    return low


def _largest_on_classes(by_class: Sequence[Sequence[_Curve | None]], counts: Sequence[int]) -> float:
    """The largest total rate in Hz that no prices rule out, by bisection. by_class: [class][model]."""
    shares = np.array([next(c.share for c in of_model if c is not None) for of_model in zip(*by_class, strict=True)])
    n_gpus = np.array(counts, dtype=float)

    def least(rate_hz: float) -> npt.NDArray[np.float64]:
        """t_mc * G_c at that rate, of shape (models, classes); infinite where a class is too slow for a model."""
        times = [[np.inf if c is None else _cheapest(c, rate_hz, False)[1] for c in curves] for curves in by_class]
        return np.array(times).T / n_gpus

    def cheapest_ever(curves: Sequence[_Curve | None]) -> float:
        return min(float(_cost(curve).min()) for curve in curves if curve is not None)

    # Were there no SLOs, and every GPU the best for every model, the GPUs would be full at this rate.
    work = shares @ [cheapest_ever(of_model) for of_model in zip(*by_class, strict=True)]
    low, high = 0.0, float(n_gpus.sum() / work)
    while high - low > _PRECISION * high:
        rate_hz = (low + high) / 2
        low, high = (low, rate_hz) if _priced_out(shares * rate_hz, least(rate_hz)) else (rate_hz, high)
    return high


def _priced_out(rates: npt.NDArray[np.float64], times: npt.NDArray[np.float64]) -> bool:
    """Whether prices v in [0, 1]^C exist at which the least work costs more than the GPUs are worth.

    With v_c = w_c * G_c: sum over m of rates[m] * min over c of v_c * times[m, c] > sum of v, times being t_mc / G_c.
    The difference is concave in v; the ellipsoid method (Shor; Grötschel, Lovász, Schrijver, "Geometric Algorithms",
    section 3.1) halves the region where it can be positive until that is 1e-7 of the box across.
    """
    n = times.shape[1]
    center, shape = np.full(n, 0.5), np.eye(n) * n / 4
    models = np.arange(len(rates))
    for _ in range(2 * n * (n + 1) * 17):
        outside = np.flatnonzero((center < 0) | (center > 1))
        if len(outside):
            slope = np.where(np.arange(n) == outside[0], np.where(center < 0, 1.0, -1.0), 0.0)
        else:
            priced = np.where(np.isinf(times), np.inf, center * np.where(np.isinf(times), 1.0, times))
            best = priced.argmin(axis=1)
            if float(rates @ priced[models, best]) > float(center.sum()):
                return True
            slope = np.bincount(best, rates * times[models, best], n) - 1
        width = float(slope @ shape @ slope)
        if width <= 0:  # nothing is left that floating point can tell apart
            return False
        length = math.sqrt(width)
        step = shape @ slope / length
        center = center + step / (n + 1)
        shape = n * n / (n * n - 1) * (shape - 2 / (n + 1) * np.outer(step, step))
    return False


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
