"""Triton's perf_analyzer, unchanged, against the gateway: what it measures by the server's statistics is what runs.

It comes with the wheel tritonclient 2.41.0, and needs the libraries of nvidia-cuda-runtime-cu12 and Debian's libb64-0d;
``PERF_ANALYZER`` names it where it is not on the PATH.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from symphony_dask.backends.emulated import Emulated
from symphony_dask.client.model import Model
from symphony_dask.client.serving import Serving
from tests.helpers import models
from tests.helpers.cluster import Cluster
from tests.helpers.gateway_process import GatewayProcess

pytest.importorskip("uvicorn")

pytestmark = pytest.mark.slow

Deploy = Callable[..., Model]

CONCURRENCY = ("--concurrency-range", "2")
POISSON = ("--request-rate-range", "40", "--request-distribution", "poisson")


def environment() -> dict[str, str]:
    """With the CUDA runtime of the wheel on the way, if it is installed."""
    found = importlib.util.find_spec("nvidia.cuda_runtime") if importlib.util.find_spec("nvidia") else None
    folders = [str(Path(place) / "lib") for place in (found.submodule_search_locations or [] if found else [])]
    before = os.environ.get("LD_LIBRARY_PATH")
    return {**os.environ, "LD_LIBRARY_PATH": os.pathsep.join([*([before] if before else []), *folders])}


@pytest.fixture(scope="module")
def perf_analyzer() -> str:
    found = os.environ.get("PERF_ANALYZER") or shutil.which("perf_analyzer")
    if found is None:
        pytest.skip("perf_analyzer is not on the PATH: pip install tritonclient==2.41.0, or set PERF_ANALYZER")
    tried = subprocess.run([found, "--version"], capture_output=True, text=True, env=environment())
    if tried.returncode:
        pytest.skip(f"{found} does not run: {tried.stderr.strip() or tried.stdout.strip()}")
    return found


@pytest.fixture(scope="module")
def gateway(cluster: Cluster, serving: Serving) -> Iterator[GatewayProcess]:
    with GatewayProcess(cluster.address) as gateway:
        yield gateway


def measure(perf_analyzer: str, gateway: GatewayProcess, model: str, *arguments: str) -> dict[str, int]:
    """What the report says of the server: inferences, and us of each part of a request."""
    # However unsteady this machine is: what is looked at is not how fast it is.
    steady = ("--stability-percentage", "999", "--measurement-interval", "2000", "--max-trials", "5")
    command = [perf_analyzer, "-m", model, "-u", gateway.host, "-i", "http", *steady, *arguments]
    ran = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=200)
    report = ran.stdout + ran.stderr
    assert ran.returncode == 0, report
    assert "failed" not in report.lower(), report
    found = {name: int(us) for name, us in re.findall(r"(queue|compute \w+|Avg request latency:) (\d+) usec", report)}
    return found | {name: int(n) for name, n in re.findall(r"(Inference count|Request count): (\d+)", report)}


@pytest.mark.parametrize("mode", [CONCURRENCY, POISSON], ids=["concurrency", "poisson"])
def test_the_times_of_an_emulated_model_are_its_profile(
    perf_analyzer: str, gateway: GatewayProcess, deploy: Deploy, mode: tuple[str, ...]
) -> None:
    model = deploy(Emulated(0, 20), example=np.zeros(4, np.float32), max_batch=1)
    found = measure(perf_analyzer, gateway, model.name, *mode)
    assert found["Inference count"] > 0
    assert 20_000 <= found["compute infer"] < 30_000
    assert found["compute input"] == found["compute output"] == 0
    assert found["queue"] + found["compute infer"] <= found["Avg request latency:"]


def test_what_waits_for_a_gpu_is_in_the_queue(perf_analyzer: str, gateway: GatewayProcess, deploy: Deploy) -> None:
    model = deploy(Emulated(0, 20), example=np.zeros(4, np.float32), max_batch=1)
    found = measure(perf_analyzer, gateway, model.name, "--concurrency-range", "6")  # two GPUs: two of six run
    assert 20_000 <= found["compute infer"] < 30_000
    assert found["queue"] > 25_000


@pytest.mark.parametrize("mode", [CONCURRENCY, POISSON], ids=["concurrency", "poisson"])
def test_a_torch_model_has_times_on_input_model_and_output(
    perf_analyzer: str, gateway: GatewayProcess, deploy: Deploy, mode: tuple[str, ...]
) -> None:
    torch = pytest.importorskip("torch")
    net = torch.nn.Sequential(torch.nn.Linear(256, 4096), torch.nn.ReLU(), torch.nn.Linear(4096, 1024))
    model = deploy(net, example=np.zeros(256, np.float32), profile="1,20")
    found = measure(perf_analyzer, gateway, model.name, *mode, "-b", "4")
    assert min(found[part] for part in ("compute input", "compute infer", "compute output")) > 0
    assert sum(found[part] for part in ("queue", "compute input", "compute infer", "compute output")) <= (
        found["Avg request latency:"] + 4
    )


@pytest.mark.parametrize("mode", [CONCURRENCY, POISSON], ids=["concurrency", "poisson"])
def test_a_model_of_bytes_is_measured(
    perf_analyzer: str, gateway: GatewayProcess, deploy: Deploy, mode: tuple[str, ...]
) -> None:
    model = deploy(models.same, example=b"abc", profile="0.1,1")
    found = measure(perf_analyzer, gateway, model.name, *mode, "--string-length", "16")
    assert found["Inference count"] > 0
    assert found["compute infer"] < 5_000
