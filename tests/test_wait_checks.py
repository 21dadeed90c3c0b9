"""Waits that only an event loop can end raise at once where it cannot run, and what is closed says so."""

from __future__ import annotations

import asyncio
import concurrent.futures
import copy
import os
import pickle
import traceback
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from distributed import Client, LocalCluster

from symphony_dask import as_completed
from symphony_dask.client.future import InferenceFuture
from symphony_dask.client.model import Model
from symphony_dask.client.serving import Serving
from symphony_dask.errors import BadInput, ConnectionLost, WouldDeadlock
from symphony_dask.wait_checks import AnsweringLoop
from tests.helpers import models
from tests.helpers.cluster import Cluster, wait_until
from tests.helpers.serving import LIMIT_S, QUICK

Deploy = Callable[..., Model]
ONE = np.array([1.0])


def pending(loop: asyncio.AbstractEventLoop) -> InferenceFuture:
    future = InferenceFuture(7)
    future.answered_in = AnsweringLoop(loop)
    return future


WAITS = [
    pytest.param(lambda f: f.result(), id="result"),
    pytest.param(lambda f: f.result(timeout=60), id="result with a time-out"),
    pytest.param(lambda f: f.exception(), id="exception"),
    pytest.param(lambda f: concurrent.futures.wait([f]), id="wait"),
    pytest.param(lambda f: list(concurrent.futures.as_completed([f])), id="concurrent.futures.as_completed"),
    pytest.param(lambda f: list(as_completed([f])), id="as_completed"),
]


@pytest.mark.parametrize("wait", WAITS)
def test_waiting_in_the_thread_of_the_loop_that_answers_is_refused(wait: Callable[[InferenceFuture], Any]) -> None:
    async def in_a_coroutine() -> None:
        with pytest.raises(WouldDeadlock, match=r"await the future \(answer = await model.submit\(x\)"):
            wait(pending(asyncio.get_running_loop()))

    asyncio.run(in_a_coroutine())


@pytest.mark.parametrize("wait", WAITS)
def test_waiting_for_a_loop_that_does_not_run_is_refused(wait: Callable[[InferenceFuture], Any]) -> None:
    loop = asyncio.new_event_loop()
    future = pending(loop)
    with pytest.raises(WouldDeadlock, match="does not run"):
        wait(future)
    loop.close()
    with pytest.raises(ConnectionLost, match="is closed: make a new Client and Serving"):
        wait(future)


def test_a_future_that_is_answered_or_only_looked_at_can_be_asked_anywhere() -> None:
    async def in_a_coroutine() -> None:
        future = pending(asyncio.get_running_loop())
        with pytest.raises(TimeoutError):
            future.result(timeout=0)
        future._finish("ok", 5, None)
        assert (future.result(), future.exception()) == (5, None)
        assert list(as_completed([future])) == [future]

    asyncio.run(in_a_coroutine())


@pytest.mark.parametrize("copied", [pickle.dumps, copy.copy, copy.deepcopy])
def test_a_future_is_not_copied(copied: Callable[[Any], Any]) -> None:
    with pytest.raises(BadInput, match=r"send its result\(\)"):
        copied(InferenceFuture())


def in_a_fork(function: Callable[[], Any]) -> str:
    """What ``function`` raised in a forked process."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            function()
            text = "nothing was raised"
        except BaseException:
            text = traceback.format_exc()
        os.write(write, text.splitlines()[-1].encode()[:4000])
        os._exit(0)
    os.close(write)
    with open(read, "rb") as pipe:
        text = pipe.read().decode()
    os.waitpid(child, 0)
    return text


def test_a_forked_process_is_told_that_the_client_is_not_its_own(serving: Serving, deploy: Deploy) -> None:
    model = deploy(models.double, profile=QUICK)
    pipeline = serving.pipeline(f"{model.name}-pipeline", [model], slo="60s")
    future = InferenceFuture()
    future.answered_in = serving.lane._answering
    for ask in (
        lambda: model.submit(ONE),
        lambda: model(ONE),
        lambda: model.submit(ONE, retries=2),
        lambda: pipeline.submit(ONE),
        lambda: pipeline(ONE),
        future.result,
        serving.status,
        lambda: serving.find(model.name),
        lambda: Serving(serving.client),
    ):
        text = in_a_fork(ask)
        assert text.startswith("symphony_dask.errors.ConnectionLost: the Dask client belongs to the process"), text
    assert pipeline(ONE).tolist() == [2.0]
    serving.undeploy(pipeline.name)


def test_a_coroutine_of_an_asynchronous_client_awaits(cluster: Cluster, deploy: Deploy) -> None:
    model = deploy(models.double, profile=QUICK)

    async def ask() -> None:
        async with Client(cluster.address, asynchronous=True, set_as_default=False) as client:
            serving = await Serving(client)
            mine, before = await serving.find(model.name), (await serving.status())["models"][model.name]["outcomes"]
            pipeline = await serving.pipeline(f"{model.name}-async", [model.name], slo="60s")
            for wait in (mine, lambda x: mine.submit(x).result(), pipeline, lambda x: pipeline.submit(x).result()):
                with pytest.raises(WouldDeadlock, match=r"await model\.submit"):
                    wait(ONE)
            assert (await mine.submit(ONE)).tolist() == [2.0]
            assert (await pipeline.submit(ONE)).tolist() == [2.0]
            assert (await asyncio.to_thread(mine, ONE)).tolist() == [2.0]
            assert before["ok"] == 0
            await serving.undeploy(pipeline.name)

    asyncio.run(ask())


def test_a_callback_in_the_loop_is_told_not_to_wait_there(deploy: Deploy) -> None:
    model, raised = deploy(models.double, profile=QUICK), []

    def wait(future: Any) -> None:
        try:
            model.submit(ONE).result()
        except WouldDeadlock as error:
            raised.append(str(error))

    for _ in range(20):  # one that is answered before is called here, where there is nothing to refuse
        future = model.submit(ONE)
        future.add_done_callback(wait)
        future.result(LIMIT_S)
        if raised:
            break
    assert model(ONE).tolist() == [2.0]
    assert "this thread runs the event loop" in raised[0]


def test_a_serving_that_was_not_awaited_says_so(cluster: Cluster, deploy: Deploy) -> None:
    model = deploy(models.double, profile=QUICK)

    async def ask() -> None:
        async with Client(cluster.address, asynchronous=True, set_as_default=False) as client:
            not_awaited = Serving(client)
            theirs = Model(model.name, model.number, model.slo_ns, {}, None, not_awaited.lane)
            with pytest.raises(ConnectionLost, match=r"await Serving\(client\) first"):
                theirs.submit(ONE)

    asyncio.run(ask())


def test_a_serving_is_not_pickled(serving: Serving) -> None:
    with pytest.raises(BadInput, match=r"make a Serving\(client\) where it is needed"):
        pickle.dumps(serving)


def test_a_client_closed_on_a_loop_that_goes_on_says_so_and_is_forgotten() -> None:
    local = {"n_workers": 1, "threads_per_worker": 1, "processes": False, "dashboard_address": ":0"}
    with (
        LocalCluster(**local, resources={"GPU": 1}) as cluster,
        Client(cluster, set_as_default=False) as watching,
        Serving(watching) as other,
    ):
        client = Client(cluster, set_as_default=False)
        serving = Serving(client)
        model = serving.deploy("m", models.double, slo="60s", profile=QUICK)
        assert other.status()["clients"] == 2
        client.close()
        for ask in (serving.status, lambda: serving.find("m"), lambda: model.submit(ONE), lambda: Serving(client)):
            with pytest.raises(ConnectionLost, match="the Dask client is closed: make a new Client and Serving"):
                ask()
        assert "closed" in repr(serving)
        wait_until(lambda: other.status()["clients"] == 1, "the scheduler to forget the client")
        serving.close()
        assert other.find("m")(ONE).tolist() == [2.0]
        other.undeploy("m")
