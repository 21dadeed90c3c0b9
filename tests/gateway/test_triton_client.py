"""Triton's own HTTP clients, unchanged, against the gateway."""

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
http = pytest.importorskip("tritonclient.http")

Deploy = Callable[..., Model]


@pytest.fixture(scope="module")
def gateway(cluster: Cluster, serving: Serving) -> Iterator[GatewayProcess]:
    with GatewayProcess(cluster.address) as gateway:
        yield gateway


@pytest.fixture
def client(gateway: GatewayProcess) -> Iterator[Any]:
    with http.InferenceServerClient(gateway.host) as client:
        yield client


#: Two samples each, and the datatype's name.
SAMPLES = [
    ("BOOL", np.array([[True, False], [False, False]])),
    ("UINT8", np.array([[0, 255], [3, 4]], np.uint8)),
    ("INT32", np.array([[-1, 2], [3, 4]], np.int32)),
    ("INT64", np.array([[-(2**62), 2], [3, 4]], np.int64)),
    ("FP16", np.array([[0.5, 2], [3, 4]], np.float16)),
    ("FP32", np.array([[0.5, 2], [3, 4]], np.float32)),
    ("FP64", np.array([[0.1, 2], [3, 4]], np.float64)),
    ("BYTES", np.array([b"a", "é".encode()], object)),
]

#: Triton's client sends and reads FP16 as binary data only.
BINARY_ONLY = ("FP16",)


def ways() -> list[Any]:
    return [
        pytest.param(datatype, values, binary, id=f"{datatype}-{'binary' if binary else 'json'}")
        for datatype, values in SAMPLES
        for binary in (True, False)
        if binary or datatype not in BINARY_ONLY
    ]


def given(datatype: str, values: Any, binary: bool, name: str = "input") -> Any:
    made = http.InferInput(name, list(values.shape), datatype)
    made.set_data_from_numpy(values, binary_data=binary)
    return made


def echo(deploy: Deploy, values: Any) -> str:
    return deploy(models.same, example=values[0], profile="0.1,0.5").name


@pytest.mark.parametrize(("datatype", "values", "binary"), ways())
def test_every_datatype_comes_back_as_it_went(
    client: Any, deploy: Deploy, datatype: str, values: Any, binary: bool
) -> None:
    name = echo(deploy, values)
    assert client.get_model_metadata(name)["inputs"][0]["datatype"] == datatype
    output = http.InferRequestedOutput("output", binary_data=binary)
    found = client.infer(name, [given(datatype, values, binary)], outputs=[output], request_id="7")
    assert found.get_response()["id"] == "7"
    back = found.as_numpy("output")
    expected = values if binary or datatype != "BYTES" else np.array(["a", "é"], object)
    assert back.tolist() == expected.tolist()
    assert back.dtype == (values.dtype if datatype != "BYTES" else object)


def test_bf16_comes_back_as_it_went(client: Any, deploy: Deploy) -> None:
    torch = pytest.importorskip("torch")
    name = deploy(models.same, example=torch.zeros(2, dtype=torch.bfloat16), profile="0.1,0.5").name
    try:
        from ml_dtypes import bfloat16 as dtype  # what newer clients have for it
    except ImportError:
        dtype = np.float32
    values = np.array([[0.5, 2], [3, 4]], dtype)
    back = client.infer(name, [given("BF16", values, True)]).as_numpy("output")
    assert back.tolist() == values.tolist()


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_the_clients_compression_works_both_ways(client: Any, deploy: Deploy, coding: str) -> None:
    values = np.arange(4000, dtype=np.float32).reshape(1, 4000)
    options = {"request_compression_algorithm": coding, "response_compression_algorithm": coding}
    found = client.infer(echo(deploy, values), [given("FP32", values, True)], **options)
    assert found.get_response()["outputs"][0]["shape"] == [1, 4000]
    np.testing.assert_array_equal(found.as_numpy("output"), values)


def test_the_rest_of_the_client_works(client: Any, deploy: Deploy) -> None:
    name = echo(deploy, np.zeros((1, 2), np.float32))
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready(name)
    assert client.is_model_ready(name, "1")
    assert not client.is_model_ready("nobody")
    assert client.get_server_metadata()["name"] == "symphony-dask"
    assert client.get_model_config(name)["name"] == name
    assert name in [entry["name"] for entry in client.get_model_repository_index()]
    assert client.get_inference_statistics(name)["model_stats"][0]["name"] == name
    assert client.get_inference_statistics()["model_stats"]


def test_errors_have_their_status_and_text(client: Any, deploy: Deploy) -> None:
    from tritonclient.utils import InferenceServerException

    name = echo(deploy, np.zeros((1, 2), np.float32))
    with pytest.raises(InferenceServerException, match="has datatype INT64: the model takes FP32") as caught:
        client.infer(name, [given("INT64", np.zeros((1, 2), np.int64), True)])
    assert caught.value.status() == "400"
    with pytest.raises(InferenceServerException, match="model 'nobody' is not deployed"):
        client.infer("nobody", [given("FP32", np.zeros((1, 2), np.float32), True)])


def test_its_time_out_is_the_slo_and_its_priority_ours(client: Any, deploy: Deploy) -> None:
    from tritonclient.utils import InferenceServerException

    name = echo(deploy, np.zeros((1, 2), np.float32))
    asked = [given("FP32", np.zeros((1, 2), np.float32), True)]
    assert client.infer(name, asked, priority=1, timeout=50_000_000).as_numpy("output").shape == (1, 2)
    with pytest.raises(InferenceServerException) as caught:
        client.infer(name, asked, timeout=1)
    assert caught.value.status() == "504"


def test_many_requests_at_once_from_the_client(gateway: GatewayProcess, deploy: Deploy) -> None:
    name = echo(deploy, np.zeros((1, 2), np.float32))
    with http.InferenceServerClient(gateway.host, concurrency=8) as client:
        sent = [
            (values, client.async_infer(name, [given("FP32", values, True)]))
            for values in (np.full((1, 2), i, np.float32) for i in range(100))
        ]
        for values, answer in sent:
            assert answer.get_result().as_numpy("output").tolist() == values.tolist()


@pytest.mark.parametrize(("datatype", "values", "binary"), ways())
def test_the_asyncio_client_gets_every_datatype_back(
    gateway: GatewayProcess, deploy: Deploy, datatype: str, values: Any, binary: bool
) -> None:
    aio = pytest.importorskip("tritonclient.http.aio")
    name = echo(deploy, values)

    async def main() -> None:
        async with aio.InferenceServerClient(gateway.host) as client:
            assert await client.is_server_ready()
            assert (await client.get_model_metadata(name))["inputs"][0]["datatype"] == datatype
            made = aio.InferInput("input", list(values.shape), datatype)
            made.set_data_from_numpy(values, binary_data=binary)
            output = aio.InferRequestedOutput("output", binary_data=binary)
            answers = await asyncio.gather(*(client.infer(name, [made], outputs=[output]) for _ in range(8)))
            expected = values if binary or datatype != "BYTES" else np.array(["a", "é"], object)
            for answer in answers:
                assert answer.as_numpy("output").tolist() == expected.tolist()

    asyncio.run(main())
