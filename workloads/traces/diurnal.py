"""Makes a day's arrivals: a rate that rises and falls with the hours, with bursts that come when they like."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from symphony_dask.errors import BadInput
from symphony_dask.trace import Names
from symphony_dask.trace.ordered import Rows
from symphony_dask.units import NS_PER_S
from workloads.traces.synthetic_arrivals import drawn_models, time_generator
from workloads.traces.transform import OnProgress, write_chunks
from workloads.traces.zoo import POPULARITIES

_DAY_S = 86_400

#: Seconds whose arrivals are drawn together.
_CHUNK_S = 600


def diurnal_rates(
    seconds: int,
    peak_hz: float,
    *,
    trough: float = 0.1,
    bursts_per_day: float = 12.0,
    burst: float = 1.6,
    wobble: float = 0.05,
    seed: int = 0,
) -> npt.NDArray[np.float64]:
    """Requests a second of each second, shape (seconds,); second 0 is at the least of the day, at night.

    peak_hz: at the most of the day, without bursts. trough: the least over the most. Between them the rate goes as a
        cosine to the power of 1.5: days have long nights.
    bursts_per_day, burst: bursts begin at random (Poisson). Each rises within 10 to 60 s, holds for 3 to 20 min and
        decays by half each 2 min; on average it multiplies the rate by ``burst``, by an exponentially distributed
        excess.
    wobble: standard deviation of slow noise (correlated over some 5 min) relative to the rate.

    The same arguments give the same rates. Raises ``BadInput`` if they cannot be used.
    """
    if seconds < 1 or not 0 < peak_hz < math.inf or not 0 <= trough <= 1:
        raise BadInput(f"seconds={seconds}, peak_hz={peak_hz}, trough={trough}: give at least 1, above 0, and 0 to 1")
    if not (bursts_per_day >= 0 and burst >= 1 and 0 <= wobble < 1):
        raise BadInput(
            f"bursts_per_day={bursts_per_day}, burst={burst}, wobble={wobble}: give at least 0, at least 1, and 0 to 1"
        )
    rng = time_generator(seed)
    at = np.arange(seconds, dtype=float)
    shape = ((1 - np.cos(2 * np.pi * at / _DAY_S)) / 2) ** 1.5
    rates = peak_hz * (trough + (1 - trough) * shape)
    for start in np.sort(rng.uniform(0, seconds, rng.poisson(bursts_per_day * seconds / _DAY_S))).tolist():
        rise_s, hold_s, excess = rng.uniform(10, 60), rng.uniform(180, 1200), (burst - 1) * rng.exponential()
        since = at - start
        decay = 0.5 ** (np.maximum(since - rise_s - hold_s, 0) / 120)
        rates *= 1 + excess * np.clip(since / rise_s, 0, 1) * decay
    steps = np.concatenate(([0.0], rng.normal(size=seconds // 300 + 2)))
    slow = np.interp(at, np.arange(len(steps)) * 300.0, steps)
    found: npt.NDArray[np.float64] = rates * np.maximum(0.0, 1 + wobble * slow)
    return found


def diurnal(
    target: Path,
    *,
    seconds: int,
    peak_hz: float,
    models: int = 1,
    popularity: str = "equal",
    slo_ns: int | None = None,
    seed: int = 0,
    on_progress: OnProgress = None,
    **shape: float,
) -> dict[str, Any]:
    """Write a trace with the rates of ``diurnal_rates`` into ``target``; gives ``Facts.to_dict``.

    Within a second arrivals are Poisson. models, popularity, slo_ns: as of ``transform.synth``; shape: the other
    arguments of ``diurnal_rates``. The same arguments give the same bytes. Raises ``BadInput``.
    """
    if popularity not in POPULARITIES:
        raise BadInput(f"popularity {popularity!r} is unknown: use one of {', '.join(POPULARITIES)}")
    rates = diurnal_rates(seconds, peak_hz, seed=seed, **shape)
    draw = drawn_models(POPULARITIES[popularity](models), seed)
    rng = time_generator(seed + 1)

    def drawn() -> Iterator[Rows]:
        for at in range(0, seconds, _CHUNK_S):
            counts = rng.poisson(rates[at : at + _CHUNK_S])
            whole = np.repeat(np.arange(at, at + len(counts)), counts)
            arrivals = np.sort(((whole + rng.random(len(whole))) * NS_PER_S).astype(np.int64))
            if not len(arrivals):
                continue
            deadlines = arrivals if slo_ns is None else arrivals + slo_ns
            yield {"arrival_ns": arrivals, "model": draw(len(arrivals)), "deadline_ns": deadlines}
            if on_progress is not None:
                on_progress(len(counts))

    described = {"source": "synthetic, diurnal", "peak_hz": peak_hz, "slo_ns": slo_ns, "seed": seed, **shape}
    return write_chunks(drawn(), Names(f"model-{m}" for m in range(models)), target, described)
