"""Defines what policies see: the load of each model and the use of each GPU, sampled once a second on the scheduler.

``Signals.from_reply`` reads what the RPC ``symphony_signals`` answers (``Serving.signals()``); trials make the same
signals from a simulation (``workloads.policy_trials.trial``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class ModelSignals:
    """One model's load.

    rate_hz: arrivals a second, the mean over each of several windows, by the window's length in s (1, 10, 60, ...).
    spread_hz: standard deviation of the rates of single seconds in that window.
    ongoing: requests that wait or run, the mean over each window.
    bad_hz: requests a second that ended late, dropped or rejected, over the last 10 s.
    queued: requests that wait for a GPU now.
    gpu_seconds_per_request: l(b)/b by GPU class, at the mean size b of batches at the present rate.
    least_gpu_seconds: the same at a rate without bound.
    """

    name: str
    slo_ns: int
    rate_hz: Mapping[float, float]
    spread_hz: Mapping[float, float]
    bad_hz: float
    queued: int
    gpu_seconds_per_request: Mapping[str, float]
    ongoing: Mapping[float, float] = field(default_factory=dict)
    least_gpu_seconds: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class GpuSignals:
    """One slot on a worker. busy: the share of the last 10 s in which it ran batches, 0 to 1."""

    gpu: int
    rank: int
    gpu_class: str
    worker: str
    busy: float
    draining: bool


@dataclass(frozen=True)
class Signals:
    """All that a policy may know. time_s: monotonic, from any origin."""

    time_s: float
    models: tuple[ModelSignals, ...] = ()
    gpus: tuple[GpuSignals, ...] = field(default=())

    @classmethod
    def from_reply(cls, reply: Mapping[str, Any]) -> Signals:
        """From the plain values of ``Serving.signals()``, whose windows may be strings, as in JSON."""
        return cls(
            time_s=float(reply["time_s"]),
            models=tuple(
                ModelSignals(
                    name=m["name"],
                    slo_ns=m["slo_ns"],
                    rate_hz={float(w): r for w, r in m["rate_hz"].items()},
                    spread_hz={float(w): r for w, r in m["spread_hz"].items()},
                    bad_hz=m["bad_hz"],
                    queued=m["queued"],
                    gpu_seconds_per_request=dict(m["gpu_seconds_per_request"]),
                    ongoing={float(w): n for w, n in m["ongoing"].items()},
                    least_gpu_seconds=dict(m["least_gpu_seconds"]),
                )
                for m in reply["models"]
            ),
            gpus=tuple(GpuSignals(**g) for g in reply["gpus"]),
        )
