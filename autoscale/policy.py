"""How many GPUs there should be: pure functions of what was seen, all of one shape, named in ``POLICIES``."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from autoscale.signals import Signals


@dataclass(frozen=True)
class Settings:
    """What an operator chooses. Times in s; fleets in GPUs.

    boot_s: from the launch of a GPU until it serves.
    headroom: share of demand to keep on top of what bursts ask for.
    scale_in_window_s: the fleet shrinks to the most that was wanted in so long a time.
    last_delay_s: the last GPU goes when there was no request for so long; only with ``scale_to_zero``.
    minimum, maximum: bounds of the target.
    """

    boot_s: float = 120.0
    headroom: float = 0.05
    scale_in_window_s: float = 600.0
    last_delay_s: float = 900.0
    minimum: int = 0
    maximum: int = 64
    scale_to_zero: bool = True


@dataclass(frozen=True)
class Memory:
    """What a policy remembers from tick to tick; ``Memory()`` is the first. Nothing in it is needed after a restart.

    wanted: (time_s, GPUs) of what was asked for within the window that scale-in looks at.
    """

    wanted: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True)
class Fleet:
    """GPUs by state, as the reconciler counts them."""

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


def load_proportional(settings: Settings, memory: Memory, signals: Signals, fleet: Fleet) -> tuple[Memory, Target]:
    """The GPU time that a second's requests need at the batches that their SLOs allow."""
    demand = 0.0
    for model in signals.models:
        cost_s = max(model.gpu_seconds_per_request.values(), default=0.0)
        demand += (max(model.rate_hz.values(), default=0.0) + model.bad_hz) * cost_s
    wanted = demand * (1 + settings.headroom)
    start = signals.time_s - settings.scale_in_window_s
    kept = (*(entry for entry in memory.wanted if entry[0] > start), (signals.time_s, wanted))
    gpus = math.ceil(max(amount for _, amount in kept))
    gpus = min(max(gpus, settings.minimum), settings.maximum)
    return Memory(kept), Target(gpus, f"{demand:.2f} GPUs of work")


#: Policies by name.
POLICIES: dict[str, Policy] = {"load_proportional": load_proportional}
