"""Users' functions in pipelines, over HTTP: they run in the gateway, and cannot end it or hold it up."""

from __future__ import annotations

import gzip
import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from symphony_dask.client.model import Model
from symphony_dask.client.serving import Serving
from tests.helpers import models
from tests.helpers.cluster import Cluster, wait_until
from tests.helpers.gateway_process import GatewayProcess, tensor

pytest.importorskip("uvicorn")
pytest.importorskip("starlette")

Deploy = Callable[..., Model]
PAIR = np.zeros(2, np.float32)
X = tensor([1, 2], [1, 2])


@pytest.fixture(scope="module")
def gateway(cluster: Cluster, serving: Serving) -> Iterator[GatewayProcess]:
    with GatewayProcess(cluster.address) as gateway:
        yield gateway


@contextmanager
def pipeline(serving: Serving, gateway: GatewayProcess, stages: list[Any], slo: str = "60s") -> Iterator[str]:
    """Its name, once the gateway serves it."""
    serving.pipeline("piped", stages, slo=slo)
    try:
        wait_until(lambda: gateway.get("/v2/models/piped").status == 200, "the pipeline")
        yield "piped"
    finally:
        serving.undeploy("piped")
        wait_until(lambda: gateway.get("/v2/models/piped").status == 404, "the pipeline to go")


class Lazy(list[float]):
    """It takes for ever to be read."""

    def __iter__(self) -> Iterator[float]:
        while True:
            time.sleep(1)
            yield 1.0


def lazily(x: Any) -> Any:
    return {"lazy": Lazy([1.5])}


def says_much(x: Any) -> Any:
    raise ValueError("\udce9" + "x" * 10_000_000)


def hangs(x: Any) -> Any:
    while True:
        time.sleep(1)


def test_what_a_function_returns_runs_no_code_of_its_own(
    gateway: GatewayProcess, serving: Serving, deploy: Deploy
) -> None:
    double = deploy(models.double, example=PAIR, profile="0.1,0.5")
    with pipeline(serving, gateway, [double, lazily]) as name:
        assert gateway.infer(name, X).json["outputs"][0]["data"] == [1.5]


def test_what_a_function_says_at_length_is_cut_and_valid(
    gateway: GatewayProcess, serving: Serving, deploy: Deploy
) -> None:
    double = deploy(models.double, example=PAIR, profile="0.1,0.5")
    with pipeline(serving, gateway, [double, says_much]) as name:
        answer = gateway.infer(name, X)
        assert (answer.status, len(answer.body) < 50_000) == (500, True)
        assert "raised ValueError" in answer.error
        answer.error.encode()


def test_functions_that_hang_hold_up_nothing_else(gateway: GatewayProcess, serving: Serving, deploy: Deploy) -> None:
    double = deploy(models.double, example=PAIR, profile="0.1,0.5")
    large = gzip.compress(json.dumps({"inputs": [tensor([1, 2], [1, 2])], "id": "x" * 5_000_000}).encode(), 0)
    headers = {"Content-Encoding": "gzip", "Content-Type": "application/json"}
    with pipeline(serving, gateway, [double, hangs], slo="3s") as name, ThreadPoolExecutor(40) as pool:
        under_way = [pool.submit(gateway.infer, name, X) for _ in range(40)]
        for _ in range(5):
            assert gateway.post(f"/v2/models/{double.name}/infer", large, headers).status == 200
        assert {future.result().status for future in under_way} == {504}


def test_a_function_that_hangs_does_not_keep_the_gateway_from_ending(
    cluster: Cluster, serving: Serving, deploy: Deploy
) -> None:
    double = deploy(models.double, example=PAIR, profile="0.1,0.5")
    with (
        GatewayProcess(cluster.address, "--notice", "100ms", "--grace", "1s") as gateway,
        ThreadPoolExecutor(1) as pool,
    ):
        serving.pipeline("hangs", [double, hangs], slo="60s")
        try:
            wait_until(lambda: gateway.get("/v2/models/hangs").status == 200, "the pipeline")
            under_way = pool.submit(gateway.infer, "hangs", X)
            wait_until(lambda: "symphony_gateway_in_flight 1.0" in gateway.get("/metrics").body.decode(), "a request")
            gateway.process.terminate()
            answer = under_way.result(30)
            assert (answer.status, answer.error) == (503, "the gateway has ended, and could not wait for the answer")
            assert gateway.process.wait(30) == 0
        finally:
            serving.undeploy("hangs")


def test_a_request_with_a_time_of_its_own_that_is_too_short_is_told_so(
    gateway: GatewayProcess, serving: Serving, deploy: Deploy
) -> None:
    double = deploy(models.double, example=PAIR, profile="0.1,0.5")
    with pipeline(serving, gateway, [double, double]) as name:
        for model in (double.name, name):
            path = f"/v2/models/{model}/infer"
            for terms, asked in (
                ({"slo": "1us"}, "slo '1us'"),
                ({"slo": "1us", "timeout": 10**9}, "slo '1us'"),
                ({"timeout": 1}, "timeout 1"),
                ({"timeout": "2us"}, "timeout '2us'"),
            ):
                answer = gateway.post(path, {"inputs": [X], "parameters": terms})
                assert (answer.status, answer.error.startswith(f"the request came with {asked}: ")) == (504, True)
            answer = gateway.post(f"/v1/models/{model}:predict", {"instances": [[1, 2]], "parameters": {"slo": "1us"}})
            assert (answer.status, answer.error.startswith("the request came with slo '1us': ")) == (504, True)
