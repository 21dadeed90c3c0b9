"""Imports never point upwards, and no modules import each other (docs/architecture.md).

Imports in functions and for types only count as well: who needs a name from above has the wrong room.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.helpers.import_graph import circles, import_graph

#: The rooms, lowest first; rooms on one line do not know each other. A name stands for what begins with it, unless a
#: longer name does as well.
LAYERS = [
    ["symphony_dask.errors", "symphony_dask.clock"],
    ["symphony_dask.text"],
    ["symphony_dask.units", "symphony_dask.names", "symphony_dask.wait_checks", "symphony_dask.pickling"],
    ["symphony_dask.timeouts", "infra"],
    ["symphony_dask.config"],
    ["symphony_dask.engine.native"],
    ["symphony_dask.engine"],
    ["symphony_dask.wire"],
    ["symphony_dask.backends", "symphony_dask.trace"],
    ["symphony_dask.dispatcher", "symphony_dask.slot"],
    ["symphony_dask.control"],
    ["symphony_dask.observe"],
    ["symphony_dask.plugin"],
    ["symphony_dask.client", "symphony_dask.preload"],
    ["symphony_dask"],  # the public names
    ["symphony_dask.gateway"],
    ["symphony_dask.cli"],
    ["symphony_dask.__main__"],
    ["autoscale.policies"],
    ["autoscale.fleet"],
    ["autoscale.providers"],
    ["autoscale.clusters"],
    ["autoscale"],  # the public names
    ["autoscale.cli"],
    ["workloads.traces", "workloads"],
    ["workloads.data"],
    ["workloads.simulation"],
    ["workloads.baselines"],
    ["workloads.compare"],
    ["workloads.analysis"],
    ["workloads.parallel_engine", "workloads.policy_trials", "workloads.faults"],
    ["workloads.live"],
    ["workloads.bench"],
    ["workloads.cli"],
]
_RANKS = {room: rank for rank, rooms in enumerate(LAYERS) for room in rooms}


@pytest.fixture(scope="module")
def graph() -> dict[str, set[str]]:
    return import_graph()


def room_of(module: str) -> str:
    parts = module.split(".")
    return next(name for n in range(len(parts), 0, -1) if (name := ".".join(parts[:n])) in _RANKS)


def test_every_module_at_the_root_of_the_package_has_its_layer(graph: dict[str, set[str]]) -> None:
    """None is taken for one of the public names by mistake."""
    assert [module for module in graph if room_of(module) == "symphony_dask"] == ["symphony_dask"]


def test_no_import_points_upwards_or_sideways(graph: dict[str, set[str]]) -> None:
    wrong = []
    for module, imported in graph.items():
        room = room_of(module)
        for other in imported:
            there = room_of(other)
            if there != room and _RANKS[there] >= _RANKS[room]:
                wrong.append(f"{module} imports {other}")
    assert sorted(wrong) == []


def test_no_modules_import_each_other(graph: dict[str, set[str]]) -> None:
    assert circles(graph) == []


def test_instances_need_the_serving_package_alone(graph: dict[str, set[str]]) -> None:
    assert {other.split(".")[0] for m in graph if m.startswith("infra") for other in graph[m]} <= {
        "infra",
        "symphony_dask",
    }


def loaded_by(module: str) -> set[str]:
    program = f"import sys, {module}; print(*sys.modules)"
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(out.stdout.split())


def test_importing_the_package_loads_nothing_that_is_slow() -> None:
    assert not loaded_by("symphony_dask") & {"numba", "numpy", "distributed", "dask"}


def test_the_engine_loads_no_dask() -> None:
    assert not loaded_by("symphony_dask.engine.engine") & {"distributed", "dask"}


@pytest.mark.parametrize("module", ["client.serving", "plugin.worker_plugin"])
def test_clients_and_workers_load_no_compiled_code(module: str) -> None:
    assert "numba" not in loaded_by(f"symphony_dask.{module}")


def test_the_dispatcher_loads_no_dask() -> None:
    assert not loaded_by("symphony_dask.dispatcher.dispatcher") & {"distributed", "dask"}


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
