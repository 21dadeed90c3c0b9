"""Names the scaling policies (``POLICIES``): pure functions of what was seen, all of one shape.

``load_proportional``, of which docs/autoscaling.md tells more:

    base      staffed(growth * demand, growth * spread): what the load will take when a GPU launched now serves
    wanted    base, or margin * the ordinary level where that is more
    target    the most that was wanted within the scale-in window, rounded up, within the bounds

Rule 1. Scale out at once; scale in when nothing within the window wanted more.
Rule 2. Bad requests that a shortage of GPUs does not explain count as demand: a GPU then does less than its profile
        says.
Rule 3. There is a GPU as long as there were requests within the last-GPU delay, and as soon as there is one.
Rule 4. What is remembered only ever delays scale-in: after a restart nothing is given back for a window.
"""

from __future__ import annotations

import math
from dataclasses import replace

from autoscale.policies.comparisons import dask_adaptive, fixed_peak, gpu_utilization, ray_ongoing
from autoscale.policies.decision import Fleet, Memory, Policy, Settings, Target, bounded
from autoscale.policies.demand import bad_demand, demand, spread, staffed
from autoscale.policies.signals import Signals


def load_proportional(settings: Settings, memory: Memory, signals: Signals, fleet: Fleet) -> tuple[Memory, Target]:
    """GPUs in proportion to the load, with headroom for bursts."""
    now_s, have = signals.time_s, fleet.ready + fleet.booting
    amount = demand(signals)
    if amount <= fleet.ready and not fleet.booting:
        amount += bad_demand(signals)
    course = memory.course.follow(now_s, amount, settings.boot_s)
    before_s = now_s - settings.boot_s
    earlier = _within(memory.asked, before_s - settings.scale_in_window_s, before_s)
    if earlier:
        seconds = now_s - memory.asked[-1][0]
        shortfall = course.shortfall.add(seconds, amount, max(earlier), min(course.level, max(earlier)))
        course = replace(course, shortfall=shortfall)
    base = staffed(course.growth * amount, course.growth * spread(signals), settings.chance_miss)
    start_s = now_s - settings.scale_in_window_s
    kept_s = start_s - settings.boot_s
    asked = (*(entry for entry in memory.asked if entry[0] > kept_s), (now_s, base))
    margin = course.shortfall.margin(1 + settings.headroom, settings.burst_miss)
    ordinary = min(course.level, max(_within(asked, start_s, now_s)))
    wanted = max(base, margin * ordinary if margin > 1 else 0.0)
    recent = (*(entry for entry in memory.wanted if entry[0] > start_s), (now_s, wanted))
    gpus = math.ceil(max(amount for _, amount in recent) - 1e-9)

    active = any(m.queued or max(m.rate_hz.values(), default=0.0) > 0 for m in signals.models)
    began_s = now_s if memory.began_s is None else memory.began_s
    active_s = now_s if active else memory.active_s
    why = f"demand {amount:.2f}, growth {course.growth:.2f}, with headroom {base:.2f}, margin {margin:.2f}"
    if now_s - began_s < settings.scale_in_window_s and gpus < have:
        gpus, why = have, f"{why}; nothing is given back in the first {settings.scale_in_window_s:.0f} s"
    quiet = active_s is None or now_s - active_s >= settings.last_delay_s
    if gpus < 1 and not (settings.scale_to_zero and quiet and not active):
        gpus, why = 1, f"{why}; the last GPU stays"
    known = replace(memory, began_s=began_s, active_s=active_s, asked=asked, wanted=recent, course=course)
    return known, Target(bounded(settings, gpus), why)


def _within(asked: tuple[tuple[float, float], ...], after_s: float, to_s: float) -> list[float]:
    """What was asked for after the one time and up to the other."""
    return [amount for at_s, amount in asked if after_s < at_s <= to_s]


#: Policies by name.
POLICIES: dict[str, Policy] = {
    "load_proportional": load_proportional,
    "dask_adaptive": dask_adaptive,
    "ray_ongoing": ray_ongoing,
    "gpu_utilization": gpu_utilization,
    "fixed_peak": fixed_peak,
}

__all__ = ["POLICIES", "Fleet", "Memory", "Policy", "Settings", "Target", "load_proportional"]
