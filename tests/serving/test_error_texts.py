"""What errors and objects say: what happened, of which model, and what to do, and no bare internals."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any

import dask
import numpy as np
import pytest
from distributed import Client

from symphony_dask import Ensemble
from symphony_dask.client.model import Model
from symphony_dask.client.serving import ModelRef, Serving
from symphony_dask.client.stages import as_stage
from symphony_dask.control import loader as loading
from symphony_dask.errors import (
    BadInput,
    DeploymentError,
    NoGPUWorker,
    NotServing,
    UnknownModel,
)
from symphony_dask.text import did_you_mean, last_line, listed
from tests.helpers import models
from tests.helpers.cluster import Cluster
from tests.helpers.serving import EAGER, LIMIT_S, QUICK

Deploy = Callable[..., Model]
ONE = np.array([1.0])


@pytest.fixture(scope="module")
def client(cluster: Cluster) -> Client:
    return cluster.client()


# Deployments


def test_a_model_that_cannot_be_pickled_is_named_with_the_remedy(serving: Serving) -> None:
    lock = threading.Lock()
    with pytest.raises(BadInput) as error:
        serving.deploy("locked", lambda batch: (lock, batch)[1], slo="1s", profile=QUICK)
    text = str(error.value)
    assert text.startswith(
        "model 'locked' cannot be sent, TypeError: cannot pickle '_thread.lock' object: pass a loader"
    )
    assert "\n" not in text


def test_why_a_model_did_not_come_up_stands_in_the_first_line_and_its_traceback_below(serving: Serving) -> None:
    with pytest.raises(DeploymentError) as error:
        serving.deploy("never", models.load_nothing, slo="1s", profile=QUICK)
    first, *rest = str(error.value).splitlines()
    assert first.startswith("model 'never' came up on no worker. worker tcp://")
    assert first.endswith("model could not be loaded: FileNotFoundError: no weights here")
    assert rest[0] == "Traceback (most recent call last):"
    with pytest.raises(DeploymentError) as error:
        serving.deploy("never", lambda batch: {}["k"], slo="1s", example=ONE)
    assert str(error.value).splitlines()[0].endswith("model failed on its example, float64 (1,): KeyError: 'k'")


def test_a_module_that_workers_lack_is_named_with_upload_file(serving: Serving) -> None:
    def load() -> Any:
        import my_nets  # type: ignore[import-not-found]

        return my_nets.net

    with pytest.raises(DeploymentError) as error:
        serving.deploy("never", load, slo="1s", profile=QUICK)
    first = str(error.value).splitlines()[0]
    assert "workers lack the module 'my_nets', send it with client.upload_file('my_nets.py'), or install it" in first


def test_workers_without_a_gpu_resource_are_not_waited_for_to_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    async def wait() -> None:
        loader = loading.Loader(None, None, 1.0, lambda address: False, lambda: (2, 0))  # type: ignore[arg-type]
        await loader._wait_for_worker("m", 60.0)

    monkeypatch.setattr(loading, "_PLAIN_ONLY_S", 0.1)
    began = time.monotonic()
    with pytest.raises(
        NoGPUWorker, match=r": 2 workers, none has a GPU resource, so model 'm' .*--resources \"GPU=1\""
    ):
        asyncio.run(wait())
    assert time.monotonic() - began < 30


@pytest.mark.parametrize(
    ("workers", "text"),
    [
        ((0, 0), r"joined within 0\.1 s, so model 'm'"),
        ((1, 0), r"joined within 0\.1 s: 1 worker, none has a GPU resource, so model 'm'"),
        ((3, 2), r"joined within 0\.1 s: 3 workers, 2 with a GPU resource, which did not get ready"),
    ],
)
def test_who_waits_for_workers_is_told_which_there_are(workers: tuple[int, int], text: str) -> None:
    async def wait() -> None:
        loader = loading.Loader(None, None, 1.0, lambda address: False, lambda: workers)  # type: ignore[arg-type]
        await loader._wait_for_worker("m", 0.1)

    with pytest.raises(NoGPUWorker, match=text):
        asyncio.run(wait())


def test_a_cluster_that_is_not_ready_says_which_workers_it_has(serving: Serving) -> None:
    with pytest.raises(NoGPUWorker, match=r"2 of 3 GPU slots serve after 0\.01 s \(2 workers, 2 have a GPU resource\)"):
        serving.wait_ready(gpus=3, timeout="10ms")


@pytest.mark.parametrize("given", ["tcp://127.0.0.1:8786", None, 5])
def test_a_serving_of_something_else_than_a_client_says_what_to_pass(given: Any) -> None:
    with pytest.raises(BadInput, match=r"pass a Dask client, as in Serving\(distributed\.Client\(['\"]tcp://"):
        Serving(given)


# Names


def test_near_names_are_asked_about(serving: Serving, deploy: Deploy) -> None:
    name = deploy(models.double, profile=QUICK).name
    near = name[:-1].replace("near", "naer")
    hint = rf"did you mean '{name}'\?"
    with pytest.raises(UnknownModel, match=hint):
        serving.find(near)
    with pytest.raises(UnknownModel, match=hint):
        serving.undeploy(near)
    with pytest.raises(UnknownModel, match=hint):
        serving.versions(near)
    with pytest.raises(UnknownModel, match=hint):
        serving.wait_ready(near, timeout="10ms")
    with pytest.raises(UnknownModel, match=hint):
        serving.pipeline("naer", [near], slo="1s")
    serving.deploy(name, models.double, slo="60s", profile=QUICK, version="2026-11-25")
    with pytest.raises(UnknownModel, match=r"did you mean '2026-11-25'\?"):
        serving.find(name, "2026-11-26")
    serving.pipeline("reads-text", [name], slo="60s")
    with pytest.raises(UnknownModel, match=r"did you mean 'reads-text'\?"):
        serving.find("reads-txet")
    serving.undeploy("reads-text")
    with pytest.raises(BadInput, match=r"policy 'egaer' is unknown: choose one of .*; did you mean 'eager'\?"):
        serving.set_policy("egaer")
    with pytest.raises(BadInput, match=r"give one of 'mean', 'vote' or a function; did you mean 'mean'\?"):
        as_stage(Ensemble(["a"], combine="maen"))
    with pytest.raises(BadInput, match=r"did you mean 'compile'\?"):
        serving.deploy("never", models.load_double, slo="1s", profile=QUICK, optimize="compiel", example=ONE)


def test_a_task_of_a_name_that_is_near_is_asked_about(client: Client, deploy: Deploy) -> None:
    name = deploy(models.double, profile=QUICK).name
    with pytest.raises(UnknownModel, match=rf"did you mean '{name}'\?"):
        client.submit(ModelRef(name.replace("task", "taks")), ONE, pure=False).result(LIMIT_S)
    with dask.annotate(symphony={"prioriy": 1}), pytest.raises(BadInput, match=r"did you mean 'priority'\?"):
        client.submit(ModelRef(name), ONE, pure=False).result(LIMIT_S)


def test_names_that_are_far_are_not_guessed_and_long_lists_are_cut() -> None:
    assert did_you_mean("bert", ["resnet", "detector"]) == ""
    assert did_you_mean("resnett", ["resnet", "detector"]) == "; did you mean 'resnet'?"
    assert listed(["b", "a"]) == "['a', 'b']"
    assert listed(str(i) for i in range(100, 200)).endswith("'119', and 80 more]")
    assert last_line("Traceback\n  File x\nKeyError: 'k'\n") == "KeyError: 'k'"


def test_a_handle_to_what_was_undeployed_says_its_name(serving: Serving, deploy: Deploy) -> None:
    model = deploy(models.double, profile=QUICK)
    serving.undeploy(model.name)
    for ask in (lambda: model(ONE), lambda: model.submit(ONE, retries=1).result(LIMIT_S)):
        with pytest.raises(UnknownModel, match=rf"model '{model.name}' is not deployed any more: deploy it again"):
            ask()


# Tasks


@pytest.mark.parametrize(
    ("call", "got"),
    [
        (lambda c, m: c.submit(m, ONE, ONE, pure=False), "2 arguments:"),
        (lambda c, m: c.submit(m, pure=False), "0 arguments:"),
        (lambda c, m: c.submit(m, ONE, x=ONE, pure=False), "2 arguments:"),
        (lambda c, m: c.submit(m, ONE, mask=ONE, pure=False), "1 arguments and mask:"),
        (lambda c, m: c.map(m, [ONE], [ONE], pure=False)[0], "2 arguments:"),
        (lambda c, m: c.compute(dask.delayed(m)(ONE, 3)), "2 arguments:"),
    ],
)
def test_a_task_that_calls_a_model_wrongly_says_how_it_is_called(
    client: Client, deploy: Deploy, call: Callable[..., Any], got: str
) -> None:
    model = deploy(models.double, profile=QUICK)
    with pytest.raises(BadInput, match=rf"takes one sample, .* calls it with {got} write client\.submit\(model, x\)"):
        call(client, model).result(LIMIT_S)
    assert client.submit(model, ONE, pure=False).result(LIMIT_S).tolist() == [2.0]
    assert client.submit(model, x=ONE, pure=False).result(LIMIT_S).tolist() == [2.0]


def test_a_model_that_a_task_captured_can_be_asked_from_it(client: Client, serving: Serving, deploy: Deploy) -> None:
    model = deploy(models.double, profile=QUICK)

    def ask(xs: list[float]) -> list[float]:
        futures = [model.submit(np.array([x]), slo="30s", priority=1, retries=1) for x in xs]
        return [float(future.result(LIMIT_S)[0]) for future in futures]

    for _ in range(2):
        assert client.submit(ask, [1.0, 2.0], pure=False).result(LIMIT_S) == [2.0, 4.0]
    assert serving.status()["models"][model.name]["outcomes"]["ok"] == 4
    with pytest.raises(NotServing, match=r"model\.submit\(x\)\.result\(\)"):
        client.submit(lambda: model(ONE), pure=False).result(LIMIT_S)


def test_where_no_client_is_a_sent_model_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> Any:
        raise ValueError("No global client found and no address provided")

    monkeypatch.setattr("distributed.get_client", none)
    with pytest.raises(NotServing, match=r"use Serving\(client\)\.model\(name\)"):
        ModelRef("m").submit(ONE)


# Objects


def test_a_serving_shows_what_the_cluster_serves_whoever_deployed_it(
    cluster: Cluster, serving: Serving, deploy: Deploy
) -> None:
    model = deploy(models.double, profile=QUICK)
    serving.pipeline("shown-pipeline", [model], slo="60s")
    try:
        with Serving(cluster.client()) as other:
            assert repr(other).startswith(f"<Serving on {cluster.address}: ")
            assert model.name in repr(other)
            assert "shown-pipeline" in repr(other)
            assert model.name in other._repr_html_()
            assert "shown-pipeline" in other._repr_html_()

        async def ask() -> str:
            async with Client(cluster.address, asynchronous=True, set_as_default=False) as client:
                return repr(await Serving(client))

        shown = asyncio.run(ask())
        assert "known so far: " in shown
        assert model.name in shown
    finally:
        serving.undeploy("shown-pipeline")


def test_a_serving_whose_cluster_does_not_answer_is_shown_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    with Cluster(0, settings=EAGER) as cluster:
        serving = Serving(cluster.client())
        assert repr(serving) == f"<Serving on {cluster.address}: no models>"
        cluster.scheduler.send_signal(19)  # SIGSTOP
        try:
            began = time.monotonic()
            shown = repr(serving)
            assert time.monotonic() - began < 5
            assert shown in (
                f"<Serving on {cluster.address}, known so far: no models>",
                f"<Serving on {cluster.address}, it does not answer; known: no models>",
            )
        finally:
            cluster.scheduler.send_signal(18)  # SIGCONT
