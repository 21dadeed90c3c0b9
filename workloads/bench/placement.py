"""Measures many models in few slots, which have room for some of them at a time: ``symphony bench placement``.

A real cluster of processes serves emulated models: execution is a sleep of l(b), a load a sleep of its length, memory a
number; scheduler, lane, workers, loads and evictions are real. Requests come at their times (open loop), models are of
Zipf popularity, so the last ones are asked for rarely and have often been evicted when they are. *Thrash* is how many
loads there were for each request.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

from distributed import Client

from symphony_dask.backends import Emulated
from symphony_dask.client.serving import Serving
from symphony_dask.errors import BadInput, NotServing
from workloads.live import load_generator
from workloads.live.local_cluster import ProcessCluster
from workloads.traces.synthetic_arrivals import assign, poisson
from workloads.traces.zoo import POPULARITIES

#: l(b) of each model, ms, and the bytes that each is said to need.
_ALPHA_MS, _BETA_MS, _MEMORY = 1.0, 5.0, 1 << 30

_START_S = 60.0


def bench_placement(
    *,
    models: int = 30,
    gpus: int = 4,
    room: int = 5,
    load_ms: float = 200.0,
    slo_ms: float = 1000.0,
    rate_hz: float = 100.0,
    seconds: float = 30.0,
    on_progress: Callable[[str], None] = lambda s: None,
) -> dict[str, Any]:
    """Attainment and loads of ``models`` models in ``gpus`` slots with room for ``room`` models each.

    Raises ``BadInput`` on values that are not above 0.
    """
    if min(models, gpus, room) < 1 or not min(load_ms, slo_ms, rate_hz, seconds) > 0:
        raise BadInput(f"models={models}, gpus={gpus}, room={room}, ...: all must be above 0")
    settings = {"DASK_SYMPHONY__GPU__MEMORY": str(room * _MEMORY)}
    with (
        ProcessCluster(gpus, settings=settings) as cluster,
        Client(cluster.address) as client,
        Serving(client) as serving,
    ):
        end = time.monotonic() + _START_S
        while len(serving.status()["workers"]) < gpus:
            if time.monotonic() > end:
                raise NotServing(f"{gpus} workers did not join within {_START_S:g} s")
            time.sleep(0.05)
        on_progress(f"deploying {models} models")
        loader = partial(_load, load_ms)
        slo, profile = f"{slo_ms}ms", (_ALPHA_MS, _BETA_MS)
        served = [serving.deploy(f"m{i}", loader, slo=slo, profile=profile, memory=_MEMORY) for i in range(models)]
        arrivals = poisson(rate_hz, seconds, seed=1)
        choices = assign(len(arrivals), POPULARITIES["zipf"](models), seed=1)
        before = serving.status()
        on_progress(f"offering {len(arrivals)} requests in {seconds:g} s")
        loaded = load_generator.offer(serving, served, arrivals, choices)
        after = serving.status()
    loads, evictions = (after[what] - before[what] for what in ("loads", "evictions"))
    most = max(slot["memory_bytes"] for worker in after["workers"].values() for slot in worker["health"])
    return {
        "label": "live; execution and loads emulated",
        "models": models,
        "gpus": gpus,
        "room": room,
        "load_ms": load_ms,
        "slo_ms": slo_ms,
        "seconds": seconds,
        **loaded.to_dict(),
        "loads": loads,
        "evictions": evictions,
        "loads_per_request": loads / len(arrivals),
        "loading_share": loads * load_ms / 1000 / seconds / gpus,
        "most_memory_share": most / (room * _MEMORY),
    }


def _load(load_ms: float) -> Emulated:
    time.sleep(load_ms / 1000)
    return Emulated(_ALPHA_MS, _BETA_MS)
