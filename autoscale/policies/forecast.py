"""Forecasts demand for when a GPU that is launched now will serve, and measures how far forecasts fell short before.

A *course* is demand by the minute. ``METHODS`` are ways to continue one; ``backtest`` tells what each would have cost,
and ``METHOD`` is the one that does best on the traces of docs/autoscaling.md. A forecast is never below what is asked
for now: ``growth`` is at least 1.

No method foresees a burst. So what earlier forecasts fell short by is counted for a row of margins (``Shortfall``): as
much as the least margin that would have kept it within what may be missed is kept ready.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

#: Steps of a course, s; and how many it keeps: two days, so that there is a day before each minute of this one.
STEP_S = 60.0
DAY_STEPS = 1440
MOST_STEPS = 2 * DAY_STEPS

#: Steps whose median is the level.
LEVEL_STEPS = 60

#: How much more than the mean of the latest forecasts may be kept ready, as factors.
MARGINS = tuple(1 + k / 20 for k in range(41))

#: A shortfall counts half after so long, s; what was before the first tick counts as so long without one; and so long
#: nothing is known well enough to keep less ready than the setting says.
HALF_LIFE_S = 2 * 86_400.0
PRIOR_S = 86_400.0
FIRST_S = 7_200.0

#: Continues a course: demand of past steps (the last is the present), steps ahead, steps of a season.
Method = Callable[[Floats, int, int], float]


def last(past: Floats, ahead: int, season: int) -> float:
    """As it is now."""
    return float(past[-1])


def moving_max(past: Floats, ahead: int, season: int) -> float:
    """The most of the last ten steps."""
    return float(past[-10:].max())


def trend(past: Floats, ahead: int, season: int) -> float:
    """The line through the last ten steps, from the present value on."""
    recent = past[-10:]
    n = len(recent)
    if n < 3:
        return float(past[-1])
    at = np.arange(n) - (n - 1) / 2
    slope = float((at * recent).sum() / (at * at).sum())
    return max(0.0, float(past[-1]) + slope * ahead)


def holt(past: Floats, ahead: int, season: int) -> float:
    """Holt's damped trend (0.5, 0.1, 0.9) of the last hour, from the present value on instead of the smoothed one."""
    recent = past[-60:]
    level, slope = float(recent[0]), 0.0
    for value in recent[1:].tolist():
        before = level
        level = 0.5 * value + 0.5 * (level + 0.9 * slope)
        slope = 0.1 * (level - before) + 0.9 * 0.9 * slope
    return max(0.0, float(past[-1]) + slope * sum(0.9**k for k in range(1, ahead + 1)))


def seasonal(past: Floats, ahead: int, season: int) -> float:
    """What the same step of the last season grew by from then to there, on what is now; ``last`` without a season.

    Both ends are means over eleven steps, so that a single burst is not repeated.
    """
    then = len(past) - 1 - season
    if then < 5 or len(past) < season + 1:
        return last(past, ahead, season)
    before, after = past[then - 5 : then + 6].mean(), past[then + ahead - 5 : then + ahead + 6].mean()
    return float(past[-1]) * float(np.clip(after / before, 0.5, 2.0)) if before > 0 else float(past[-1])


def seasonal_max(past: Floats, ahead: int, season: int) -> float:
    """``seasonal``, or what the last season came to there, if that is more: it foresees bursts that come every day."""
    then = len(past) - 1 - season
    found = seasonal(past, ahead, season)
    return max(found, float(past[then + 1 : then + ahead + 1].max())) if then >= 5 else found


#: Ways to continue a course, by name.
METHODS: dict[str, Method] = {
    "last": last,
    "moving_max": moving_max,
    "trend": trend,
    "holt": holt,
    "seasonal": seasonal,
    "seasonal_max": seasonal_max,
}

#: The one to begin with; ``learn`` chooses by what was recorded.
METHOD = "holt"


def backtest(
    demand: Floats,
    *,
    ahead: int,
    season: int = DAY_STEPS,
    window: int = 10,
    miss: float = 0.005,
    skip: int = 60,
    methods: Mapping[str, Method] | None = None,
) -> dict[str, float]:
    """By method, the capacity that it takes for each unit of demand to leave no more than ``miss`` of it without.

    demand: (n,) by step; ahead: steps that a forecast looks ahead; window: steps of the scale-in window; skip: steps at
        the start that are not judged.

    What is kept ready is the most of the forecasts within the window, each at least the demand when it was made, as a
    fleet does that scales in after a window. It is multiplied by the least factor with which the sum of what exceeds it
    is at most ``miss`` of all demand; what it then sums to, over all demand, is the result. 1 would be a forecast that
    knows; infinity, one that no factor helps.
    """
    found = {}
    first = max(skip - window, 0)
    real = demand[skip + ahead :]
    for name, method in (methods or METHODS).items():
        steps = range(first, len(demand) - ahead)
        made = np.array([max(demand[i], method(demand[: i + 1], ahead, season)) for i in steps])
        ready = np.array([made[max(0, i - window + 1) : i + 1].max() for i in range(skip - first, len(made))])
        found[name] = _factor(real, ready, miss) * float(ready.sum() / real.sum())
    return found


def _factor(real: Floats, made: Floats, miss: float) -> float:
    """The least factor on ``made`` that leaves at most ``miss`` of ``real`` above it, by bisection."""
    low, high = 0.0, 1.0
    while np.maximum(real - high * made, 0).sum() > miss * real.sum():
        high *= 2
        if high > 1e9:  # where nothing is forecast, no factor helps
            return math.inf
    for _ in range(40):
        middle = (low + high) / 2
        short = np.maximum(real - middle * made, 0).sum() > miss * real.sum()
        low, high = (middle, high) if short else (low, middle)
    return high


@dataclass(frozen=True)
class Shortfall:
    """What would have gone without a GPU under each of ``MARGINS``, in how much work and time; all of it fades."""

    short: tuple[float, ...] = (0.0,) * len(MARGINS)
    work: float = 0.0
    seconds: float = 0.0

    def add(self, seconds: float, demand: float, most: float, level: float) -> Shortfall:
        """``demand`` for so many seconds, of which ``most`` was foreseen, and a margin m had kept m * ``level``."""
        fade = 0.5 ** (seconds / HALF_LIFE_S)
        gone = (max(0.0, demand - math.ceil(max(most, margin * level) - 1e-9)) * seconds for margin in MARGINS)
        short = tuple(s * fade + g for s, g in zip(self.short, gone, strict=True))
        return Shortfall(short, self.work * fade + demand * seconds, self.seconds * fade + seconds)

    def margin(self, first: float, miss: float) -> float:
        """The least margin under which at most ``miss`` of the work would have gone without a GPU.

        The work is what was seen, and a day (``PRIOR_S``) of it without any shortfall before. At least ``first`` until
        two hours were seen (``FIRST_S``).
        """
        known = 1 + PRIOR_S / self.seconds if self.seconds > 0 else 1.0
        allowed = miss * self.work * known
        found = next((m for m, short in zip(MARGINS, self.short, strict=True) if short <= allowed), MARGINS[-1])
        return max(found, first) if self.seconds < FIRST_S else found


@dataclass(frozen=True)
class Course:
    """Demand in GPUs by step, as far as it is known.

    demand: mean of each whole step, the latest last. since_s, sum_, ticks: of the step that goes on.
    level: median of the last hour, as bursts do not count.
    growth: what demand is thought to grow by, as a factor of at least 1, until a GPU launched now serves.
    method: of ``METHODS``.
    """

    demand: tuple[float, ...] = ()
    since_s: float | None = None
    sum_: float = 0.0
    ticks: int = 0
    level: float = 0.0
    growth: float = 1.0
    shortfall: Shortfall = Shortfall()
    method: str = METHOD

    def follow(self, time_s: float, demand: float, ahead_s: float) -> Course:
        """The course with the demand of now; ahead_s: how far a forecast looks."""
        since = time_s if self.since_s is None else self.since_s
        if time_s - since < STEP_S:
            return replace(self, since_s=since, sum_=self.sum_ + demand, ticks=self.ticks + 1)
        mean = self.sum_ / self.ticks if self.ticks else demand
        past = (*self.demand, mean)[-MOST_STEPS:]
        ahead = max(1, round(ahead_s / STEP_S))
        return replace(
            self,
            demand=past,
            since_s=since + STEP_S * math.floor((time_s - since) / STEP_S),
            sum_=demand,
            ticks=1,
            level=float(np.median(past[-LEVEL_STEPS:])),
            growth=growth(np.array(past), ahead, self.method),
        )


def growth(past: Floats, ahead: int, method: str = METHOD) -> float:
    """By how much demand is forecast to have grown ``ahead`` steps from now, as a factor of at least 1."""
    if past[-1] <= 0:
        return 1.0
    return max(1.0, METHODS[method](past, ahead, DAY_STEPS) / float(past[-1]))
