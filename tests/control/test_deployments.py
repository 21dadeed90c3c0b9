"""Versions of a model: one takes over from another, and no request notices."""

from __future__ import annotations

import concurrent.futures
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from symphony_dask.client.model import Model
from symphony_dask.client.serving import Serving
from symphony_dask.dispatcher.routing import Canary
from symphony_dask.errors import BadInput, DeploymentError, Undeployed, UnknownModel
from symphony_dask.trace import open_run
from tests.helpers import models
from tests.helpers.cluster import Cluster, wait_until
from tests.helpers.models import Gate

LIMIT_S = 30
QUICK = "0.1,0.5"
X = np.array([1.0])
Deploy = Callable[..., Model]


@pytest.fixture
def name(request: pytest.FixtureRequest, serving: Serving) -> Iterator[str]:
    """The test's name, for what it deploys."""
    name = request.node.name
    yield name
    if any(shown.partition("@")[0] == name for shown in serving.status()["models"]):
        serving.undeploy(name)


def deploy(serving: Serving, name: str, answer: float, **options: Any) -> Model:
    """A version that answers ``answer``."""
    model: Model = serving.deploy(name, models.constant(answer), slo="60s", profile=QUICK, **options)
    return model


def states(serving: Serving, name: str) -> dict[str, str]:
    return {row["version"]: row["state"] for row in serving.versions(name)}


def answers(model: Model, n: int) -> list[float]:
    return [f.result(LIMIT_S) for f in model.map([X] * n)]


def test_a_new_version_answers_whoever_has_the_model(cluster: Cluster, serving: Serving, name: str) -> None:
    with Serving(cluster.client()) as other:
        first = deploy(serving, name, 1.0)
        theirs = other.model(name)
        assert (first.version, first(X), theirs(X)) == ("1", 1.0, 1.0)
        second = deploy(serving, name, 2.0)
        assert second is first
        assert (second.version, second(X), theirs(X)) == ("2", 2.0, 2.0)
        wait_until(lambda: states(serving, name) == {"2": "serving", "1": "retired"}, "the end of version 1")
        assert serving.status()["models"][name]["version"] == "2"


def test_requests_that_are_queued_end_on_the_version_that_they_came_to(serving: Serving, name: str, gate: Gate) -> None:
    model = serving.deploy(name, gate.model(models.constant(1.0)), slo="60s", profile=QUICK, max_batch=1)
    old = model.map([X] * 10)
    deploy(serving, name, 2.0)
    assert states(serving, name) == {"2": "serving", "1": "draining"}
    new = model.submit(X)
    gate.open()
    assert [f.result(LIMIT_S) for f in old] == [1.0] * 10
    assert new.result(LIMIT_S) == 2.0
    wait_until(lambda: states(serving, name) == {"2": "serving", "1": "retired"}, "the end of version 1")


def test_a_version_that_does_not_come_up_changes_nothing(serving: Serving, name: str) -> None:
    model = deploy(serving, name, 1.0)
    with pytest.raises(DeploymentError, match="no weights here"):
        serving.deploy(name, models.load_nothing, slo="60s", profile=QUICK)
    with pytest.raises(BadInput, match="one request alone takes"):
        serving.deploy(name, models.constant(2.0), slo="1ms", profile="1,5")
    assert (model(X), model.version) == (1.0, "1")
    assert states(serving, name) == {"1": "serving"}
    assert not serving.status()["loading"]


def test_rollback_goes_back_to_the_version_before_and_forth_again(serving: Serving, name: str) -> None:
    model = deploy(serving, name, 1.0)
    with pytest.raises(BadInput, match="has no version before '1'"):
        serving.rollback(name)
    deploy(serving, name, 2.0, version="blue")
    wait_until(lambda: states(serving, name)["1"] == "retired", "the end of version 1")
    assert serving.rollback(name).version == "1"
    assert model(X) == 1.0
    wait_until(lambda: states(serving, name) == {"1": "serving", "blue": "retired"}, "the end of version blue")
    assert serving.rollback(name).version == "blue"
    assert model(X) == 2.0


def test_a_canary_gets_its_share_of_the_requests_until_it_is_promoted(
    serving: Serving, name: str, tmp_path: Path
) -> None:
    model = deploy(serving, name, 1.0)
    with pytest.raises(BadInput, match="has no canary"):
        serving.promote(name)
    folder = serving.record(str(tmp_path / "run"))
    deploy(serving, name, 2.0, canary=0.25)
    assert answers(model, 40).count(2.0) == 10
    assert [(row["version"], row["share"]) for row in serving.versions(name)] == [("1", 0.75), ("2", 0.25)]
    serving.set_canary(name, 0.5)
    assert answers(model, 40).count(2.0) == 20
    assert serving.promote(name).version == "2"
    assert answers(model, 8) == [2.0] * 8
    serving.stop_recording()
    run = open_run(folder)
    assert run.summary().ok == 88
    counts = run.requests.collect()["model"].value_counts()
    assert dict(counts.iter_rows()) == {name: 50, f"{name}@2": 38}


def test_rollback_takes_a_canary_away(serving: Serving, name: str) -> None:
    model = deploy(serving, name, 1.0)
    deploy(serving, name, 2.0, canary=0.5)
    assert serving.rollback(name).version == "1"
    assert answers(model, 10) == [1.0] * 10
    wait_until(lambda: states(serving, name) == {"1": "serving", "2": "retired"}, "the end of the canary")


def test_one_version_can_be_asked_for_while_it_serves(serving: Serving, name: str) -> None:
    deploy(serving, name, 1.0)
    deploy(serving, name, 2.0, canary=0.1)
    first, second = serving.find(name, "1"), serving.find(name, "2")
    assert (answers(first, 5), answers(second, 5)) == ([1.0] * 5, [2.0] * 5)
    serving.promote(name)
    assert second(X) == 2.0
    with pytest.raises(UnknownModel):
        first(X)
    with pytest.raises(UnknownModel, match=r"no version '1' that serves; those that do are \['2'\]"):
        serving.find(name, "1")


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"version": "1"}, "version '1' of model .* is deployed already"),
        ({"version": "no spaces"}, "version 'no spaces'"),
        ({"canary": 1.5}, r"canary=1.5"),
        ({"memory": "much"}, "memory is 'much'"),
    ],
)
def test_a_version_that_makes_no_sense_is_refused(
    serving: Serving, name: str, options: dict[str, Any], match: str
) -> None:
    model = deploy(serving, name, 1.0)
    with pytest.raises(BadInput, match=match):
        deploy(serving, name, 2.0, **options)
    assert model(X) == 1.0


def test_a_first_version_cannot_be_a_canary(serving: Serving) -> None:
    with pytest.raises(BadInput, match="its first version cannot be a canary"):
        deploy(serving, "nobody", 1.0, canary=0.1)
    with pytest.raises(UnknownModel):
        serving.versions("nobody")


def test_undeploying_ends_all_versions(serving: Serving, name: str, gate: Gate) -> None:
    model = serving.deploy(name, gate.model(), slo="60s", profile=QUICK, max_batch=1)
    futures = model.map([X] * 10)
    deploy(serving, name, 2.0)
    serving.undeploy(name)
    gate.open()
    ended = [f.exception(LIMIT_S) for f in futures]
    assert {type(error) for error in ended} == {type(None), Undeployed}
    with pytest.raises(UnknownModel):
        model(X)
    assert deploy(serving, name, 3.0)(X) == 3.0
    with pytest.raises(UnknownModel):
        model(X)


def test_versions_that_come_at_once_take_over_one_after_the_other(serving: Serving, name: str) -> None:
    with concurrent.futures.ThreadPoolExecutor() as pool:
        made = list(pool.map(lambda i: deploy(serving, name, float(i)).version, range(4)))
    assert len(made) == 4
    wait_until(lambda: list(states(serving, name).values()).count("serving") == 1, "one version")
    wait_until(lambda: "draining" not in states(serving, name).values(), "the end of the others")
    assert set(states(serving, name)) == {"1", "2", "3", "4"}


def test_a_model_is_loaded_and_profiled_beside_batches_that_go_on(serving: Serving, name: str) -> None:
    model = deploy(serving, name, 1.0)
    module = models.linear()
    with Load(model) as load:
        serving.deploy(name, module, slo="60s", example=np.zeros(4, np.float32), canary=0.001, max_batch=16)
    assert load.failed == []
    assert load.ok > 0


def test_a_canary_s_share_is_spread_evenly() -> None:
    canary = Canary(number=0, model_id=1, share=0.25)
    assert canary.chosen(3).tolist() == [False, False, False]
    assert canary.chosen(6).tolist() == [True, False, False, False, True, False]
    assert Canary(0, 1, 0.3).chosen(1000).sum() == 300


class Load:
    """Offers requests as fast as they are answered, from four threads, until the context ends."""

    def __init__(self, model: Model, sample: Any = X, per_call: int = 20) -> None:
        self.ok, self.failed, self.answers = 0, list[str](), set[float]()
        self._model, self._sample, self._per_call = model, sample, per_call
        self._end = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._offer) for _ in range(4)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        wait_until(lambda: self.ok > 0, "a first answer")
        return self

    def __exit__(self, *exc: object) -> None:
        self._end.set()
        for thread in self._threads:
            thread.join()

    def _offer(self) -> None:
        while not self._end.is_set():
            for future in self._model.map([self._sample] * self._per_call):
                try:
                    answer = future.result(LIMIT_S)
                except Exception as error:
                    with self._lock:
                        self.failed.append(f"{type(error).__name__}: {error}")
                else:
                    with self._lock:
                        self.ok += 1
                        self.answers.add(answer)


def rolling_updates(serving: Serving, name: str, updates: int) -> Load:
    model = deploy(serving, name, 0.0)
    with Load(model) as load:
        for i in range(1, updates + 1):
            deploy(serving, name, float(i))
            seen = load.ok
            wait_until(lambda at=seen: load.ok > at + 100, "requests between updates")  # type: ignore[misc]
    return load


def test_an_update_under_load_fails_no_request(serving: Serving, name: str, tmp_path: Path) -> None:
    folder = serving.record(str(tmp_path / "run"))
    load = rolling_updates(serving, name, 2)
    serving.stop_recording()
    assert load.failed == []
    assert load.answers == {0.0, 1.0, 2.0}
    summary = open_run(folder).summary()
    assert (summary.ok, summary.requests) == (load.ok, load.ok)


@pytest.mark.slow
def test_thousands_of_requests_and_twenty_updates_with_a_worker_lost_and_none_fails() -> None:
    with Cluster(3, settings={"DASK_SYMPHONY__POLICY": "eager"}) as cluster, Serving(cluster.client()) as serving:
        wait_until(lambda: len(serving.status()["workers"]) == 3, "three workers on the lane", 60)
        model = deploy(serving, "m", 0.0)
        with Load(model) as load:
            for i in range(1, 21):
                deploy(serving, "m", float(i))
                seen = load.ok
                wait_until(lambda at=seen: load.ok > at + 300, "requests between updates")  # type: ignore[misc]
                if i == 10:
                    cluster.workers[0].kill()
        print(f"{load.ok} requests answered, {len(load.failed)} failed, 20 updates, 1 worker lost")
        assert load.failed == []
        assert load.ok > 6000
        assert load.answers == {float(i) for i in range(21)}
