"""Describes what a simulation gives back, whichever scheduler was simulated."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from symphony_dask.engine.batching import AS_ALL, Batching
from symphony_dask.engine.latency_profile import LONGEST_NS, LatencyProfile
from symphony_dask.errors import BadInput
from symphony_dask.trace.schema import Outcome
from symphony_dask.units import NS_PER_S

#: Arrivals are up to here, ns: those that count from 1970 until 2043.
LATEST_ARRIVAL_NS = 1 << 61

#: A trace that is looked at step by step is so long at most, ns: somewhat over two years.
LONGEST_TRACE_NS = 1 << 56


@dataclass(frozen=True)
class SimModel:
    """A model as simulations take it.

    profile: l(b) on every GPU class that ``profiles`` does not name; profiles: l(b) by class.
    batching: how its batches are formed, where that is not as the simulation's policy says. Baselines do not know it.
    """

    name: str
    profile: LatencyProfile
    slo_ns: int
    profiles: Mapping[str, LatencyProfile] = field(default_factory=dict, hash=False)
    batching: Batching = AS_ALL

    def profile_on(self, gpu_class: str) -> LatencyProfile:
        return self.profiles.get(gpu_class, self.profile)


def check_times(arrivals_ns: npt.NDArray[np.int64], slos_ns: npt.NDArray[np.int64]) -> None:
    """Raise ``BadInput`` for arrivals, in order, or SLOs that 64 bits have no room for with what is added to them."""
    if len(arrivals_ns) and (int(arrivals_ns[0]) < 0 or int(arrivals_ns[-1]) > LATEST_ARRIVAL_NS):
        text = f"arrivals run from {arrivals_ns[0]} to {arrivals_ns[-1]} ns"
        raise BadInput(f"{text}: they must be from 0 to {LATEST_ARRIVAL_NS}; shift them, or mend the trace")
    if len(slos_ns) and int(slos_ns.max()) > LONGEST_NS:
        raise BadInput(f"an SLO is {slos_ns.max()} ns: the longest is {LONGEST_NS}; mend it, or the trace's deadlines")


def check_length(arrivals_ns: npt.NDArray[np.int64]) -> None:
    """Raise ``BadInput`` where arrivals, in order, span more than can be looked at step by step."""
    if len(arrivals_ns) and int(arrivals_ns[-1]) - int(arrivals_ns[0]) > LONGEST_TRACE_NS:
        text = f"arrivals run from {arrivals_ns[0]} to {arrivals_ns[-1]} ns"
        raise BadInput(f"{text}, which is more than two years: cut the trace, or mend it")


@dataclass(frozen=True)
class Simulated:
    """Outcomes of n requests and the batches that served them. All figures are simulated.

    outcome: (n,) int8, codes of ``trace.Outcome``.
    finish_ns: (n,) int64, when the request's batch ended, -1 if it was never run.
    batch_gpu, batch_model, batch_size: (k,) int32; batch_start_ns, batch_end_ns: (k,) int64, in order of dispatch.
    gpus: how many GPUs there were, those that were there for a part of the time included.
    span_ns: first arrival to the last of arrivals and batch ends.
    """

    outcome: npt.NDArray[np.int8]
    finish_ns: npt.NDArray[np.int64]
    batch_gpu: npt.NDArray[np.int32]
    batch_model: npt.NDArray[np.int32]
    batch_size: npt.NDArray[np.int32]
    batch_start_ns: npt.NDArray[np.int64]
    batch_end_ns: npt.NDArray[np.int64]
    gpus: int
    span_ns: int

    def count(self, outcome: Outcome) -> int:
        return int((self.outcome == outcome).sum())

    @property
    def attainment(self) -> float:
        """Share of requests that ended within their SLO."""
        return self.count(Outcome.OK) / len(self.outcome)

    @property
    def goodput_hz(self) -> float:
        return self.count(Outcome.OK) * NS_PER_S / self.span_ns

    @property
    def mean_batch(self) -> float:
        return float(self.batch_size.mean()) if len(self.batch_size) else 0.0

    @property
    def gpu_seconds(self) -> float:
        """Time that GPUs were busy, in all, s."""
        return float((self.batch_end_ns - self.batch_start_ns).sum()) / NS_PER_S

    @property
    def busy_gpus(self) -> float:
        """GPUs busy on average."""
        return self.gpu_seconds * NS_PER_S / self.span_ns

    def to_dict(self) -> dict[str, Any]:
        """The keys that ``symphony simulate --json`` prints, but for ``simulated_hz``."""
        kinds = (Outcome.OK, Outcome.LATE, Outcome.DROPPED, Outcome.REJECTED, Outcome.CANCELLED)
        return {
            "requests": len(self.outcome),
            **{kind.name.lower(): self.count(kind) for kind in kinds},
            "attainment": self.attainment,
            "goodput_hz": self.goodput_hz,
            "mean_batch": self.mean_batch,
            "busy_gpus": self.busy_gpus,
            "gpu_seconds": self.gpu_seconds,
        }
