"""Holds the scaling policies of other systems, for comparison, each by the rule of its source on the same signals."""

from __future__ import annotations

import math
from dataclasses import replace

from autoscale.policies.decision import Fleet, Memory, Settings, Target, bounded
from autoscale.policies.demand import gpu_seconds
from autoscale.policies.signals import Signals

#: Ray Serve's look_back_period_s, s.
_LOOK_BACK_S = 30.0


def dask_adaptive(settings: Settings, memory: Memory, signals: Signals, fleet: Fleet) -> tuple[Memory, Target]:
    """Dask's ``Scheduler.adaptive_target``, and ``AdaptiveCore``'s ``wait_count`` (distributed 2026.8).

    A request counts as a task of l(b)/b. Up: all tasks' time over ``target_duration_s``, though no more workers than
    there are tasks. Down: only workers that have nothing to do, at ``wait_count`` looks in a row; of a GPU that is busy
    for a share u of the time that is taken to hold with (1 - u)^wait_count.
    """
    tasks = sum(model.ongoing.get(1.0, 0.0) for model in signals.models)
    occupancy_s = sum(model.ongoing.get(1.0, 0.0) * gpu_seconds(model, signals) for model in signals.models)
    wanted = min(math.ceil(occupancy_s / settings.target_duration_s), math.ceil(tasks))
    have = fleet.ready + fleet.booting
    if wanted < have:
        idle = sum((1 - gpu.busy) ** settings.wait_count for gpu in signals.gpus if not gpu.draining)
        wanted = max(wanted, have - math.floor(idle))
    if have == 0 and any(model.queued or model.bad_hz for model in signals.models):
        wanted = max(wanted, 1)
    return memory, Target(bounded(settings, wanted), f"{occupancy_s:.2f} s of tasks")


def ray_ongoing(settings: Settings, memory: Memory, signals: Signals, fleet: Fleet) -> tuple[Memory, Target]:
    """Ray Serve's rule (``ray.serve.autoscaling_policy``): GPUs times (ongoing requests a GPU over ``target_ongoing``).

    Ongoing requests are the mean over 30 s. More is wanted for ``upscale_delay_s`` before anything is launched, less
    for ``downscale_delay_s``.
    """
    ongoing = sum(model.ongoing.get(_LOOK_BACK_S, 0.0) for model in signals.models)
    have = fleet.ready + fleet.booting
    why = f"{ongoing:.1f} ongoing requests"
    if fleet.ready == 0:
        asked = any(model.rate_hz.get(1.0, 0.0) > 0 or model.queued for model in signals.models)
        return memory, Target(bounded(settings, max(have, 1) if asked else have), why)
    wanted = bounded(settings, math.ceil(ongoing / settings.target_ongoing))
    direction = (wanted > have) - (wanted < have)
    if direction != memory.direction:
        memory = replace(memory, direction=direction, pressed_s=signals.time_s)
    delay_s = settings.upscale_delay_s if direction > 0 else settings.downscale_delay_s
    if direction and memory.pressed_s is not None and signals.time_s - memory.pressed_s >= delay_s:
        return replace(memory, direction=0, pressed_s=None), Target(wanted, why)
    return memory, Target(bounded(settings, have), why)


def gpu_utilization(settings: Settings, memory: Memory, signals: Signals, fleet: Fleet) -> tuple[Memory, Target]:
    """Target tracking of the mean busy share, by Kubernetes' formula: ceil(GPUs * busy / target).

    As its Horizontal Pod Autoscaler: nothing is done within ``tolerance``; GPUs that boot count as idle when there
    would be more, and not at all when there would be fewer; it shrinks to the most wanted in ``stabilization_s``.
    """
    have = fleet.ready + fleet.booting
    busy = [gpu.busy for gpu in signals.gpus if not gpu.draining]
    used = sum(busy)
    if busy:
        ratio = used / len(busy) / settings.target_utilization
        if ratio > 1 and fleet.booting:
            ratio = max(1.0, used / (len(busy) + fleet.booting) / settings.target_utilization)
        wanted = have if abs(ratio - 1) <= settings.tolerance else math.ceil(used / settings.target_utilization)
        wanted = max(wanted, have) if ratio >= 1 else min(wanted, have)
    else:
        asked = any(model.rate_hz.get(1.0, 0.0) > 0 or model.queued for model in signals.models)
        wanted = max(have, 1) if asked else have
    start_s = signals.time_s - settings.stabilization_s
    asked_for = (*(entry for entry in memory.asked if entry[0] > start_s), (signals.time_s, float(wanted)))
    most = max(int(amount) for _, amount in asked_for)
    target = bounded(settings, max(wanted, min(have, most)))
    return replace(memory, asked=asked_for), Target(target, f"{used:.2f} GPUs busy")


def fixed_peak(settings: Settings, memory: Memory, signals: Signals, fleet: Fleet) -> tuple[Memory, Target]:
    """As many GPUs as the peak takes, always: ``fixed_gpus``."""
    return memory, Target(bounded(settings, settings.fixed_gpus), "fixed")
