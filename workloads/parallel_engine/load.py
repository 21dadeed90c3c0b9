"""Makes what ``bench engine`` offers: a profile that carries the rate, and arrivals in bounded memory."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from symphony_dask.engine.latency_profile import DEFAULT_MAX_BATCH, LatencyProfile
from symphony_dask.errors import BadInput
from symphony_dask.units import NS_PER_MS, NS_PER_S
from workloads.compare.bound import BoundModel, goodput_bound
from workloads.compare.goodput import mix_arrivals
from workloads.parallel_engine.loops import Load
from workloads.traces.zoo import ZOO

#: Share of the goodput bound that is offered when no rate is given,
OFFERED = 0.9
#: and that a rate makes up at most of the bound of a profile chosen for it.
CARRIED = 0.8

#: Arrivals in a block; longer runs repeat it.
_BLOCK = 1 << 20

_MAX_BATCH = 4096


def with_room(profile: LatencyProfile, slo_ns: int) -> LatencyProfile:
    """``profile`` with room for every batch that fits into the SLO, up to 4,096."""
    sizes = replace(profile, max_batch=_MAX_BATCH).latency_ns()[: _MAX_BATCH + 1]
    fits = int(np.searchsorted(sizes, slo_ns, side="right")) - 1
    return replace(profile, max_batch=min(_MAX_BATCH, max(DEFAULT_MAX_BATCH, fits)))


def bound_hz(profile: LatencyProfile, models: int, gpus: int, slo_ns: int) -> float:
    """The goodput bound of so many models alike, equally popular, req/s."""
    return goodput_bound([BoundModel(profile, slo_ns, 1 / models)] * models, gpus).bound_hz


def carrying(rate_hz: float, models: int, gpus: int, slo_ns: int) -> LatencyProfile:
    """ResNet-50's profile if the rate is at most CARRIED of its bound, else with the alpha for which it is just that.

    A few GPUs of 2016 cannot take the rates at which a scheduler is interesting, so they are emulated as having the
    same beta (and the same SLO) and less time per request. The bound in closed form: at the bound
    a batch of b fills its SLO, (b - 1)/r + l(b) = SLO with r = R/models, and R*l(b)/b = gpus.

    Raises ``BadInput`` when not even alpha = 0 carries the rate.
    """
    own = with_room(ZOO["resnet50"].profile, slo_ns)
    if rate_hz <= CARRIED * bound_hz(own, models, gpus, slo_ns):
        return own
    bound = rate_hz / CARRIED
    b = min((bound * slo_ns / NS_PER_S + models) / (gpus + models), _MAX_BATCH)
    alpha_ms = (gpus * b / bound * NS_PER_S / NS_PER_MS - own.beta_ms) / b
    if alpha_ms < 0:
        raise BadInput(
            f"{rate_hz:,.0f} req/s on {gpus} GPUs within {slo_ns / NS_PER_MS:g} ms is beyond batches that take "
            f"{own.beta_ms} ms whatever their size: offer less, or give --profile, a longer --slo or more --gpus"
        )
    return with_room(replace(own, alpha_ms=alpha_ms), slo_ns)


def loads(models: int, threads: int, rate_hz: float, seconds: float, slo_ns: int, shape: float) -> list[Load]:
    """The requests of ``seconds``, for each of ``threads`` model threads those of its models.

    Thread j owns the models j, j + threads, j + 2*threads, ..., which it calls 0, 1, 2, ... Runs of more than a million
    requests repeat the first million, so memory does not grow with ``seconds``.

    Raises ``BadInput`` when there is nothing to offer.
    """
    block_s = min(seconds, _BLOCK / rate_hz)
    times, choices = mix_arrivals(models, rate_hz, block_s, shape)
    period = round(block_s * NS_PER_S)
    span = round(seconds * NS_PER_S)
    parts = []
    for j in range(threads):
        mine = choices % threads == j
        own = np.ascontiguousarray(times[mine])
        total = span // period * len(own) + int(np.searchsorted(own, span % period))
        parts.append(Load(own, (choices[mine] // threads).astype(np.int32), period, slo_ns, total))
    if sum(part.total for part in parts) == 0:
        raise BadInput(f"{rate_hz:g} req/s for {seconds:g} s is no request: give more --rate or --seconds")
    return parts
