"""Replays a trace or a run, on a live cluster or simulated, and writes a run: ``symphony replay``."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from symphony_dask.backends import Emulated
from symphony_dask.cli.scheduler_check import connected
from symphony_dask.errors import BadInput
from symphony_dask.trace import open_run, read_trace
from symphony_dask.units import format_duration, parse_duration_ns
from workloads.live import load_generator
from workloads.live.recording import recorded
from workloads.live.replay import choose_models, parse_model, scaled
from workloads.simulation.result import SimModel
from workloads.simulation.workload import Workload, read_workload


def replay_live(
    path: str,
    scheduler: str,
    *,
    model_text: Sequence[str] = (),
    speed: float = 1.0,
    slo: str | None = None,
    policy: str | None = None,
    gpus: int | None = None,
    payload: str | None = None,
    folder: str | None = None,
) -> dict[str, Any]:
    """Offer the trace to a cluster whose GPUs are emulated; returns what became of it, as the generator saw it.

    Raises ``BadInput``, and what deploying and recording raise.
    """
    if gpus is not None:
        raise BadInput(f"--gpus {gpus} is for --simulate: a live cluster has the GPUs of its workers")
    work = _workload(path, model_text, speed, slo)
    sizes = _sizes(path, work, payload)
    run = _run_folder(folder)
    with connected(scheduler, install=True) as serving:
        before = serving.status()["policy"]
        if policy is not None:
            serving.set_policy(policy)
        models = []
        try:
            for m in work.models:
                emulated = Emulated(m.profile.alpha_ms, m.profile.beta_ms)
                models.append(serving.deploy(m.name, emulated, slo=format_duration(m.slo_ns)))
            with recorded(serving, run, label="emulated GPUs, everything else real", trace=str(path), speed=speed):
                samples = [bytes(size) for size in sizes] if sizes is not None else None
                result = load_generator.offer(
                    serving, models, work.arrivals_ns, work.choices, samples=samples
                ).to_dict()
        finally:
            for model in models:
                serving.undeploy(model.name)
            serving.set_policy(before)
    return {**result, "label": "live, emulated GPUs", "run": str(run)}


def replay_simulated(
    path: str,
    *,
    model_text: Sequence[str] = (),
    speed: float = 1.0,
    slo: str | None = None,
    policy: str | None = None,
    gpus: int | None = None,
    payload: str | None = None,
    folder: str | None = None,
) -> dict[str, Any]:
    """Serve the trace by the engine under a virtual clock; returns what became of it. Raises ``BadInput``."""
    from workloads.compare.policies import compile_policies, scheduler
    from workloads.simulation.record import record
    from workloads.simulation.simulate import SimulatedRun

    if payload is not None:
        raise BadInput("--payload is for a live replay: simulated requests carry none")
    work = _workload(path, model_text, speed, slo)
    recorded = open_run(path).info if Path(path).is_dir() else {}
    chosen = policy or str(recorded.get("policy", "adaptive"))
    count = gpus if gpus is not None else _gpus(path)
    compile_policies([chosen])
    result = scheduler(chosen, slos_ns=work.slos_ns)(work.models, count, work.arrivals_ns, work.choices)
    if not isinstance(result, SimulatedRun):
        raise BadInput(f"policy {chosen!r} is a baseline, which keeps no tables: symphony simulate takes it")
    run = _run_folder(folder)
    record(result, run, trace=str(path), speed=speed)
    found = {**result.to_dict(), "label": "simulated", "run": str(run)}
    return {"policy": chosen, "gpus": count, "lateness_p99_ms": 0.0, **found}


def _run_folder(folder: str | None) -> Path:
    return Path(folder or f"symphony-runs/replay-{time.strftime('%Y%m%d-%H%M%S')}").absolute()


def _workload(path: str, model_text: Sequence[str], speed: float, slo: str | None) -> Workload:
    """What the trace asks for, ``speed`` times as fast, of the models given or of its own."""
    slo_ns = None if slo is None else parse_duration_ns(slo, "slo")
    work = read_workload(path, slo_ns=slo_ns)
    work = replace(work, arrivals_ns=scaled(work.arrivals_ns, speed))
    described = open_run(path).info.get("models") if Path(path).is_dir() else None
    if not model_text and described:
        return work
    given = [parse_model(text) for text in model_text or ("resnet50=1.053,5.072@50ms",)]
    models = [SimModel(name, e.profile(), slo_ns or parse_duration_ns(own, "slo")) for name, e, own in given]
    names = [work.models[c].name for c in work.choices.tolist()]
    choices = choose_models({m.name: i for i, m in enumerate(models)}, names, len(models))
    return Workload(models, work.arrivals_ns, choices, np.array([m.slo_ns for m in models])[choices])


def _gpus(path: str) -> int:
    """How many GPUs the run had at most; 1 where it does not say."""
    if not Path(path).is_dir():
        return 1
    count = open_run(path).gpus.select(pl.col("gpu").n_unique()).collect().item()
    return int(count) or 1


def _sizes(path: str, work: Workload, payload: str | None) -> list[int] | None:
    """Bytes of a sample of each model; None: as small as can be."""
    if payload is None:
        return None
    if payload != "trace":
        try:
            size = int(payload)
        except ValueError:
            size = -1
        if size < 0:
            raise BadInput(f"payload {payload!r}: give a number of bytes, or 'trace'")
        return [size] * len(work.models)
    sizes = read_trace(path)["bytes"].to_numpy()
    return [
        int(np.median(sizes[work.choices == m])) if (work.choices == m).any() else 0 for m in range(len(work.models))
    ]
