"""Calculates how many GPUs a load takes: demand, and what bursts ask for on top of it.

    demand      sum over models of rate * l(b)/b, GPU-seconds a second, at the mean size b of batches
    spread      standard deviation of that demand over half an SLO, for no longer a burst can be put off
    staffed     the least G with E[(X - G)+] <= miss * demand for a normal X of mean demand and that deviation:
                then about that share of the work finds no GPU in time

Models share the GPUs, so their variances add, and the headroom of many is less than the sum of what each would need.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache

from autoscale.policies.signals import ModelSignals, Signals

#: Windows of the rate: demand is the larger of both, so it rises quickly and falls slowly.
_SHORT_S, _LONG_S = 10.0, 60.0

#: The share of its SLO for which a request can wait; its batch takes the rest. With half, what the formula says is
#: missed by fleets of 1 to 19 GPUs is close to what they miss in simulations (docs/autoscaling.md).
WAIT_SHARE = 0.5


def gpu_seconds(model: ModelSignals, signals: Signals) -> float:
    """What a request costs, the mean over the GPUs that are there; on the slowest class where there are none."""
    return _mean_cost(model.gpu_seconds_per_request, signals)


def _mean_cost(costs: Mapping[str, float], signals: Signals) -> float:
    known = [costs[gpu.gpu_class] for gpu in signals.gpus if gpu.gpu_class in costs]
    return sum(known) / len(known) if known else max(costs.values(), default=0.0)


def demand(signals: Signals) -> float:
    """GPU-seconds a second that the present arrivals take."""
    return sum(_rate_hz(model) * gpu_seconds(model, signals) for model in signals.models)


def bad_demand(signals: Signals) -> float:
    """GPU-seconds a second that the requests which ended late, dropped or rejected would have taken."""
    return sum(model.bad_hz * gpu_seconds(model, signals) for model in signals.models)


def spread(signals: Signals) -> float:
    """Standard deviation of demand over ``WAIT_SHARE`` of the SLO, in GPUs.

    From the rates of single seconds: a process whose counts vary I times as much as Poisson's (the index of
    dispersion, at least 1) has over s seconds a rate with variance I * rate / s. The window with the smaller deviation
    counts, as a trend shows in the longer one as if it were noise. A request more than usual costs what it does in a
    full batch.
    """
    variance = 0.0
    for model in signals.models:
        rate = _rate_hz(model)
        if rate <= 0:
            continue
        seen = min(model.spread_hz.get(_SHORT_S, 0.0), model.spread_hz.get(_LONG_S, 0.0))
        dispersion = max(1.0, seen**2 / rate)
        cost = _mean_cost(model.least_gpu_seconds or model.gpu_seconds_per_request, signals)
        variance += dispersion * rate / (WAIT_SHARE * model.slo_ns / 1e9) * cost**2
    return math.sqrt(variance)


def staffed(amount: float, deviation: float, miss: float) -> float:
    """GPUs, not rounded, so that a normal demand of this mean and deviation exceeds them by ``miss`` * mean on average.

    Never less than the demand. By the normal loss function L(z) = phi(z) - z * (1 - Phi(z)): G = amount + z * deviation
    with L(z) = miss * amount / deviation.
    """
    if amount <= 0 or deviation <= 0:
        return max(amount, 0.0)
    return amount + deviation * max(0.0, _inverse_loss(round(miss * amount / deviation, 6)))


@lru_cache(maxsize=4096)
def _inverse_loss(loss: float) -> float:
    """The z with L(z) = ``loss``, by bisection in [0, 6]; 0 where L(0) = 0.399 is below it already."""
    low, high = 0.0, 6.0
    for _ in range(40):
        z = (low + high) / 2
        at = math.exp(-z * z / 2) / math.sqrt(2 * math.pi) - z * math.erfc(z / math.sqrt(2)) / 2
        low, high = (z, high) if at > loss else (low, z)
    return (low + high) / 2 if low > 0 else 0.0


def _rate_hz(model: ModelSignals) -> float:
    return max(model.rate_hz.get(_SHORT_S, 0.0), model.rate_hz.get(_LONG_S, 0.0))
