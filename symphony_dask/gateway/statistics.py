"""Tells Triton's statistics of a model: how many requests there were, and where their time went.

All of it is counted on the scheduler, of all clients and gateways, and a request is one sample: each is scheduled by
itself, so an HTTP request of four samples counts four times. ``queue`` is from when the scheduler had it to the batch,
with the way to the worker; ``compute_input`` to decode and stack samples and have them on the device, ``compute_infer``
to call the model, ``compute_output`` to encode answers. What ``success`` has beyond these is the worker's way back.
"""

from __future__ import annotations

import time
from typing import Any

from symphony_dask.gateway.metrics import Metrics
from symphony_dask.gateway.upstream import Served
from symphony_dask.units import NS_PER_MS

#: How requests end that were not answered, and were not cancelled.
_FAILED = ("dropped", "rejected", "failed")


def statistic(model: Served, status: dict[str, Any] | None, metrics: Metrics) -> dict[str, Any]:
    """status: the model's in ``Dispatcher.status``. A pipeline has none: where its time goes its models tell,
    and its requests are counted in this gateway.
    """
    if status is None:
        own = metrics.of_model(model.name)
        return _statistic(model, own["success"], own["fail"], {"answered": 0, "by_size": [], "idle_ns": None}, 0)
    spent = status["spent"]
    failed = sum(status["outcomes"][outcome] for outcome in _FAILED)
    success = _duration(spent["answered"], spent["answer_ns"])
    return _statistic(model, success, _duration(failed, 0), spent, sum(batches for _, batches, *_ in spent["by_size"]))


def _statistic(
    model: Served, success: dict[str, int], fail: dict[str, int], spent: dict[str, Any], executions: int
) -> dict[str, Any]:
    def part(name: str) -> dict[str, int]:
        return _duration(spent["answered"], spent.get(name, 0))

    idle_ns = spent["idle_ns"]
    return {
        "name": model.name,
        "version": model.version,
        "last_inference": 0 if idle_ns is None else int(time.time() * 1000) - idle_ns // NS_PER_MS,
        "inference_count": success["count"],
        "execution_count": executions,
        "inference_stats": {
            "success": success,
            "fail": fail,
            "queue": part("queue_ns"),
            "compute_input": part("input_ns"),
            "compute_infer": part("infer_ns"),
            "compute_output": part("output_ns"),
            "cache_hit": _duration(0, 0),
            "cache_miss": _duration(0, 0),
        },
        "batch_stats": [
            {
                "batch_size": size,
                "compute_input": _duration(batches, input_ns),
                "compute_infer": _duration(batches, infer_ns),
                "compute_output": _duration(batches, output_ns),
            }
            for size, batches, input_ns, infer_ns, output_ns in spent["by_size"]
        ],
    }


def _duration(count: int, ns: int) -> dict[str, int]:
    return {"count": count, "ns": ns}
