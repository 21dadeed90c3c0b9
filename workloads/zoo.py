"""Published latency profiles with their sources, and popularity mixes of several models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from symphony_dask.errors import BadInput
from symphony_dask.scheduling.profile import LatencyProfile
from symphony_dask.units import NS_PER_MS

_SYMPHONY = "Symphony: Optimized DNN Model Serving using Deferred Batch Scheduling, arXiv 2308.07470"


@dataclass(frozen=True)
class ZooEntry:
    """A model on a GPU class as somebody published it.

    profile: l(b) for one GPU of ``gpu_class``.
    slo_ns: latency objective that goes with it in the source's experiments, in ns.
    source: where the figures come from.
    """

    name: str
    gpu_class: str
    profile: LatencyProfile
    slo_ns: int
    source: str


_ENTRIES = (
    ZooEntry("resnet50", "gtx-1080ti", LatencyProfile(1.053, 5.072), 25 * NS_PER_MS, _SYMPHONY),
    ZooEntry("resnet50-variant", "gtx-1080ti", LatencyProfile(1.082, 5.204), 100 * NS_PER_MS, _SYMPHONY),
    ZooEntry("inception-resnet-v2", "gtx-1080ti", LatencyProfile(5.090, 18.368), 70 * NS_PER_MS, _SYMPHONY),
)

#: Entries by name. The project's notes and benchmarks call "resnet50" L2 and "resnet50-variant" L1.
ZOO = {entry.name: entry for entry in _ENTRIES}


def parse_profile(text: str) -> LatencyProfile:
    """The profile of that name, or the one written "alpha,beta" in ms; raises ``BadInput``."""
    if text in ZOO:
        return ZOO[text].profile
    try:
        return LatencyProfile.parse(text)
    except ValueError as error:
        raise BadInput(f"{error}, or a name: {', '.join(ZOO)}") from None


def equal(m: int) -> list[float]:
    """Shares of ``m`` models that are equally popular; they sum to 1. Raises ``BadInput`` when m < 1."""
    return zipf(m, exponent=0.0)


def zipf(m: int, exponent: float = 0.9) -> list[float]:
    """Shares of ``m`` models where the k-th most popular weighs k**-exponent; they sum to 1 and do not rise.

    Raises ``BadInput`` when m < 1 or the exponent is negative or not finite.
    """
    if m < 1:
        raise BadInput(f"{m} models cannot share a workload: give at least 1")
    if not 0 <= exponent < np.inf:
        raise BadInput(f"Zipf exponent {exponent}: it must be a finite number of at least 0")
    weights = np.arange(1, m + 1, dtype=float) ** -exponent
    return [float(share) for share in weights / weights.sum()]


#: How the models of a mix share the load, by name: a function from their number to their shares.
POPULARITIES = {"equal": equal, "zipf": zipf}


def checked_shares(shares: Sequence[float]) -> npt.NDArray[np.float64]:
    """``shares`` as an array of shape (models,).

    Raises ``BadInput`` unless there is at least one, none is negative, and they sum to 1 within 1e-6.
    """
    array = np.asarray(shares, dtype=float)
    if array.ndim != 1 or array.size == 0:
        raise BadInput(f"shares {shares!r}: give a flat sequence with one number a model")
    if not (np.isfinite(array).all() and (array >= 0).all()):
        raise BadInput(f"shares {shares!r}: each must be a number of at least 0")
    if abs(array.sum() - 1) > 1e-6:
        raise BadInput(f"shares sum to {array.sum():g}: divide them by their sum, so that they sum to 1")
    return array
