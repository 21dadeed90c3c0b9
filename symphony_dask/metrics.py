"""The scheduler's Prometheus metrics: what scaling policies see, on the ``/metrics`` page that Dask serves.

Names follow Dask's: ``symphony_model_...`` with the label ``model``, ``symphony_gpu_...`` with ``gpu`` and others.
Without ``prometheus_client`` there is no such page, and nothing is done.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

#: Key of the signals, name, help, and the label of its parts, if it has any.
_OF_MODELS = (
    ("rate_hz", "arrival_rate_hz", "Requests a second, the mean over a window", "window_seconds"),
    ("spread_hz", "arrival_spread_hz", "Standard deviation of single seconds' rates in a window", "window_seconds"),
    ("ongoing", "ongoing_requests", "Requests that wait or run, the mean over a window", "window_seconds"),
    ("bad_hz", "bad_rate_hz", "Requests a second that ended late, dropped or rejected", ""),
    ("queued", "queued_requests", "Requests that wait for a GPU", ""),
    ("gpu_seconds_per_request", "gpu_seconds_per_request", "l(b)/b at the largest b that the SLO allows", "gpu_class"),
    ("least_gpu_seconds", "least_gpu_seconds_per_request", "The same at a rate without bound", "gpu_class"),
)


class _Collector:
    """Asked at each scrape."""

    def __init__(self, signals: Callable[[], dict[str, Any]]) -> None:
        self._signals = signals

    def collect(self) -> Iterator[Any]:
        from prometheus_client.core import GaugeMetricFamily

        found = self._signals()
        for key, name, text, label in _OF_MODELS:
            family = GaugeMetricFamily(f"symphony_model_{name}", text, labels=["model", *([label] if label else [])])
            for model in found["models"]:
                if label:
                    for part, value in model[key].items():
                        family.add_metric([model["name"], part], value)
                else:
                    family.add_metric([model["name"]], model[key])
            yield family
        labels = ["gpu", "rank", "gpu_class", "worker"]
        busy = GaugeMetricFamily("symphony_gpu_busy_ratio", "Share of the last 10 s in which it ran", labels=labels)
        draining = GaugeMetricFamily("symphony_gpu_draining", "1 while it gets no more batches", labels=labels)
        for gpu in found["gpus"]:
            values = [str(gpu[label]) for label in labels]
            busy.add_metric(values, gpu["busy"])
            draining.add_metric(values, float(gpu["draining"]))
        yield busy
        yield draining


def expose(signals: Callable[[], dict[str, Any]]) -> Callable[[], None]:
    """Show ``signals()`` (``Sampler.reply``) among this process's metrics; returns what takes it back."""
    try:
        from prometheus_client import REGISTRY
    except ImportError:
        return lambda: None
    collector = _Collector(signals)
    REGISTRY.register(collector)
    return lambda: REGISTRY.unregister(collector)
