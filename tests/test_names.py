"""Where several names are meant one will do, a number is a name, and a name of nobody is an error."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from autoscale.providers.ec2 import Ec2Fleet
from symphony_dask import Ensemble, as_completed
from symphony_dask.client.serving import Serving
from symphony_dask.client.stages import as_stage
from symphony_dask.control.fleet_rpc import Fleets
from symphony_dask.errors import BadInput
from symphony_dask.names import name_list, not_there
from tests.helpers.cluster import wait_until
from workloads.compare.cells import Grid


class Drained:
    """What a dispatcher is told of drains; nothing is in flight."""

    def __init__(self) -> None:
        self.addresses: list[str] = []

    def drain_workers(self, addresses: list[str]) -> None:
        self.addresses += addresses

    def undrain_worker(self, address: str) -> bool:
        self.addresses.remove(address)
        return True

    def is_draining(self, address: str) -> bool:
        return address in self.addresses

    def in_flight(self, address: str) -> int:
        return 0

    def is_closing(self, address: str) -> bool:
        return False


@pytest.fixture
def drained() -> Drained:
    return Drained()


@pytest.fixture
def fleets(drained: Drained) -> Fleets:
    """Of workers that are called 1, 2 and 21, as a ``LocalCluster`` calls them, and i-5-0, i-5-1."""
    names = {"tcp://a": 1, "tcp://b": 2, "tcp://c": 21, "tcp://d": "i-5-0", "tcp://e": "i-5-1"}
    workers = {address: SimpleNamespace(address=address, name=name) for address, name in names.items()}
    scheduler: Any = SimpleNamespace(workers=workers)
    dispatcher: Any = drained
    return Fleets(scheduler, dispatcher, admit=lambda address: None, loading=list)


def call(coroutine: Any) -> Any:
    reply = asyncio.run(coroutine)
    if "error" in reply:
        raise BadInput(reply["error"][1])
    return reply["ok"]


@pytest.mark.parametrize("one", ["21", 21, np.int64(21), ["21"], (21,), {21}, iter(["21"]), [21, "21"]])
def test_one_name_is_drained_however_it_is_given(fleets: Fleets, drained: Drained, one: Any) -> None:
    assert call(fleets.drain(name_list(one, "worker"), known=True)) == {"21": 0}
    assert drained.addresses == ["tcp://c"]
    assert call(fleets.undrain(one if not hasattr(one, "__next__") else "21", known=True)) == ["21"]
    assert drained.addresses == []


def test_what_the_scheduler_is_sent_by_others_is_no_list_of_characters_either(fleets: Fleets, drained: Drained) -> None:
    assert call(fleets.drain("21")) == {"21": 0}
    assert drained.addresses == ["tcp://c"]


def test_an_instance_stands_for_its_workers(fleets: Fleets, drained: Drained) -> None:
    assert call(fleets.drain("i-5", known=True)) == {"i-5": 0}
    assert drained.addresses == ["tcp://d", "tcp://e"]


@pytest.mark.parametrize("operation", ["drain", "undrain", "retire"])
def test_a_worker_that_is_not_there_is_an_error_and_nothing_is_done(
    fleets: Fleets, drained: Drained, operation: str
) -> None:
    with pytest.raises(BadInput) as raised:
        call(getattr(fleets, operation)(["1", "i-5-2"], known=True))
    assert str(raised.value) == ("worker 'i-5-2' is not there: did you mean 'i-5-1'? there are 1, 2, 21, i-5-0, i-5-1")
    assert drained.addresses == []


def test_a_worker_that_is_not_drained_is_not_retired_in_silence(fleets: Fleets) -> None:
    with pytest.raises(BadInput, match="worker '2' is not drained: drain it first"):
        call(fleets.retire(2, known=True))


def test_a_controller_drains_machines_that_have_not_joined(fleets: Fleets) -> None:
    assert call(fleets.drain(["i-6"], "scale-in")) == {"i-6": 0}
    assert call(fleets.undrain(["i-6"], known=True)) == ["i-6"]


def test_where_nobody_is_the_error_says_so() -> None:
    assert str(not_there("a", [], "worker")) == "worker 'a' is not there: there is no worker"
    many = [f"w{i}" for i in range(10)]
    assert str(not_there("x", many, "worker")).endswith("there are w0, w1, w2, w3, w4, w5, w6, w7, ...")


@pytest.mark.parametrize("wrong", [None, b"21", {"21": 1}, 2.5, True, [2.5], [None], [True], [["21"]], "", ["\ud800"]])
def test_what_is_no_name_is_refused(wrong: Any) -> None:
    with pytest.raises(BadInput):
        name_list(wrong, "worker")


def test_a_drain_by_a_client_names_who_is_there(serving: Serving) -> None:
    first, second = sorted(serving.status()["workers"])
    try:
        assert serving.drain(first) == {first: 0}
        assert {a: w["draining"] for a, w in serving.status()["workers"].items()} == {first: True, second: False}
    finally:
        assert list(serving.undrain(first)) == [first]
    for wrong in ("21", 7, [first, "nobody"]):
        for operation in (serving.drain, serving.undrain, serving.retire):
            with pytest.raises(BadInput, match=f"is not there: .*{first}"):
                operation(wrong)
    assert serving.status()["drains"] == {}
    with pytest.raises(BadInput, match="is not drained"):
        serving.retire(second)
    wait_until(lambda: all(w["serving"] for w in serving.status()["workers"].values()), "both workers to serve")


def test_an_ensemble_of_a_text_is_refused() -> None:
    with pytest.raises(BadInput, match="an Ensemble of 'abc': give it a list of two models or more"):
        as_stage(Ensemble("abc"))
    with pytest.raises(BadInput, match="an Ensemble of 3"):
        as_stage(Ensemble(3))  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", ["x", 3, ["x"], [[1]], None])
def test_as_completed_of_what_is_no_future_is_refused(wrong: Any) -> None:
    with pytest.raises(BadInput, match="as_completed of"):
        as_completed(wrong)


def test_a_fleet_of_one_type_and_one_zone() -> None:
    fleet = Ec2Fleet(
        "fleet", launch_template="lt-1", types="g4dn.xlarge", zones="us-east-1a", markets="spot", region="us-east-1"
    )
    assert (fleet._types, fleet._zones, fleet._markets) == (["g4dn.xlarge"], ["us-east-1a"], ["spot"])


def test_a_grid_of_one_profile() -> None:
    cells = Grid(profiles="resnet50", models=(1,), gpus=(1,), slo_factors=(1,), shapes=(1.0,), popularities="equal")
    assert [(cell.profile, cell.popularity) for cell in cells.cells()] == [("resnet50", "equal")]
