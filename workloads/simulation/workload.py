"""Reads what a trace asks of a scheduler: models with profile and SLO, arrivals and deadlines."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from symphony_dask.engine.latency_profile import LatencyProfile
from symphony_dask.errors import BadInput
from symphony_dask.trace import Names, arrival_chunks, count_requests, open_run
from symphony_dask.trace.folder import is_file, place
from symphony_dask.trace.ordered import taken
from symphony_dask.units import NS_PER_MS
from workloads.simulation.result import SimModel
from workloads.traces.zoo import ZOO

#: What a trace that knows neither is served as: ResNet-50 within 50 ms.
DEFAULT_PROFILE = ZOO["resnet50"].profile
DEFAULT_SLO_NS = 50 * NS_PER_MS

_UNKNOWN = np.iinfo(np.int64).max


@dataclass(frozen=True)
class Workload:
    """Request i of ``models[choices[i]]`` arrives at ``arrivals_ns[i]`` and has ``slos_ns[i]``; all of shape (n,)."""

    models: Sequence[SimModel]
    arrivals_ns: npt.NDArray[np.int64]
    choices: npt.NDArray[np.int32]
    slos_ns: npt.NDArray[np.int64]


def read_workload(
    path: str | os.PathLike[str],
    profile: LatencyProfile | None = None,
    slo_ns: int | None = None,
    profiles: Mapping[str, LatencyProfile] | None = None,
) -> Workload:
    """The workload in ``path``, a run folder or a Parquet file as ``trace.arrival_chunks`` takes them.

    profile, slo_ns: of every model. Without them a recorded run's own are used; else a request's SLO is its deadline
        less its arrival, a model's the least of its requests', and what is still unknown is ``DEFAULT_PROFILE`` and
        ``DEFAULT_SLO_NS``. A model that has several profiles is given all by GPU class, and the first elsewhere.
    profiles: by GPU class, of every model there; before those of the run.

    Raises ``BadInput`` if the path cannot be read or holds no requests.
    """
    described = [] if is_file(place(path)) else open_run(path).info.get("models", [])
    info: dict[str, dict[str, Any]] = {model["name"]: model for model in described}
    names = Names()
    n = count_requests(path)
    # Filled chunk by chunk: 20 bytes a request is all that a trace takes in memory.
    arrivals_ns, choices, slos_ns = np.empty(n, np.int64), np.empty(n, np.int32), np.empty(n, np.int64)
    least_ns = np.empty(0, np.int64)
    done = 0
    for rows in arrival_chunks(path, names, ["model", "arrival_ns", "deadline_ns"]):
        rows = taken(rows, slice(0, n - done))  # a run that goes on has grown since
        here = slice(done, done + len(rows["model"]))
        arrivals_ns[here], choices[here] = rows["arrival_ns"], rows["model"]
        slos_ns[here] = rows["deadline_ns"] - rows["arrival_ns"] if slo_ns is None else slo_ns
        least_ns = np.append(least_ns, np.full(len(names) - len(least_ns), _UNKNOWN))
        known_slo = slos_ns[here] > 0
        np.minimum.at(least_ns, rows["model"][known_slo], slos_ns[here][known_slo])
        done = here.stop
    if not done:
        raise BadInput(f"{str(path)!r} holds no requests")

    models = []
    for m, name in enumerate(names.names):
        served = info.get(name, {})
        own = {} if profile else {c: LatencyProfile.from_dict(d) for c, d in served.get("profiles", {}).items()}
        known = int(least_ns[m]) if least_ns[m] < _UNKNOWN else DEFAULT_SLO_NS
        model_slo_ns = slo_ns or served.get("slo_ns", known)
        first = next(iter(own.values()), DEFAULT_PROFILE)
        models.append(SimModel(name, profile or first, model_slo_ns, {**own, **(profiles or {})}))
    unknown = slos_ns <= 0
    slos_ns[unknown] = np.array([model.slo_ns for model in models])[choices[unknown]]
    return Workload(models, arrivals_ns[:done], choices[:done], slos_ns[:done])
