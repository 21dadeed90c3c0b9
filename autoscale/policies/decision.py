"""Defines the shape of every policy: what it is given, what it remembers, and what it answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from autoscale.policies.forecast import Course
from autoscale.policies.signals import Signals


@dataclass(frozen=True)
class Settings:
    """What an operator chooses. Times in s; fleets in GPUs.

    minimum, maximum: bounds of the target. scale_to_zero: whether the last GPU may go, before there are requests again.
    boot_s: from the launch of a GPU until it serves.
    scale_in_window_s: the fleet shrinks to the most that was wanted in so long a time.
    last_delay_s: the last GPU goes when there was no request for so long.
    attainment: share of requests to be in time; how much is kept ready for bursts is learned so that it holds.
    headroom: share of demand kept ready while nothing is learned yet.

    Of the policies that ``load_proportional`` is compared with:
    target_duration_s: dask_adaptive, ``distributed.adaptive.target-duration``; wait_count: its setting of that name.
    target_ongoing: ray_ongoing, requests that wait or run for each GPU; upscale_delay_s, downscale_delay_s: for how
        long it must want more, or less.
    target_utilization: gpu_utilization, the share of time that GPUs are to run; tolerance: what it may be off without
        anything being done; stabilization_s: it shrinks to the most that it wanted in so long a time.
    fixed_gpus: fixed_peak.
    """

    minimum: int = 0
    maximum: int = 64
    scale_to_zero: bool = True
    boot_s: float = 120.0
    scale_in_window_s: float = 300.0
    last_delay_s: float = 900.0
    attainment: float = 0.99
    headroom: float = 0.15
    target_duration_s: float = 5.0
    wait_count: int = 3
    target_ongoing: float = 2.0
    upscale_delay_s: float = 30.0
    downscale_delay_s: float = 600.0
    target_utilization: float = 0.7
    tolerance: float = 0.1
    stabilization_s: float = 300.0
    fixed_gpus: int = 1

    @property
    def burst_miss(self) -> float:
        """Share of requests that may be missed because bursts come faster than GPUs boot."""
        return (1 - self.attainment) / 2

    @property
    def chance_miss(self) -> float:
        """Share of the work that may exceed what is asked for because arrivals vary by chance.

        Of what may be missed, one and a half times all: as GPUs are whole, and are kept for the scale-in window, a
        fifth of it comes true (docs/autoscaling.md).
        """
        return 1.5 * (1 - self.attainment)


@dataclass(frozen=True)
class Memory:
    """What a policy remembers from tick to tick; ``Memory()`` is the first, and all there is after a restart.

    began_s: when the first tick was. active_s: when there last were requests.
    asked, wanted: (time_s, GPUs) of what the latest ticks asked for without and with what is kept ready for bursts, as
        far back as it takes.
    pressed_s, direction: since when a policy with delays has wanted more (+1) or less (-1).
    course: how demand went, for the forecast.
    """

    began_s: float | None = None
    active_s: float | None = None
    asked: tuple[tuple[float, float], ...] = ()
    wanted: tuple[tuple[float, float], ...] = ()
    pressed_s: float | None = None
    direction: int = 0
    course: Course = field(default_factory=Course)


@dataclass(frozen=True)
class Fleet:
    """GPUs by state, as the reconciler counts them. One that will be gone soon, as a spot notice said, is draining."""

    ready: int = 0
    booting: int = 0
    draining: int = 0


@dataclass(frozen=True)
class Target:
    """How many GPUs there should be, ready and booting together, and why, for people."""

    gpus: int
    why: str


#: One decision: memory in, memory out.
Policy = Callable[[Settings, Memory, Signals, Fleet], tuple[Memory, Target]]


def bounded(settings: Settings, gpus: int) -> int:
    """``gpus`` within the bounds; the maximum goes first."""
    return min(max(gpus, settings.minimum), settings.maximum)
