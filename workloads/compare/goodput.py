"""Searches goodput: the highest offered rate at which nearly all requests finish within their SLO, by simulation.

Every rate of one search is tried with the same random gaps, only scaled (common random numbers), and so is every policy
with the same seeds: what differs between two results is then the policy, not the luck of the draw.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist, fmean, stdev

import numpy as np
import numpy.typing as npt

from symphony_dask.errors import BadInput
from symphony_dask.units import NS_PER_S
from workloads.baselines.nexus import CannotPlace
from workloads.compare.bound import BoundModel, goodput_bound
from workloads.compare.policies import check_size, scheduler
from workloads.simulation.fleet import Gpus
from workloads.simulation.result import SimModel
from workloads.simulation.simulate import Scheduler
from workloads.traces.synthetic_arrivals import gamma
from workloads.traces.zoo import checked_shares, equal

#: A search ends when the rate is known to this part of itself.
_PRECISION = 1e-3

#: A rate below this part of the bound counts as 0: 99 % of a handful of requests says nothing.
_LEAST = 0.01

#: A search begins on traces shorter by this factor, down to a step of ``_FIRST_STEP``, to find where to look.
_SHORTER = 8
_FIRST_STEP = 0.01

#: Streams begin so many mean gaps early, times 1/shape: by then a gamma process has forgotten that it began with a gap.
_FORGOTTEN = 10

#: 97.5 % quantiles of Student's t for 1 to 9 degrees of freedom.
_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)

Ints = npt.NDArray[np.int64]
Slots = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Goodput:
    """goodput_hz: mean over the seeds; low_hz, high_hz: its 95 % confidence interval, from the spread over the seeds.

    bound_hz: what no scheduler can pass (``bound``). mean_batch: requests a batch at goodput, over the seeds.
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
    mix = Mix(equal(models) if shares is None else shares, shape, seed)
    return mix.at(rate_hz, seconds)


@dataclass(frozen=True)
class Found:
    """What the search with one seed found: the highest rate that is met, requests a batch there, and whether the
    scheduler could place the models at any rate that was tried."""

    rate_hz: float
    mean_batch: float
    placed: bool


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
    seconds, seeds: length of each simulation, and how many are searched, each with arrivals of its own.
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
    if isinstance(policy, str):
        check_size(policy, expected_requests(bound_hz, seconds), gpus, len(models))
    drawn = [Mix(parts, shape, seed) for seed in range(seeds)]
    return over_seeds([search(simulated, models, gpus, mix, bound_hz, seconds, attainment) for mix in drawn], bound_hz)


def expected_requests(bound_hz: float, seconds: float) -> int:
    """How many a search simulates at most, but where bursts are served far beyond the bound."""
    return math.ceil(1.5 * bound_hz * seconds)


def over_seeds(found: Sequence[Found], bound_hz: float) -> Goodput:
    """The mean of what searches with several seeds found, and its confidence interval."""
    rates_hz = [each.rate_hz for each in found]
    mean_hz = fmean(rates_hz)
    margin_hz = _t(len(found) - 1) * stdev(rates_hz) / math.sqrt(len(found)) if len(found) > 1 else 0.0
    low_hz = max(0.0, mean_hz - margin_hz)
    return Goodput(mean_hz, low_hz, mean_hz + margin_hz, bound_hz, fmean(each.mean_batch for each in found))


class Mix:
    """The arrivals of a mix of models at any rate, as one merged stream at 1 request/s: a rate only scales it."""

    def __init__(self, shares: Sequence[float], shape: float = 1.0, seed: int = 0) -> None:
        """shares: of each model in the rate; shape: of each model's gamma distributed gaps.

        Raises ``BadInput`` when the shape is not positive and finite, or the shares do not sum to 1.
        """
        if not 0 < shape < math.inf:
            raise BadInput(f"shape is {shape}: it must be positive and finite")
        self._shares, self._shape, self._seed = checked_shares(shares), shape, seed
        self._drawn = 0.0
        self._times: Ints = np.empty(0, np.int64)
        self._models: Slots = np.empty(0, np.int32)

    def at(self, rate_hz: float, seconds: float) -> tuple[Ints, Slots]:
        """Arrivals in ns in [0, seconds) where ``rate_hz`` are expected, and their models."""
        self._draw(rate_hz * seconds)
        n = int(np.searchsorted(self._times, rate_hz * seconds * NS_PER_S))
        arrivals_ns: Ints = (self._times[:n] / rate_hz).astype(np.int64)
        return arrivals_ns, self._models[:n]

    def first(self, n: int, seconds: float) -> tuple[Ints, Slots]:
        """The first ``n`` arrivals, in ns, scaled such that the one after them comes at ``seconds``, and their models.

        So their rate is n/seconds whatever luck did: a bursty stream strays far from the rate it is drawn for.
        """
        spread = math.sqrt(n / self._shape)
        while len(self._times) <= n:
            self._draw(max(n + 4 * spread + 16, 1.1 * self._drawn))
        scale = seconds * NS_PER_S / max(int(self._times[n]), 1)
        arrivals_ns: Ints = (self._times[:n] * scale).astype(np.int64)
        return arrivals_ns, self._models[:n]

    def _draw(self, requests: float) -> None:
        """Have the stream last until ``requests`` are expected; a longer stream begins like a shorter one."""
        if requests <= self._drawn:
            return
        streams = []
        for m, share in enumerate(self._shares):
            lead = _FORGOTTEN / (self._shape * share) if share > 0 else 0.0
            seed = self._seed * len(self._shares) + m
            drawn = gamma(share, lead + requests, self._shape, seed) if share > 0 else np.empty(0, np.int64)
            skipped = round(lead * NS_PER_S)
            streams.append(drawn[np.searchsorted(drawn, skipped) :] - skipped)
        times = np.concatenate(streams)
        order = np.argsort(times, kind="stable")
        of_stream = np.repeat(np.arange(len(streams), dtype=np.int32), [len(stream) for stream in streams])
        self._drawn, self._times, self._models = requests, times[order], of_stream[order]


def search(
    simulated: Scheduler,
    models: Sequence[SimModel],
    gpus: Gpus,
    mix: Mix,
    bound_hz: float,
    seconds: float,
    attainment: float = 0.99,
) -> Found:
    """By bisection, the highest rate that is met with one seed's arrivals.

    bound_hz: the goodput bound of the mix, above 0, beside which the search begins.

    Short traces tell where to look; every rate that is believed is then simulated for the full ``seconds``.
    """
    found = Found(0.0, 0.0, False)
    least_hz = _LEAST * bound_hz

    def met(n: int, length_s: float) -> bool:
        """Whether n requests in so many seconds are served; the highest such rate at full length is kept."""
        nonlocal found
        try:
            result = simulated(models, gpus, *mix.first(n, length_s))
        except CannotPlace:
            return False
        served = result.attainment >= attainment
        if length_s < seconds:
            return served
        found = replace(found, placed=True)
        if served and n / seconds > found.rate_hz:
            found = Found(n / seconds, result.mean_batch, True)
        return served

    def bisected(low: int, high: int, length_s: float, precision: float) -> int:
        """The highest number of requests that is met, between one that is (or 0) and one that is not."""
        least = math.ceil(least_hz * length_s)
        while high - low > max(1, precision * high) and high > least:
            middle = max(least, (low + high) // 2)
            low, high = (middle, high) if met(middle, length_s) else (low, middle)
        return low

    # Bursts fill batches and luck moves them, so a short bursty trace may be served beyond the bound.
    highest_hz = 4 * bound_hz
    short_s = seconds / _SHORTER
    low, high = 0, math.ceil(1.05 * bound_hz * short_s)
    while met(high, short_s) and high < highest_hz * short_s:
        low, high = high, math.ceil(1.25 * high)
    begin = bisected(low, high, short_s, _FIRST_STEP) * _SHORTER

    low = high = max(begin, math.ceil(least_hz * seconds))
    step = _FIRST_STEP
    if met(low, seconds):
        while low < highest_hz * seconds and met(high := math.ceil(low * (1 + step)), seconds):
            low, step = high, 2 * step
    else:
        low = 0
        while step < 1 and (lower := math.floor(high * (1 - step))) > least_hz * seconds:
            if met(lower, seconds):
                low = lower
                break
            high, step = lower, 2 * step
    bisected(low, high, seconds, _PRECISION)
    return found


def _t(freedom: int) -> float:
    """The 97.5 % quantile of Student's t; past the table by Cornish and Fisher's expansion, to 0.1 %."""
    if freedom <= len(_T):
        return _T[freedom - 1]
    z = NormalDist().inv_cdf(0.975)
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
