"""Each example of docs/examples runs as the guide prints it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

_ROOT = Path(__file__).parents[2]


def run(name: str, limit_s: float = 170) -> str:
    done = subprocess.run(
        [sys.executable, f"docs/examples/{name}"],
        cwd=_ROOT,
        env={**os.environ, "PYTHONPATH": str(_ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=limit_s,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_tritons_client_infers_through_the_gateway() -> None:
    for module in ("torch", "uvicorn", "tritonclient.http"):
        pytest.importorskip(module)
    shown = run("gateway_tritonclient.py").splitlines()
    assert shown[0] == "[{'name': 'input', 'datatype': 'FP32', 'shape': [-1, 16]}]"
    assert len(shown[1].strip("[]").split()) == 8


def test_a_torch_network_classifies_images() -> None:
    pytest.importorskip("torch")
    shown = run("torch_image_model.py")
    assert re.search(r"measured on \w+: l\(b\) = [\d.]+ b \+ [\d.]+ ms", shown)
    assert re.search(r"measured: \d+ of 200 in time", shown)
    assert "classes: {'horizontal': 67, 'vertical': 67, 'diagonal': 66}" in shown


@pytest.mark.slow
def test_texts_are_embedded_by_a_model_that_a_package_ships() -> None:
    pytest.importorskip("wordllama", reason="wordllama, which ships an embedding model, is not installed: extra test")
    shown = run("text_embedding.py")
    assert "embedded 12 texts into 256 dimensions" in shown
    assert "'pets': A puppy chases its tail in the garden." in shown or "'pets': The cat sleeps" in shown
    assert re.search(r"'shares and investors': The stock market", shown)
    assert re.search(r"measured: \d+ in time, \d+ batches", shown)


@pytest.mark.slow
def test_an_ensemble_is_better_than_each_of_its_members() -> None:
    shown = run("ensemble.py")
    assert "<Pipeline 'mean': scaled() -> mean(expert-0, expert-1, expert-2) -> argmax(), SLO 2s>" in shown
    assert len(re.findall(r"split: expert-\d has \d+ ms, for batches of \d+", shown)) == 3
    each = [int(n) for n in re.findall(r"(\d+)%", shown.split("accuracy of each: ")[1].split("\n")[0])]
    mean = int(re.search(r"accuracy of mean: (\d+)%", shown)[1])  # type: ignore[index]
    assert mean > max(each)


@pytest.mark.slow
def test_models_are_tasks_in_a_dask_graph() -> None:
    shown = run("graph_mode.py")
    # Document i of 100 has one word i times: the best is 97 times "great", 2 each.
    assert "client.map: 100 documents, best score 194" in shown
    # The sum of i * (1, 2, -1, -2)[i % 4] over 40 documents.
    assert "dask.delayed: total score -60" in shown
    batches = re.search(r"measured: 140 model tasks in (\d+) batches", shown)
    assert batches is not None
    assert int(batches[1]) < 140


@pytest.mark.slow
def test_a_fleet_follows_the_load() -> None:
    shown = run("autoscale_local.py").splitlines()
    assert shown[0].endswith("0 processes  emulated GPUs; a model is to be deployed, and there is none")
    processes = [int(re.search(r"(\d+) processes", line)[1]) for line in shown]  # type: ignore[index]
    assert (processes[0], processes[-1]) == (0, 0)
    assert max(processes) >= 2
