"""What the OpenAPI document allows, and what it does not, sent to the gateway: it always answers as documented."""

from __future__ import annotations

import itertools
import json
import random
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings

from symphony_dask.client.model import Model
from symphony_dask.client.serving import Serving
from tests.helpers import models
from tests.helpers.cluster import Cluster
from tests.helpers.gateway_process import GatewayProcess, tensor

pytest.importorskip("uvicorn")
schemathesis = pytest.importorskip("schemathesis")

Deploy = Callable[..., Model]

#: Of the 5xx, only what a request can bring about while scheduler and workers are well: a deadline that is too near.
MAY_FAIL = {504}


@pytest.fixture(scope="module")
def gateway(cluster: Cluster, serving: Serving) -> Iterator[GatewayProcess]:
    with GatewayProcess(cluster.address, "--max-body", "100000") as gateway:
        yield gateway


@pytest.fixture
def names(deploy: Deploy) -> list[str]:
    """Models of one array, of several inputs, and of whatever comes."""
    pair = np.zeros(2, np.float32)
    return [
        deploy(models.same, example=pair, profile="0,0").name,
        deploy(models.scale, example={"x": pair, "factor": np.float32(1)}, profile="0,0").name,
        deploy(models.same, profile="0,0").name,
    ]


def fuzz(gateway: GatewayProcess, names: list[str], seconds: float) -> int:
    """Send generated requests to every operation in turn for so long; returns how many were sent."""
    from schemathesis.specs.openapi import checks

    conform = [
        checks.status_code_conformance,
        checks.content_type_conformance,
        checks.response_headers_conformance,
        checks.response_schema_conformance,
    ]
    schema = schemathesis.openapi.from_url(f"{gateway.url}/openapi.json")
    every = [found.ok() for found in schema.get_all_operations()]
    assert len(every) > 15
    modes = schemathesis.GenerationMode
    # Of a path alone nothing can be wrong.
    pairs = [(o, mode) for o in every for mode in modes if o.body or mode is modes.POSITIVE]
    end = time.monotonic() + seconds
    sent = 0
    for turn in itertools.count():
        for operation, mode in pairs:
            if time.monotonic() > end:
                return sent
            strategy = operation.as_strategy(generation_mode=mode)

            @seed(turn)
            @settings(
                max_examples=10,
                database=None,
                deadline=None,
                phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
            )
            @given(case=strategy)
            def send(case: Any) -> None:
                nonlocal sent
                sent += 1
                if case.path_parameters and sent % 5:  # a made-up name is 404, whatever else is sent
                    case.path_parameters["model"] = names[sent % len(names)]
                    if "version" in case.path_parameters:
                        case.path_parameters["version"] = "1"
                response = case.call(timeout=60)
                shown = f"{case.as_curl_command()}: {response.status_code} {response.text[:500]}"
                assert response.status_code < 500 or response.status_code in MAY_FAIL, shown
                if response.status_code != 431:  # before the head is read, so of no operation
                    case.validate_response(response, checks=conform)

            send()
    return sent


def change(body: bytes, by: random.Random) -> bytes:
    """Some bytes of ``body`` replaced, left out, doubled or put in; now and then none."""
    changed = bytearray(body)
    for _ in range(by.randint(0, 4)):
        at = by.randrange(len(changed) + 1)
        some = by.choice([b"\0", b"\xff", b"-", b"9", b"e9", b"[", b"]", b'"', b"null", b"{}", b",", bytes(4)])
        changed[at : at + by.randint(0, 4)] = some if by.random() < 0.7 else changed[at : at + 8] * 2
    return bytes(changed)


def mutate(gateway: GatewayProcess, names: list[str], requests: int) -> set[int]:
    """Send so many valid requests with some bytes changed; returns the statuses that came."""
    by = random.Random(0)
    text = json.dumps({"inputs": [tensor([[1, 2], [3, 4]], [2, 2])], "parameters": {"slo": "1s"}}).encode()
    binary = {"name": "x", "shape": [1, 2], "datatype": "FP32", "parameters": {"binary_data_size": 8}}
    strings = {"name": "x", "shape": [2], "datatype": "BYTES", "parameters": {"binary_data_size": 11}}
    heads = [json.dumps({"inputs": [entry]}).encode() for entry in (binary, strings)]
    tails = [np.array([1, 2], "<f4").tobytes(), b"\1\0\0\0a\2\0\0\0bc"]
    rows = json.dumps({"instances": [[1, 2], [3, 4]]}).encode()
    seen: set[int] = set()
    for _ in range(requests):
        model, kind = by.choice(names), by.randrange(4)
        path, headers = f"/v2/models/{model}/infer", {"Content-Type": "application/json"}
        if kind == 0:
            body = change(text, by)
        elif kind == 3:
            path, body = f"/v1/models/{model}:predict", change(rows, by)
        else:
            body = change(heads[kind - 1] + tails[kind - 1], by)
            length = len(heads[kind - 1]) + by.choice([0, 0, 0, -1, 1, 5, 10**6])
            headers = {"Inference-Header-Content-Length": str(length)}
        answer = gateway.post(path, body, headers)
        seen.add(answer.status)
        assert answer.status < 500 or answer.status in MAY_FAIL, (path, headers, body, answer)
    return seen


@pytest.mark.slow
def test_generated_requests_are_answered_as_documented(gateway: GatewayProcess, names: list[str]) -> None:
    assert fuzz(gateway, names, 15) > 50


def test_requests_with_bytes_changed_are_answered(gateway: GatewayProcess, names: list[str]) -> None:
    assert {200, 400} <= mutate(gateway, names, 300)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_five_minutes_of_generated_requests_are_answered_as_documented(
    gateway: GatewayProcess, names: list[str]
) -> None:
    assert fuzz(gateway, names, 300) > 1000
    assert {200, 400} <= mutate(gateway, names, 3_000)
