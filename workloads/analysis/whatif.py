"""Simulates a run or trace once more with something changed, beside what was."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl

from autoscale.providers.prices import Prices
from symphony_dask.engine.engine import POLICIES
from symphony_dask.engine.latency_profile import LatencyProfile
from symphony_dask.errors import BadInput
from symphony_dask.trace import Run, open_run
from symphony_dask.trace.folder import is_file, place
from symphony_dask.units import NS_PER_MS, NS_PER_S
from workloads.analysis.causes import label
from workloads.analysis.gpu_presence import presence_intervals
from workloads.analysis.plan import scaled
from workloads.compare.policies import scheduler
from workloads.simulation.fleet import GPU, GpuGroup, Gpus, groups
from workloads.simulation.result import Simulated
from workloads.simulation.workload import Workload, read_workload


def whatif(
    path: str | os.PathLike[str],
    prices: Prices,
    *,
    policy: str | None = None,
    gpus: Gpus | None = None,
    slo_ns: int | None = None,
    scale: float = 1.0,
    profile: LatencyProfile | None = None,
    profiles: dict[str, LatencyProfile] | None = None,
) -> list[dict[str, Any]]:
    """Rows "as it was" (as recorded; served runs only), "simulated as it was" and "what if".

    policy, gpus, slo_ns, scale (of the rate), profile, profiles (by GPU class): what is changed; the others are the
    run's. A number of GPUs is of the run's only class. A trace that was not served has the last row alone, and needs
    gpus. The second row tells what of the difference is the simulation's own; it is missing where the run's policy or
    GPUs are not known to the simulator.

    Keys of a row: name, label, policy, gpus (by class), requests, attainment, goodput_hz, p50_ms, p99_ms, mean_batch,
    busy_gpus, usd_per_hour (whole instances; None without a price).

    Raises ``BadInput`` when there are no GPUs to simulate, or one of their classes has no profile.
    """
    run = None if is_file(place(path)) else open_run(path)
    served = run is not None and run.requests.select(pl.col("outcome").is_not_null().any()).collect().item()
    was = fleet_of(run) if run is not None and served else []
    rows = []
    if run is not None and served:
        rows.append(_recorded(run, was, prices))
        own = str(run.info.get("policy"))
        if was and own in POLICIES:
            work = read_workload(path)
            _require_profiles(work, was)
            rows.append(_simulated("simulated as it was", work, own, was, prices))
    else:
        own = "adaptive"
    if isinstance(gpus, int) and len({group.gpu_class for group in was}) == 1:
        gpus = [GpuGroup(was[0].gpu_class, gpus)]
    fleet = groups(was if gpus is None else gpus)
    if not sum(group.number for group in fleet):
        raise BadInput(
            f"{os.fspath(path)!r} does not say which GPUs served it: give --gpus, such as 4 or 4xfast,8xslow"
        )
    work = scaled(read_workload(path, profile, slo_ns, profiles), scale)
    if profile is None and any(group.gpu_class != GPU for group in fleet):
        _require_profiles(work, fleet)
    if policy is None and own not in POLICIES:
        raise BadInput(f"the policy {own!r} of this run is not known: give --policy, one of {', '.join(POLICIES)}")
    rows.append(_simulated("what if", work, policy or own, fleet, prices))
    return rows


def fleet_of(run: Run) -> list[GpuGroup]:
    """The GPUs of ``run`` by class, those that fill first named first; all that were ever ready count."""
    by_class = (
        presence_intervals(run)
        .with_columns(pl.col("gpu_class").fill_null(GPU))
        .group_by("gpu_class")
        .agg(pl.col("gpu").n_unique().alias("n"), pl.col("rank").min())
        .sort("rank", "gpu_class")
    )
    return [GpuGroup(name, n) for name, n in by_class.select("gpu_class", "n").iter_rows()]


def _require_profiles(work: Workload, fleet: Sequence[GpuGroup]) -> None:
    for group in fleet:
        for model in work.models:
            if group.number and group.gpu_class not in model.profiles and group.gpu_class != GPU:
                raise BadInput(
                    f"model {model.name!r} has no profile on GPU class {group.gpu_class!r}: give --profile "
                    f"{group.gpu_class}=ALPHA,BETA"
                )


def _usd_per_hour(fleet: Sequence[GpuGroup], prices: Prices) -> float | None:
    total = 0.0
    for group in fleet:
        rented = prices.find(group.gpu_class)
        if rented is None:
            return None
        total += rented.cost(group.number)
    return total


def _recorded(run: Run, fleet: Sequence[GpuGroup], prices: Prices) -> dict[str, Any]:
    s = run.summary().to_dict()
    figures = ("requests", "attainment", "goodput_hz", "p50_ms", "p99_ms", "mean_batch", "busy_gpus")
    return {
        "name": "as it was",
        "label": label(run),
        "policy": run.info.get("policy"),
        "gpus": {group.gpu_class: group.number for group in fleet},
        **{name: s[name] for name in figures},
        "usd_per_hour": _usd_per_hour(fleet, prices) if fleet else None,
    }


def _simulated(name: str, work: Workload, policy: str, fleet: Sequence[GpuGroup], prices: Prices) -> dict[str, Any]:
    simulate = scheduler(policy, slos_ns=work.slos_ns)
    result: Simulated = simulate(work.models, fleet, work.arrivals_ns, work.choices)
    ran = result.finish_ns >= 0
    latency_ms = (result.finish_ns - work.arrivals_ns)[ran] / NS_PER_MS
    p50, p99 = (float(q) for q in np.quantile(latency_ms, (0.5, 0.99))) if len(latency_ms) else (None, None)
    span_s = result.span_ns / NS_PER_S
    return {
        "name": name,
        "label": "simulated",
        "policy": policy,
        "gpus": {group.gpu_class: group.number for group in fleet},
        "requests": len(result.outcome),
        "attainment": result.attainment,
        "goodput_hz": result.goodput_hz,
        "p50_ms": p50,
        "p99_ms": p99,
        "mean_batch": result.mean_batch,
        "busy_gpus": result.gpu_seconds / span_s,
        "usd_per_hour": _usd_per_hour(fleet, prices),
    }
