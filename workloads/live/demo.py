"""Replays a real trace on a real Dask cluster with emulated GPUs under three policies: ``symphony demo``."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from distributed import Client

from symphony_dask.backends import Emulated
from symphony_dask.client.future import InferenceFuture
from symphony_dask.client.model import Model
from symphony_dask.client.serving import Serving
from symphony_dask.trace import open_run
from symphony_dask.units import NS_PER_S
from workloads.data import bundled_azure_llm
from workloads.live.local_cluster import ProcessCluster
from workloads.live.recording import recorded
from workloads.live.replay import Replayed, replay
from workloads.traces.synthetic_arrivals import assign
from workloads.traces.zoo import ZOO, equal

if TYPE_CHECKING:
    from torch.nn import Module

#: The two extremes, and the default.
POLICIES = ("eager", "deferred", "adaptive")

GPUS = 4

#: The part of the trace that is replayed, s, and how much faster than recorded.
WINDOW_S = (180.0, 2180.0)
SPEED = 80.0

_WARM_UP = 20

Progress = Callable[[str, int, int], None]


def demo(folder: str | Path | None = None, *, torch: bool = False, on_progress: Progress = lambda *a: None) -> Any:
    """Run the trace under each policy; returns for each what the CLI prints (``../shared/cli.md``) and more.

    folder: where the runs are recorded; by default ``symphony-runs/demo-TIME`` here.
    torch: serve a torch network on the CPU, on two workers, and check every answer against the network run alone.
    on_progress: called with policy, requests submitted and requests in all.
    """
    root = Path(folder or f"symphony-runs/demo-{time.strftime('%Y%m%d-%H%M%S')}").absolute()
    arrivals, speed = demo_trace()
    with ProcessCluster(2 if torch else GPUS) as cluster, Client(cluster.address) as client, Serving(client) as serving:
        models, payload, check = _torch_models(serving) if torch else _emulated_models(serving)
        choices = assign(len(arrivals), equal(len(models)), seed=0)
        results = {}
        for policy in POLICIES:
            serving.set_policy(policy)
            _warm_up(models, payload)
            run = root / policy
            label = "measured: torch on the CPU" if torch else "emulated GPUs, everything else real"
            wrong: list[int] = []

            def on_answer(i: int, future: InferenceFuture, wrong: list[int] = wrong) -> None:
                if future.outcome in ("ok", "late") and not check(i, future.result()):
                    wrong.append(i)

            with recorded(serving, run, label=label, trace="azure-llm-2023-code", speed=speed):
                replayed = replay(
                    models,
                    arrivals,
                    choices,
                    payload=payload,
                    speed=speed,
                    on_progress=lambda n, policy=policy: on_progress(policy, n, len(arrivals)),  # type: ignore[misc]
                    on_answer=on_answer,
                )
            results[policy] = _row(run, replayed, label) | {"wrong_answers": len(wrong)}
    return results


def demo_trace() -> tuple[npt.NDArray[np.int64], float]:
    """The arrivals that the demo replays, ns from the first, and the speed."""
    arrivals = bundled_azure_llm()["arrival_ns"].to_numpy()
    start, end = (s * NS_PER_S for s in WINDOW_S)
    part = arrivals[(arrivals >= start) & (arrivals < end)]
    return part - part[0], SPEED


def _warm_up(models: list[Model], payload: Callable[[int], Any]) -> None:
    """Have each model answer one request after another, so that latencies are known before the recording begins."""
    for model in models:
        for i in range(_WARM_UP):
            model.submit(payload(i)).exception(timeout=30)


def _row(run: Path, replayed: Replayed, label: str) -> dict[str, Any]:
    """One policy's figures: from the recorded run, and the client's own view beside them."""
    summary = open_run(run).summary()
    keys = ("offered_hz", "attainment", "goodput_hz", "p50_ms", "p99_ms", "mean_batch", "busy_gpus", "gpus_used")
    figures = {k: getattr(summary, k) for k in keys}
    return {**figures, "run": str(run), "label": label, "client": replayed.to_dict()}


def _emulated_models(serving: Serving) -> tuple[list[Model], Callable[[int], Any], Callable[[int, Any], bool]]:
    """Two models with the latency profiles published for ResNet-50."""
    models = []
    for name, slo in (("resnet50", "60ms"), ("resnet50-variant", "120ms")):
        profile = ZOO[name].profile
        models.append(serving.deploy(name, Emulated(profile.alpha_ms, profile.beta_ms), slo=slo))
    sample = np.zeros(25, np.float32)
    return models, lambda i: sample, lambda i, answer: answer is None


def _torch_models(serving: Serving) -> tuple[list[Model], Callable[[int], Any], Callable[[int, Any], bool]]:
    """A small convolutional network with fixed random weights, profiled on a worker as it is deployed."""
    import torch

    network = torch_network()
    samples = torch.randn(256, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected = [network(x[None])[0].numpy() for x in samples]
    inputs = [x.numpy() for x in samples]
    model = serving.deploy("convnet", network, slo="250ms", example=inputs[0], max_batch=64)

    def check(i: int, answer: Any) -> bool:
        return bool(np.allclose(answer, expected[i % len(expected)], rtol=1e-4, atol=1e-5))

    return [model], lambda i: inputs[i % len(inputs)], check


def torch_network() -> Module:
    """The demo's network: three convolutions and a linear layer, 10 classes, in eval mode."""
    import torch
    from torch import nn

    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(32, 64, 3, padding=1), nn.ReLU()]
    layers += [nn.MaxPool2d(2), nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(64, 10)).eval()
