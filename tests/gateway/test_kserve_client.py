"""KServe's own client, unchanged, against the gateway, by both of its protocols."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from symphony_dask.client.model import Model
from symphony_dask.client.serving import Serving
from tests.helpers import models
from tests.helpers.cluster import Cluster
from tests.helpers.gateway_process import GatewayProcess

pytest.importorskip("uvicorn")
kserve = pytest.importorskip("kserve")

Deploy = Callable[..., Model]
PAIR = np.zeros(2, np.float32)


@pytest.fixture(scope="module")
def gateway(cluster: Cluster, serving: Serving) -> Iterator[GatewayProcess]:
    with GatewayProcess(cluster.address) as gateway:
        yield gateway


def ask(protocol: str, asks: Callable[[Any], Any]) -> Any:
    """What ``await asks(client)`` gives."""

    async def main() -> Any:
        config = kserve.RESTConfig(protocol=protocol, timeout=30)
        async with kserve.InferenceRESTClient(config) as client:
            return await asks(client)

    return asyncio.run(main())


@pytest.mark.parametrize("protocol", ["v1", "v2"])
def test_server_and_models_are_live_and_ready(gateway: GatewayProcess, deploy: Deploy, protocol: str) -> None:
    name = deploy(models.double, example=PAIR, profile="0.1,0.5").name
    assert ask(protocol, lambda client: client.is_server_live(gateway.url)) is True
    assert ask(protocol, lambda client: client.is_model_ready(gateway.url, name)) is True
    if protocol == "v2":
        assert ask(protocol, lambda client: client.is_server_ready(gateway.url)) is True


@pytest.mark.parametrize("binary", [True, False], ids=["binary", "json"])
def test_it_infers_by_v2(gateway: GatewayProcess, deploy: Deploy, binary: bool) -> None:
    name = deploy(models.double, example=PAIR, profile="0.1,0.5").name
    given = kserve.InferInput("input", [1, 2], "FP32")
    given.set_data_from_numpy(np.array([[1, 2]], np.float32), binary_data=binary)
    request = kserve.InferRequest(name, [given], parameters={"binary_data_output": True} if binary else None)
    found = ask("v2", lambda client: client.infer(gateway.url, request, model_name=name))
    assert (found.model_name, found.id) == (name, request.id or found.id)
    assert found.outputs[0].as_numpy().tolist() == [[2.0, 4.0]]


def test_it_predicts_by_v1(gateway: GatewayProcess, deploy: Deploy) -> None:
    name = deploy(models.double, example=PAIR, profile="0.1,0.5").name
    found = ask("v1", lambda client: client.infer(gateway.url, {"instances": [[1, 2]]}, model_name=name))
    assert found == {"predictions": [[2.0, 4.0]]}


def test_its_errors_have_our_text(gateway: GatewayProcess) -> None:
    with pytest.raises(Exception, match="model 'nobody' is not deployed"):
        ask("v1", lambda client: client.infer(gateway.url, {"instances": [[1]]}, model_name="nobody"))
    with pytest.raises(Exception, match="model 'nobody' is not deployed"):
        ask("v1", lambda client: client.is_model_ready(gateway.url, "nobody"))
    assert ask("v2", lambda client: client.is_model_ready(gateway.url, "nobody")) is False
