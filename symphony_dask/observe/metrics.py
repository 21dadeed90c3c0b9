"""Exports the scheduler's Prometheus metrics, on the ``/metrics`` page that Dask serves.

Names follow Dask's: ``symphony_model_...`` with the label ``model``, ``symphony_gpu_...`` with ``gpu`` and others; what
each means stands in docs/operations.md. Without ``prometheus_client`` there is no such page, and nothing is done.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from symphony_dask.dispatcher.recent_activity import LEFT_BOUNDS, REASONS, SIZE_BOUNDS, ModelCounts
from symphony_dask.engine.request_kernels import LATENCY_BINS, LATENCY_BOUNDS_NS
from symphony_dask.engine.start_rules import START_RULES, UNKNOWN
from symphony_dask.units import NS_PER_S

#: Key of the signals, name, help, and the label of its parts, if it has any.
_OF_MODELS = (
    ("rate_hz", "arrival_rate_hz", "Requests a second, the mean over a window", "window_seconds"),
    ("spread_hz", "arrival_spread_hz", "Standard deviation of single seconds' rates in a window", "window_seconds"),
    ("ongoing", "ongoing_requests", "Requests that wait or run, the mean over a window", "window_seconds"),
    ("bad_hz", "bad_rate_hz", "Requests a second that ended late, dropped or rejected", ""),
    ("queued", "queued_requests", "Requests that wait for a GPU", ""),
    ("gpu_seconds_per_request", "gpu_seconds_per_request", "l(b)/b at the mean b of deferred batches", "gpu_class"),
    ("least_gpu_seconds", "least_gpu_seconds_per_request", "The same at a rate without bound", "gpu_class"),
)


#: Which of the bins' bounds are shown, ns: 1, 2.5 and 5 of each decade.
_SHOWN_NS = [n for n in LATENCY_BOUNDS_NS.tolist() if str(n).rstrip("0") in ("1", "25", "5")]


class _Collector:
    """Asked at each scrape."""

    def __init__(self, signals: Callable[[], dict[str, Any]]) -> None:
        self._signals = signals

    def describe(self) -> list[Any]:
        """No names, so that another scheduler in this process does not clash."""
        return []

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


class _Counted:
    """As ``_Collector``, of what was counted since models were deployed."""

    def __init__(
        self,
        metrics: Callable[[], list[ModelCounts]],
        status: Callable[[], dict[str, Any]],
        fleets: Callable[[], dict[str, Any]],
    ) -> None:
        self._metrics, self._status, self._fleets = metrics, status, fleets

    def describe(self) -> list[Any]:
        return []

    def collect(self) -> Iterator[Any]:
        found, status = self._metrics(), self._status()
        yield from _of_requests(found)
        yield from _of_batches(found)
        yield from _of_network(status)
        yield from _of_scaling(self._fleets())


def _of_requests(found: list[ModelCounts]) -> Iterator[Any]:
    from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily

    requests = CounterMetricFamily("symphony_model_requests", "Requests by how they ended", labels=["model", "outcome"])
    text = "Time from the client's submit to the answer there, of requests that were answered"
    latency = HistogramMetricFamily("symphony_model_latency_seconds", text, labels=["model"])
    for model in found:
        for outcome, n in model.outcomes.items():
            requests.add_metric([model.name, outcome], n)
        bounds = [ns / NS_PER_S for ns in _SHOWN_NS]
        shown = np.searchsorted(LATENCY_BOUNDS_NS, _SHOWN_NS)
        cumulated = np.cumsum(model.latencies[:LATENCY_BINS])
        counts = [*cumulated[shown].tolist(), int(cumulated[-1])]
        latency.add_metric([model.name], _buckets(bounds, counts), int(model.latencies[LATENCY_BINS]) / NS_PER_S)
    yield requests
    yield latency


def _of_batches(found: list[ModelCounts]) -> Iterator[Any]:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

    sizes = HistogramMetricFamily("symphony_model_batch_size", "Requests in a batch that ran", labels=["model"])
    text = "Share of its window that a batch had left at its dispatch, above 1: before that opened"
    left = HistogramMetricFamily("symphony_model_window_left_ratio", text, labels=["model"])
    text = "Batches by why they left: their window opened, a GPU became free, or an idle GPU took them early"
    dispatches = CounterMetricFamily("symphony_model_dispatches", text, labels=["model", "reason"])
    text = "Batches by the rule that let them start"
    starts = CounterMetricFamily("symphony_model_batch_starts", text, labels=["model", "rule"])
    ran = CounterMetricFamily("symphony_model_execution_seconds", "GPU time of batches", labels=["model"])
    text = "GPU time that the windows had planned for them"
    planned = CounterMetricFamily("symphony_model_planned_seconds", text, labels=["model"])
    text = "Observed execution time over that of the profile, smoothed"
    drift = GaugeMetricFamily("symphony_model_profile_drift_ratio", text, labels=["model", "gpu_class"])
    for model in found:
        tally = model.tally
        sizes.add_metric([model.name], _buckets(SIZE_BOUNDS, np.cumsum(tally.sizes).tolist()), tally.requests)
        left.add_metric([model.name], _buckets(LEFT_BOUNDS, np.cumsum(tally.left).tolist()), tally.left_sum)
        for reason, n in zip(REASONS, tally.reasons.tolist(), strict=True):
            dispatches.add_metric([model.name, reason], n)
        for rule, n in zip(START_RULES, tally.rules.tolist(), strict=True):
            if n or rule != START_RULES[UNKNOWN]:
                starts.add_metric([model.name, rule], n)
        ran.add_metric([model.name], tally.run_ns / NS_PER_S)
        planned.add_metric([model.name], tally.planned_ns / NS_PER_S)
        for gpu_class, value in model.drift.items():
            drift.add_metric([model.name, gpu_class], value)
    yield from (sizes, left, dispatches, starts, ran, planned, drift)


def _of_network(status: dict[str, Any]) -> Iterator[Any]:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    control = GaugeMetricFamily(
        "symphony_worker_control_latency_seconds", "From dispatch to the start of a batch, smoothed", labels=["worker"]
    )
    reply = GaugeMetricFamily(
        "symphony_worker_reply_latency_seconds",
        "From the planned end of a batch to its answer here, smoothed",
        labels=["worker"],
    )
    for address, worker in status["workers"].items():
        control.add_metric([address], worker["control_mean_ns"] / NS_PER_S)
        reply.add_metric([address], worker["reply_mean_ns"] / NS_PER_S)
    yield control
    yield reply
    for name, text, key in (
        ("symphony_client_round_trip_seconds", "Of the lane's pings to clients", "client_round_trip_ns"),
        ("symphony_client_in_hand_seconds", "How long clients take with answers that came", "client_in_hand_ns"),
        ("symphony_timer_lateness_seconds", "How late the timer may ring", "timer_lateness_ns"),
        ("symphony_window_slack_seconds", "How much earlier windows open for what may go wrong", "slack_ns"),
    ):
        yield GaugeMetricFamily(name, text, status[key] / NS_PER_S)
    yield GaugeMetricFamily("symphony_clients", "Clients on the lane", status["clients"])
    lane = CounterMetricFamily("symphony_lane_bytes", "Bytes that passed through the scheduler", labels=["direction"])
    lane.add_metric(["in"], status["lane"]["bytes_in"])
    lane.add_metric(["out"], status["lane"]["bytes_out"])
    yield lane


def _of_scaling(found: dict[str, Any]) -> Iterator[Any]:
    from prometheus_client.core import GaugeMetricFamily

    text = "Instances of a fleet by phase, as its controller last saw them"
    instances = GaugeMetricFamily("symphony_fleet_instances", text, labels=["fleet", "phase"])
    wanted = GaugeMetricFamily("symphony_fleet_wanted_gpus", "GPUs that the scaling policy wants", labels=["fleet"])
    cost = GaugeMetricFamily("symphony_fleet_usd_per_hour", "What the fleet's instances cost", labels=["fleet"])
    for name, fleet in found["fleets"].items():
        for phase, n in fleet["instances"].items():
            instances.add_metric([name, phase], n)
        wanted.add_metric([name], fleet["gpus"])
        cost.add_metric([name], fleet["usd_per_hour"])
    yield from (instances, wanted, cost)
    text = "Drains of instances by state"
    drains = GaugeMetricFamily("symphony_drains", text, labels=["state"])
    states = [drain["state"] for drain in found["drains"].values()]
    for state in ("draining", "retiring", "retired"):
        drains.add_metric([state], states.count(state))
    yield drains


def _buckets(bounds: Sequence[float], cumulated: Sequence[int]) -> list[tuple[str, int]]:
    """cumulated: one more than bounds, the last one of all."""
    from prometheus_client.utils import floatToGoString

    return list(zip([*map(floatToGoString, bounds), "+Inf"], cumulated, strict=True))


def expose(
    signals: Callable[[], dict[str, Any]],
    counted: tuple[Callable[[], list[ModelCounts]], Callable[[], dict[str, Any]], Callable[[], dict[str, Any]]]
    | None = None,
) -> Callable[[], None]:
    """Show ``signals()`` (``Sampler.reply``) among this process's metrics; returns what takes it back.

    counted: ``Dispatcher.metrics``, ``Dispatcher.status`` and ``Fleets.status``, to be shown too.
    """
    try:
        from prometheus_client import REGISTRY
    except ImportError:
        return lambda: None
    collectors: list[Any] = [_Collector(signals)]
    if counted is not None:
        collectors.append(_Counted(*counted))
    for collector in collectors:
        REGISTRY.register(collector)

    def take_back() -> None:
        for collector in collectors:
            REGISTRY.unregister(collector)

    return take_back
