"""Profiles and serves ResNet-50, a plain torch module, by the real stack on one device: ``symphony bench gpu``.

On a CUDA device if there is one, else on the CPU, and the result says which. Where l(1) leaves no room for the SLO that
was asked for, as on a CPU, the SLO is raised to SLACK times l(1), and the result says so too.
"""

from __future__ import annotations

from collections.abc import Callable
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from distributed import Client

from symphony_dask.client.serving import Serving
from symphony_dask.errors import BadInput
from symphony_dask.trace import open_run
from symphony_dask.units import NS_PER_MS, format_duration
from workloads.bench.fidelity import ATTAINMENT, highest_rate
from workloads.compare.bound import BoundModel, goodput_bound
from workloads.live import load_generator
from workloads.live.local_cluster import ProcessCluster
from workloads.traces.synthetic_arrivals import poisson

#: The SLO is at least so many times l(1).
SLACK = 4.0

#: Runs of the search are so long that they have so many requests, however slow the device.
LEAST = 50

#: How many images are answered both in batches and alone, and by how much an entry of the logits may differ, relative
#: to the largest: kernels sum in another order for other batch sizes.
COMPARED, TOLERANCE = 64, 1e-3


def bench_gpu(
    *,
    slo_ms: float = 25.0,
    seconds: float = 5.0,
    max_batch: int = 64,
    on_progress: Callable[[str], None] = lambda s: None,
) -> dict[str, Any]:
    """Profile, answers in batches against answers alone, and goodput against the bound.

    seconds: length of each run of the search. Raises ``BadInput`` on figures that are not above 0.
    """
    if not (slo_ms > 0 and seconds > 0 and max_batch > 0):
        raise BadInput(f"slo={slo_ms} ms, seconds={seconds}, max_batch={max_batch}: all must be above 0")
    from workloads.live.resnet import SHAPE, resnet50

    images = np.random.default_rng(0).integers(0, 256, (COMPARED, *SHAPE), np.uint8)
    with ProcessCluster(1, threads=None) as cluster, Client(cluster.address) as client, Serving(client) as serving:
        device = client.submit(_device).result()
        on_progress(f"device: {device}; profiling")
        probe = serving.deploy("probe", resnet50, slo="60s", example=images[0], max_batch=max_batch)
        ((gpu_class, profile),) = probe.profiles.items()
        latency = profile.latency_ns() / NS_PER_MS
        serves_ms = max(slo_ms, SLACK * float(latency[1]))
        on_progress("answers in batches and alone")
        together = np.stack([future.result() for future in probe.map(list(images))])
        alone = np.stack([probe(image) for image in images])
        difference = float(np.abs(together - alone).max() / np.abs(alone).max())
        serving.undeploy("probe")

        slo_ns = round(serves_ms * NS_PER_MS)
        model = serving.deploy("resnet50", resnet50, slo=format_duration(slo_ns), profile=profile, example=images[0])
        bound_hz = goodput_bound([BoundModel(profile, slo_ns, 1.0)], 1).bound_hz

        best: dict[str, Any] = {}

        def good(rate_hz: float) -> float:
            arrivals = poisson(rate_hz, max(seconds, LEAST / rate_hz), seed=0)
            choices = np.zeros(len(arrivals), np.int32)
            with TemporaryDirectory(prefix="symphony-gpu-") as folder:
                serving.record(f"{folder}/run")
                loaded = load_generator.offer(serving, [model], arrivals, choices, samples=[images[0]])
                serving.stop_recording()
                summary = open_run(f"{folder}/run").summary()
            share = float(loaded.ok.mean())
            on_progress(f"{rate_hz:,.1f} req/s, {share:.2%} good")
            if share >= ATTAINMENT and rate_hz > best.get("rate_hz", 0.0):
                best.update(
                    rate_hz=rate_hz,
                    attainment=share,
                    mean_batch=summary.mean_batch,
                    gpu_busy=summary.busy_gpus,
                    p50_ms=summary.p50_ms,
                    p99_ms=summary.p99_ms,
                )
            return share

        good(bound_hz / 4)
        goodput_hz = highest_rate(good, bound_hz, ATTAINMENT)
    return {
        "label": f"measured: real torch model on {device}, everything real",
        "device": device,
        "gpu_class": gpu_class,
        "torch": _torch_version(),
        "slo_ms": serves_ms,
        "slo_asked_ms": slo_ms,
        "profile_ms": [[int(b), float(ms)] for b, ms in profile.table or ()],
        "alpha_ms": profile.alpha_ms,
        "beta_ms": profile.beta_ms,
        "compared": COMPARED,
        "largest_difference": difference,
        "equal": difference <= TOLERANCE,
        "bound_hz": bound_hz,
        "goodput_hz": goodput_hz,
        "of_bound": goodput_hz / bound_hz if bound_hz else None,
        **{key: best.get(key) for key in ("attainment", "mean_batch", "gpu_busy", "p50_ms", "p99_ms")},
    }


def _device() -> str:
    import platform

    import torch

    if torch.cuda.is_available():
        return str(torch.cuda.get_device_name())
    return f"CPU ({platform.processor() or platform.machine()}, {torch.get_num_threads()} threads)"


def _torch_version() -> str:
    import torch

    return str(torch.__version__)
