"""Exports a worker's Prometheus metrics: what its slots have run, on the ``/metrics`` page that Dask serves there.

Without ``prometheus_client`` there is no such page, and nothing is done.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from symphony_dask.units import NS_PER_S


@dataclass
class SlotCounts:
    """What a slot has done so far.

    staged: batches that were sent to the device while the one before ran. failed: requests whose model raised; lost:
    requests whose payload did not come in time.
    """

    batches: int = 0
    requests: int = 0
    run_ns: int = 0
    staged: int = 0
    failed: int = 0
    lost: int = 0

    def add(self, requests: int, run_ns: int, *, staged: bool, failed: int, lost: int) -> None:
        """A batch has ended; called in the slot's thread."""
        self.batches += 1
        self.requests += requests
        self.run_ns += run_ns
        self.staged += staged
        self.failed += failed
        self.lost += lost


class _Slot(Protocol):
    number: int
    runners: dict[int, Any]
    counts: SlotCounts


class SlotHolder(Protocol):
    """A worker with slots."""

    address: str
    gpu_class: str

    @property
    def slots(self) -> list[Any]:
        """Each a ``_Slot``."""


_COUNTERS = (
    ("batches", "batches", "Batches that ran"),
    ("requests", "requests", "Requests in them"),
    ("staged", "staged_batches", "Batches that were sent to the device while the one before ran"),
    ("failed", "failed_requests", "Requests whose model raised"),
    ("lost", "lost_payloads", "Requests whose payload did not come in time"),
)


class _Collector:
    """Of all workers in this process, asked at each scrape."""

    def __init__(self) -> None:
        self.workers: list[SlotHolder] = []

    def describe(self) -> list[Any]:
        return []

    def collect(self) -> Iterator[Any]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        labels = ["worker", "slot", "gpu_class"]
        slots: list[tuple[list[str], _Slot]] = [
            ([w.address, str(slot.number), w.gpu_class], slot) for w in self.workers for slot in w.slots
        ]
        for attribute, name, text in _COUNTERS:
            family = CounterMetricFamily(f"symphony_slot_{name}", text, labels=labels)
            for values, slot in slots:
                family.add_metric(values, getattr(slot.counts, attribute))
            yield family
        ran = CounterMetricFamily(
            "symphony_slot_execution_seconds", "Time for which the slot ran batches", labels=labels
        )
        loaded = GaugeMetricFamily("symphony_slot_models", "Models loaded", labels=labels)
        for values, slot in slots:
            ran.add_metric(values, slot.counts.run_ns / NS_PER_S)
            loaded.add_metric(values, len(slot.runners))
        yield ran
        yield loaded


_collector = _Collector()


def expose(worker: SlotHolder) -> Callable[[], None]:
    """Show what a worker's slots have done among this process's metrics; returns what takes it back."""
    try:
        from prometheus_client import REGISTRY
    except ImportError:
        return lambda: None
    if not _collector.workers:
        REGISTRY.register(_collector)
    _collector.workers.append(worker)

    def take_back() -> None:
        _collector.workers.remove(worker)
        if not _collector.workers:
            REGISTRY.unregister(_collector)

    return take_back
