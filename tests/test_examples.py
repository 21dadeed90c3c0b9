"""Each example of docs/examples runs as the README prints it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

_ROOT = Path(__file__).parents[1]


def run(name: str, limit_s: float = 170) -> str:
    done = subprocess.run(
        [sys.executable, f"docs/examples/{name}"], cwd=_ROOT, capture_output=True, text=True, timeout=limit_s
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_tritons_client_infers_through_the_gateway() -> None:
    for module in ("torch", "uvicorn", "tritonclient.http"):
        pytest.importorskip(module)
    shown = run("gateway_tritonclient.py").splitlines()
    assert shown[0] == "[{'name': 'input', 'datatype': 'FP32', 'shape': [-1, 16]}]"
    assert len(shown[1].strip("[]").split()) == 8
