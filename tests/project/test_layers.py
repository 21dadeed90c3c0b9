"""Imports never point upwards (docs/architecture.md)."""

from __future__ import annotations

import subprocess
import sys

import pytest


def loaded_by(module: str) -> set[str]:
    program = f"import sys, {module}; print(*sys.modules)"
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(out.stdout.split())


def test_the_engine_knows_no_dask_and_nothing_above_it() -> None:
    loaded = loaded_by("symphony_dask.engine.engine")
    assert not loaded & {"distributed", "dask", "symphony_dask.wire.connection", "symphony_dask.trace", "workloads"}
    ours = {name for name in loaded if name.startswith("symphony_dask.")}
    assert all(name.startswith("symphony_dask.engine") for name in ours)


def test_the_dispatcher_does_not_know_dask() -> None:
    assert not loaded_by("symphony_dask.dispatcher.dispatcher") & {"distributed", "dask", "workloads", "autoscale"}


@pytest.mark.parametrize(
    "module",
    [
        "client",
        "plugin",
        "slot.runtime",
        "slot.profiling",
        "cli.main",
        "cli.serve",
        "cli.top",
        "backends",
        "observe.dashboard",
    ],
)
def test_the_serving_layer_does_not_know_the_tools(module: str) -> None:
    assert not loaded_by(f"symphony_dask.{module}") & {"workloads", "autoscale", "infra"}


def test_scaling_policies_need_nothing_but_numbers() -> None:
    """A controller runs where neither the engine nor a simulator is."""
    assert not loaded_by("autoscale.policies.registry") & {
        "distributed",
        "dask",
        "numba",
        "symphony_dask",
        "workloads",
        "boto3",
    }


@pytest.mark.parametrize("module", ["app", "server"])
def test_the_gateway_does_not_know_the_tools(module: str) -> None:
    pytest.importorskip("uvicorn")
    assert not loaded_by(f"symphony_dask.gateway.{module}") & {"workloads", "autoscale", "infra"}
