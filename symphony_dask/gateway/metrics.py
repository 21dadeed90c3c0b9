"""Counts what the gateway does, and has one of several processes answer for all of them.

Counts are plain numbers: a request costs two dictionary look-ups. Each process leaves its counts in a folder once a
second; who is asked for /metrics adds up its own and the others', also of processes that have ended, so that no count
ever falls.
"""

from __future__ import annotations

import json
import os
import time
from bisect import bisect_left
from collections.abc import Iterator
from pathlib import Path
from typing import Any

#: Upper ends of the latency histogram, s.
BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)

#: Counts of a process that wrote none for so long stand, but it is taken to have ended, s.
_ALIVE_S = 5.0


class Metrics:
    """Of one process. folder: shared with the others, None if there is one process only."""

    def __init__(self, folder: str | None = None) -> None:
        self.in_flight = 0
        self.connected = False
        self._requests: dict[tuple[str, int, str], int] = {}
        #: By model: count of each bucket and of those above, then samples, then seconds in all; of answered ones.
        self._latency: dict[str, list[float]] = {}
        self._folder = Path(folder) if folder is not None else None

    def count(self, model: str, status: int, outcome: str, seconds: float, samples: int) -> None:
        """A request has ended. model: empty unless it is deployed, so that nobody can make up labels."""
        key = (model, status, outcome)
        self._requests[key] = self._requests.get(key, 0) + 1
        if status == 200:
            row = self._latency.get(model)
            if row is None:
                row = self._latency[model] = [0.0] * (len(BUCKETS) + 3)
            row[bisect_left(BUCKETS, seconds)] += 1
            row[-2] += samples
            row[-1] += seconds

    def of_model(self, model: str) -> dict[str, dict[str, int]]:
        """Requests of a model answered and not, and the time of the former, over all processes, as v2 has it."""
        total = _sum(self._everywhere())
        row = total["latency"].get(model, [0.0] * (len(BUCKETS) + 3))
        failed = sum(n for m, status, _, n in total["requests"] if m == model and status != 200)
        success = {"count": int(sum(row[: len(BUCKETS) + 1])), "ns": int(row[-1] * 1e9)}
        return {"success": success, "fail": {"count": failed, "ns": 0}}

    def leave(self) -> None:
        """Write the counts for the other processes."""
        if self._folder is not None:
            path = self._folder / f"{os.getpid()}.json"
            new = path.with_suffix(".new")
            new.write_text(json.dumps(self._own()))
            new.replace(path)

    def _own(self) -> dict[str, Any]:
        return {
            "requests": [[*key, n] for key, n in self._requests.items()],
            "latency": self._latency,
            "in_flight": self.in_flight,
            "connected": self.connected,
        }

    def _everywhere(self) -> Iterator[dict[str, Any]]:
        yield self._own()
        for path in self._folder.glob("*.json") if self._folder is not None else ():
            if path.stem == str(os.getpid()):
                continue
            try:
                found = json.loads(path.read_text())
                if time.time() - path.stat().st_mtime > _ALIVE_S:
                    found |= {"in_flight": 0, "connected": None}
            except (OSError, ValueError):
                continue
            yield found

    def text(self) -> bytes:
        """All processes' counts in Prometheus' text format."""
        from prometheus_client import CollectorRegistry, generate_latest

        registry = CollectorRegistry()
        registry.register(_Collector(_sum(self._everywhere())))  # type: ignore[arg-type]
        return generate_latest(registry)


def _sum(parts: Iterator[dict[str, Any]]) -> dict[str, Any]:
    requests: dict[tuple[str, int, str], int] = {}
    latency: dict[str, list[float]] = {}
    in_flight, connected = 0, []
    for part in parts:
        for model, status, outcome, n in part["requests"]:
            key = (model, status, outcome)
            requests[key] = requests.get(key, 0) + n
        for model, row in part["latency"].items():
            before = latency.get(model, [0.0] * len(row))
            latency[model] = [a + b for a, b in zip(before, row, strict=True)]
        in_flight += part["in_flight"]
        if part["connected"] is not None:
            connected.append(part["connected"])
    return {
        "requests": [[*key, n] for key, n in requests.items()],
        "latency": latency,
        "in_flight": in_flight,
        "connected": sum(connected),
    }


class _Collector:
    def __init__(self, total: dict[str, Any]) -> None:
        self._total = total

    def collect(self) -> Iterator[Any]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

        total = self._total
        text = "Inference requests that ended, by status code and outcome."
        requests = CounterMetricFamily("symphony_gateway_requests", text, labels=["model", "code", "outcome"])
        for model, status, outcome, n in total["requests"]:
            requests.add_metric([model, str(status), outcome], n)
        yield requests
        text = "From the head of a request to its answer, of those answered."
        latency = HistogramMetricFamily("symphony_gateway_latency_seconds", text, labels=["model"])
        samples = CounterMetricFamily("symphony_gateway_samples", "Samples in answered requests.", labels=["model"])
        for model, row in total["latency"].items():
            buckets, running = [], 0.0
            for end, n in zip([*map(str, BUCKETS), "+Inf"], row, strict=False):
                running += n
                buckets.append((end, running))
            latency.add_metric([model], buckets, row[-1])
            samples.add_metric([model], row[-2])
        yield latency
        yield samples
        yield GaugeMetricFamily("symphony_gateway_in_flight", "Inference requests under way.", total["in_flight"])
        text = "Gateway processes with a connection to the scheduler."
        yield GaugeMetricFamily("symphony_gateway_connected", text, total["connected"])
