"""Draws seeded synthetic arrival times: the same arguments give the same arrivals with the same numpy.

Times and models come from separate random streams of one seed, so ``poisson(..., seed)`` and ``assign(..., seed)`` are
independent of each other. A longer run with the same seed begins with the arrivals of the shorter one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from symphony_dask.errors import BadInput
from symphony_dask.units import NS_PER_S
from workloads.traces.zoo import checked_shares

_TIMES, _MODELS = 0, 1


def poisson(rate_hz: float, seconds: float, seed: int) -> npt.NDArray[np.int64]:
    """Arrivals of a Poisson process in [0, seconds): ns from the start, in order, shape (arrivals,).

    Raises ``BadInput`` when the rate or the span is not positive and finite, or the seed is negative.
    """
    return gamma(rate_hz, seconds, shape=1.0, seed=seed)


def gamma(rate_hz: float, seconds: float, shape: float, seed: int) -> npt.NDArray[np.int64]:
    """Arrivals in [0, seconds) whose gaps are gamma distributed: ns from the start, in order, shape (arrivals,).

    shape: of the gamma distribution; the gaps' squared coefficient of variation is 1/shape, so 1 is a Poisson process
    and less is burstier. The first gap starts at 0. To keep several models bursty, draw each model's arrivals with a
    seed of its own: splitting one stream with ``assign`` makes each part more like a Poisson process.

    Raises ``BadInput`` when the rate, the span or the shape is not positive and finite, or the seed is negative.
    """
    for name, value in (("rate_hz", rate_hz), ("seconds", seconds), ("shape", shape)):
        if not 0 < value < math.inf:
            raise BadInput(f"{name} is {value}: it must be positive and finite")
    rng = _generator(seed, _TIMES)
    mean = rate_hz * seconds
    draw = int(mean + 4 * math.sqrt(mean / shape)) + 16
    gaps: npt.NDArray[np.float64] = np.empty(0)
    while True:
        gaps = np.append(gaps, rng.gamma(shape, 1 / (rate_hz * shape), draw))
        # Summed from the first gap each time: rounding then cannot depend on where one draw ended.
        times = gaps.cumsum()
        if times[-1] >= seconds:
            arrival_ns: npt.NDArray[np.int64] = (times[times < seconds] * NS_PER_S).astype(np.int64)
            return arrival_ns


def assign(n: int, shares: Sequence[float], seed: int) -> npt.NDArray[np.int32]:
    """The model of each of ``n`` arrivals, drawn by ``shares``: indices into ``shares``, shape (n,).

    Raises ``BadInput`` when n or the seed is negative, or the shares are negative or do not sum to 1.
    """
    if n < 0:
        raise BadInput(f"n is {n}: the number of arrivals must be at least 0")
    return drawn_models(shares, seed)(n)


def drawn_models(shares: Sequence[float], seed: int) -> Callable[[int], npt.NDArray[np.int32]]:
    """What draws the models of the next n arrivals, call by call, as ``assign`` draws those of all."""
    edges = checked_shares(shares).cumsum()
    rng = _generator(seed, _MODELS)

    def draw(n: int) -> npt.NDArray[np.int32]:
        models: npt.NDArray[np.int32] = np.searchsorted(edges, rng.random(n) * edges[-1], side="right").astype(np.int32)
        return models

    return draw


def time_generator(seed: int) -> np.random.Generator:
    """The random stream of times that belongs to ``seed``; raises ``BadInput`` when it is negative."""
    return _generator(seed, _TIMES)


def _generator(seed: int, stream: int) -> np.random.Generator:
    if seed < 0:
        raise BadInput(f"seed is {seed}: it must be an integer of at least 0")
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(stream,))))
