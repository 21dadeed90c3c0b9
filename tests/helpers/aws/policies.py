"""Signals written by hand."""

from __future__ import annotations

from autoscale.policies.signals import GpuSignals, ModelSignals, Signals

WINDOWS_S = (1.0, 10.0, 30.0, 60.0)


def model(
    rate_hz: float = 0.0,
    cost_s: float = 0.01,
    *,
    spread_hz: float = 0.0,
    bad_hz: float = 0.0,
    queued: int = 0,
    ongoing: float = 0.0,
    slo_ns: int = 50_000_000,
    name: str = "m",
) -> ModelSignals:
    return ModelSignals(
        name=name,
        slo_ns=slo_ns,
        rate_hz=dict.fromkeys(WINDOWS_S, rate_hz),
        spread_hz=dict.fromkeys(WINDOWS_S, spread_hz),
        bad_hz=bad_hz,
        queued=queued,
        gpu_seconds_per_request={"gpu": cost_s},
        ongoing=dict.fromkeys(WINDOWS_S, ongoing),
    )


def gpus(*busy: float) -> tuple[GpuSignals, ...]:
    return tuple(GpuSignals(i, i, "gpu", f"worker-{i}", share, False) for i, share in enumerate(busy))


def at(time_s: float, *models: ModelSignals, gpus: tuple[GpuSignals, ...] = ()) -> Signals:
    return Signals(time_s, models, gpus)
