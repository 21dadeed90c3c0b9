"""Lists published latency profiles with their sources, and popularity mixes of several models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from symphony_dask.engine.latency_profile import LatencyProfile
from symphony_dask.errors import BadInput
from symphony_dask.units import NS_PER_MS

_SYMPHONY = "Symphony: Optimized DNN Model Serving using Deferred Batch Scheduling, arXiv 2308.07470"
_EXAMPLE = (
    'Example of Symphony\'s authors, "framework: sleep#1082,5204,0,0" with "slo: 100": abcdabcd987/nexuslb at '
    "e97092b, tools/bench_dispatcher/run_rankmt_example.yaml"
)
_CLOCKWORK = (
    "Clockwork's resnet50_v2 (OSDI 2020, on V100, within 100 ms), as ERDOS repeats it: erdos-project/"
    "erdos-scheduling-simulator at 15c2224, profiles/workload/clockwork_resnet50_microbenchmark.yaml"
)
_TRITON_RESNET50 = (
    'NVIDIA/DeepLearningExamples at 49e23b4, PyTorch/Classification/ConvNets/triton/resnet50/README.md, "Offline: {}, '
    'ONNX Runtime TensorRT with FP16", column Avg Latency: seen by a local client, one batch at a time'
)
_TRITON_BERT = (
    'NVIDIA/DeepLearningExamples at 115867b, PyTorch/LanguageModeling/BERT/triton/large/README.md, "Offline: {}, '
    'NVIDIA TensorRT with FP16", sequences of 384, column avg latency: seen by a local client, one batch at a time'
)
_A100, _V100 = "NVIDIA DGX A100 (1x A100 80GB)", "NVIDIA DGX-1 (1x V100 32GB)"


@dataclass(frozen=True)
class ZooEntry:
    """A model on a GPU class as somebody published it.

    profile: l(b) for one GPU of ``gpu_class``.
    slo_ns: latency objective that goes with it in the source's experiments, in ns. NVIDIA's tables have none: there it
        is twice l(16), our choice.
    source: where the figures come from.
    """

    name: str
    gpu_class: str
    profile: LatencyProfile
    slo_ns: int
    source: str


def _measured(*rows: tuple[int, float]) -> LatencyProfile:
    """A published table of (batch size, ms), which goes on, by one size at most, as its last two rows do."""
    (b, t), (last, end) = rows[-2:]
    slope = (end - t) / (last - b)
    return LatencyProfile(slope, max(0.0, end - slope * last), last, rows)


_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)


def _resnet50(gpu_class: str, gpu: str, *ms: float) -> ZooEntry:
    profile = _measured(*zip(_SIZES, ms, strict=True))
    slo_ns = round(2 * ms[_SIZES.index(16)] * NS_PER_MS)
    return ZooEntry(f"resnet50-trt-{gpu_class}", gpu_class, profile, slo_ns, _TRITON_RESNET50.format(gpu))


def _bert_large(gpu_class: str, gpu: str, *ms: float) -> ZooEntry:
    profile = _measured(*zip((1, 8, 16), ms, strict=True))
    slo_ns = round(2 * ms[-1] * NS_PER_MS)
    return ZooEntry(f"bert-large-trt-{gpu_class}", gpu_class, profile, slo_ns, _TRITON_BERT.format(gpu))


_ENTRIES = (
    ZooEntry("resnet50", "gtx-1080ti", LatencyProfile(1.053, 5.072), 25 * NS_PER_MS, _SYMPHONY),
    ZooEntry("resnet50-variant", "gtx-1080ti", LatencyProfile(1.082, 5.204), 100 * NS_PER_MS, _EXAMPLE),
    ZooEntry("inception-resnet-v2", "gtx-1080ti", LatencyProfile(5.090, 18.368), 70 * NS_PER_MS, _SYMPHONY),
    ZooEntry(
        "resnet50-clockwork",
        "v100",
        _measured((1, 3.322), (2, 5.271), (4, 7.495), (8, 12.439), (16, 21.729)),
        100 * NS_PER_MS,
        _CLOCKWORK,
    ),
    _resnet50("a40", "NVIDIA A40", 2.031, 2.459, 3.652, 5.078, 9.678, 15.451, 36.147, 67.889),
    _resnet50("a100", _A100, 2.128, 2.194, 2.759, 3.895, 5.793, 11.193, 25.244, 48.086),
    _resnet50("v100", _V100, 2.838, 3.350, 4.191, 5.979, 9.266, 15.664, 38.412, 82.159),
    _resnet50("t4", "NVIDIA T4", 3.003, 3.998, 5.747, 8.998, 15.113, 28.353, 53.187, 100.155),
    _bert_large("a30", "NVIDIA A30", 5.8, 31.6, 63.1),
    _bert_large("a100", _A100, 3.6, 15.4, 29.4),
    _bert_large("v100", _V100, 8.0, 38.3, 70.7),
    _bert_large("t4", "NVIDIA T4", 14.4, 114.5, 218.8),
)

#: Entries by name. The project's notes and benchmarks call "resnet50" L2 and "resnet50-variant" L1.
ZOO = {entry.name: entry for entry in _ENTRIES}


def by_class(family: str) -> dict[str, LatencyProfile]:
    """Profiles of one model by GPU class: of all entries called "FAMILY-CLASS", such as family "resnet50-trt".

    Raises ``BadInput`` when there are none.
    """
    found = {entry.gpu_class: entry.profile for entry in _ENTRIES if entry.name == f"{family}-{entry.gpu_class}"}
    if not found:
        families = sorted({e.name.removesuffix(f"-{e.gpu_class}") for e in _ENTRIES if e.name.endswith(e.gpu_class)})
        raise BadInput(f"the zoo has no profiles of {family!r} by GPU class: choose one of {', '.join(families)}")
    return found


def parse_profile(text: str) -> LatencyProfile:
    """The profile of that name, or the one written "alpha,beta" in ms; raises ``BadInput``."""
    if text in ZOO:
        return ZOO[text].profile
    try:
        return LatencyProfile.parse(text)
    except ValueError as error:
        raise BadInput(f"{error}, or a name: {', '.join(ZOO)}") from None


def parse_profiles(texts: Sequence[str]) -> tuple[LatencyProfile | None, dict[str, LatencyProfile]]:
    """The one profile written without a class, if any, and those written "CLASS=PROFILE"; raises ``BadInput``."""
    profile, by_class = None, {}
    for text in texts:
        name, named, rest = text.rpartition("=")
        if named:
            by_class[name] = parse_profile(rest)
        elif profile is not None:
            raise BadInput(f"--profile {text}: one is given already; write NAME={text} for one of several GPU classes")
        else:
            profile = parse_profile(text)
    return profile, by_class


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
