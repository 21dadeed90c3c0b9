"""Goodput: the highest offered rate at which nearly all requests finish within their SLO, by simulation.

Every rate of one search is tried with the same random gaps, only scaled (common random numbers), and so is every policy
with the same seeds: what differs between two results is then the policy, not the luck of the draw.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean, stdev

import numpy as np
import numpy.typing as npt

from symphony_dask.errors import BadInput
from symphony_dask.units import NS_PER_S
from workloads.arrivals import gamma
from workloads.baselines.nexus import CannotPlace
from workloads.bound import BoundModel, goodput_bound
from workloads.fleet import Gpus
from workloads.simulate import Scheduler, scheduler
from workloads.simulated import SimModel
from workloads.zoo import checked_shares, equal

#: A search ends when the rate is known to this part of itself.
_PRECISION = 1e-3

#: Streams begin so many mean gaps early, times 1/shape: by then a gamma process has forgotten that it began with a gap.
_FORGOTTEN = 10

#: 97.5 % quantiles of Student's t for 1 to 9 degrees of freedom.
_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)

Ints = npt.NDArray[np.int64]
Slots = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Goodput:
    """goodput_hz: mean over the seeds; low_hz, high_hz: its 95 % confidence interval, from the spread over the seeds.

    bound_hz: what no scheduler can pass (``workloads.bound``). mean_batch: requests a batch at goodput, over the seeds.
    """

    goodput_hz: float
    low_hz: float
    high_hz: float
    bound_hz: float
    mean_batch: float


def mix_arrivals(
    models: int,
    rate_hz: float,
    seconds: float,
    shape: float = 1.0,
    shares: Sequence[float] | None = None,
    seed: int = 0,
) -> tuple[Ints, Slots]:
    """Arrivals of several models in [0, seconds): ns in order, and which model each is for; both of shape (n,).

    Each model draws its own gaps, gamma distributed with ``shape``, so that it is as bursty in the mix as it is alone.
    shares: of each model in ``rate_hz``, by default equal; a model whose share is 0 has no arrivals.

    Raises ``BadInput`` when the rate, the span or the shape is not positive and finite, or the shares do not sum to 1.
    """
    if not (0 < rate_hz < math.inf and 0 < seconds < math.inf):
        raise BadInput(f"rate_hz is {rate_hz}, seconds is {seconds}: both must be positive and finite")
    mix = _Mix(equal(models) if shares is None else shares, rate_hz * seconds, shape, seed)
    return mix.at(rate_hz, seconds)


def goodput(
    models: Sequence[SimModel],
    gpus: Gpus,
    *,
    policy: str | Scheduler = "adaptive",
    shape: float = 1.0,
    seconds: float = 20.0,
    seeds: int = 3,
    attainment: float = 0.99,
    shares: Sequence[float] | None = None,
) -> Goodput:
    """The highest offered rate at which at least ``attainment`` of the requests finish within their SLO.

    gpus: how many, or groups of several classes, as ``simulate.simulate`` takes them.
    policy: the name of an engine policy or a baseline, or a function that simulates (``simulate.Scheduler``).
    shape: of each model's gamma distributed gaps; 1 is a Poisson process, less is burstier.
    seconds, seeds: length of each simulation, and how many are searched, each with arrivals of its own. The rate of a
        search is its requests over ``seconds``, not the rate they were drawn for, which luck moves.
    shares: of each model in the rate, by default equal.

    With one seed there is no spread to tell, and the interval is the figure itself.
    Raises ``BadInput`` when an argument cannot be used.
    """
    if seeds < 1 or not 0 < attainment <= 1 or not 0 < seconds < math.inf:
        raise BadInput(f"seeds={seeds}, attainment={attainment}, seconds={seconds}: at least 1, in (0, 1], positive")
    if not models:
        raise BadInput("there are no models: give at least 1")
    parts = checked_shares(equal(len(models)) if shares is None else shares).tolist()
    if len(parts) != len(models):
        raise BadInput(f"{len(parts)} shares for {len(models)} models: give one a model")
    simulated = scheduler(policy) if isinstance(policy, str) else policy
    mix = [BoundModel(m.profile, m.slo_ns, share, m.profiles) for m, share in zip(models, parts, strict=True)]
    bound_hz = goodput_bound(mix, gpus).bound_hz
    if bound_hz == 0:
        return Goodput(0.0, 0.0, 0.0, 0.0, 0.0)
    found = [
        _search(simulated, models, gpus, parts, bound_hz, shape, seconds, attainment, seed) for seed in range(seeds)
    ]
    rates_hz = [rate_hz for rate_hz, _ in found]
    mean_hz = fmean(rates_hz)
    margin_hz = _t(seeds - 1) * stdev(rates_hz) / math.sqrt(seeds) if seeds > 1 else 0.0
    low_hz = max(0.0, mean_hz - margin_hz)
    return Goodput(mean_hz, low_hz, mean_hz + margin_hz, bound_hz, fmean(batch for _, batch in found))


class _Mix:
    """The arrivals of a mix at any rate, as one merged stream at 1 request/s: a rate only scales it."""

    def __init__(self, shares: Sequence[float], requests: float, shape: float, seed: int) -> None:
        """requests: the mean number of them that the stream is drawn for; a longer stream begins like a shorter one."""
        if not 0 < shape < math.inf:
            raise BadInput(f"shape is {shape}: it must be positive and finite")
        parts = checked_shares(shares)
        streams = []
        for m, share in enumerate(parts):
            lead = _FORGOTTEN / (shape * share) if share > 0 else 0.0
            drawn = gamma(share, lead + requests, shape, seed * len(parts) + m) if share > 0 else np.empty(0, np.int64)
            skipped = round(lead * NS_PER_S)
            streams.append(drawn[np.searchsorted(drawn, skipped) :] - skipped)
        times = np.concatenate(streams)
        order = np.argsort(times, kind="stable")
        self._times = times[order]
        self._models = np.repeat(np.arange(len(parts), dtype=np.int32), [len(stream) for stream in streams])[order]

    def at(self, rate_hz: float, seconds: float) -> tuple[Ints, Slots]:
        """Arrivals in ns in [0, seconds) at ``rate_hz``, and their models."""
        n = int(np.searchsorted(self._times, rate_hz * seconds * NS_PER_S))
        arrivals_ns: Ints = (self._times[:n] / rate_hz).astype(np.int64)
        return arrivals_ns, self._models[:n]


def _search(
    simulated: Scheduler,
    models: Sequence[SimModel],
    gpus: Gpus,
    shares: Sequence[float],
    bound_hz: float,
    shape: float,
    seconds: float,
    attainment: float,
    seed: int,
) -> tuple[float, float]:
    """By bisection, the highest rate in Hz that is met with one seed's arrivals, and the mean batch there."""
    best = (0.0, 0.0)

    def met(rate_hz: float) -> bool:
        nonlocal best
        arrivals_ns, choices = mix.at(rate_hz, seconds)
        if len(arrivals_ns) == 0:
            return True
        try:
            result = simulated(models, gpus, arrivals_ns, choices)
        except CannotPlace:
            return False
        if result.attainment < attainment:
            return False
        best = (len(arrivals_ns) / seconds, result.mean_batch)
        return True

    # Bursts fill batches and luck moves rates, so a short bursty trace may be served beyond the bound.
    low_hz, high_hz = 0.0, 1.05 * bound_hz
    mix = _Mix(shares, high_hz * seconds, shape, seed)
    while met(high_hz) and high_hz < 4 * bound_hz:
        low_hz, high_hz = high_hz, 1.25 * high_hz
        mix = _Mix(shares, high_hz * seconds, shape, seed)
    while high_hz - low_hz > _PRECISION * high_hz:
        middle_hz = (low_hz + high_hz) / 2
        low_hz, high_hz = (middle_hz, high_hz) if met(middle_hz) else (low_hz, middle_hz)
    return best


def _t(freedom: int) -> float:
    """The 97.5 % quantile of Student's t; past the table by Cornish and Fisher's expansion, to 0.1 %."""
    if freedom <= len(_T):
        return _T[freedom - 1]
    z = NormalDist().inv_cdf(0.975)
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
