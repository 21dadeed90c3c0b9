"""What a trace asks of a scheduler: models with profile and SLO, arrivals and deadlines."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from symphony_dask.errors import BadInput
from symphony_dask.scheduling.profile import LatencyProfile
from symphony_dask.trace import open_run, read_trace
from symphony_dask.units import NS_PER_MS
from workloads.simulated import SimModel
from workloads.zoo import ZOO

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
    """The workload in ``path``, a run folder or a Parquet file as ``trace.read_trace`` takes them.

    profile, slo_ns: of every model. Without them a recorded run's own are used; else a request's SLO is its deadline
        less its arrival, a model's the least of its requests', and what is still unknown is ``DEFAULT_PROFILE`` and
        ``DEFAULT_SLO_NS``. A model that has several profiles is given all by GPU class, and the first elsewhere.
    profiles: by GPU class, of every model there; before those of the run.

    Raises ``BadInput`` if the path cannot be read or holds no requests.
    """
    frame = read_trace(path)
    if not frame.height:
        raise BadInput(f"{str(path)!r} holds no requests")
    described = open_run(path).info.get("models", []) if Path(path).is_dir() else []
    info: dict[str, dict[str, Any]] = {model["name"]: model for model in described}
    names = frame["model"].unique(maintain_order=True).to_list()
    choices = frame["model"].cast(pl.Enum(names)).to_physical().to_numpy().astype(np.int32)
    arrivals_ns = frame["arrival_ns"].to_numpy()
    own_ns = frame["deadline_ns"].to_numpy() - arrivals_ns
    if slo_ns is not None:
        own_ns = np.full(len(own_ns), slo_ns)
    least_ns = np.full(len(names), _UNKNOWN)
    np.minimum.at(least_ns, choices[own_ns > 0], own_ns[own_ns > 0])

    models = []
    for m, name in enumerate(names):
        served = info.get(name, {})
        own = {} if profile else {c: LatencyProfile.from_dict(d) for c, d in served.get("profiles", {}).items()}
        known = int(least_ns[m]) if least_ns[m] < _UNKNOWN else DEFAULT_SLO_NS
        model_slo_ns = slo_ns or served.get("slo_ns", known)
        first = next(iter(own.values()), DEFAULT_PROFILE)
        models.append(SimModel(name, profile or first, model_slo_ns, {**own, **(profiles or {})}))
    of_model_ns = np.array([model.slo_ns for model in models])[choices]
    return Workload(models, arrivals_ns, choices, np.where(own_ns > 0, own_ns, of_model_ns))
