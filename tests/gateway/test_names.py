"""Names and other strings as people and attackers choose them, over every route of the gateway."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest

from symphony_dask.client.model import Model
from symphony_dask.client.serving import Serving
from tests.helpers import models
from tests.helpers.cluster import Cluster
from tests.helpers.gateway_process import GatewayProcess, tensor

pytest.importorskip("uvicorn")
pytest.importorskip("starlette")

Deploy = Callable[..., Model]
PAIR = np.zeros(2, np.float32)

NAMES = [
    *("team/model", "a b", "é", "..", "a?b#c", "100%", "%2F", "a/", '<b>"&'),
    *("models", "ready", "infer", "versions", "config", "stats", "a:predict", "x/versions/1"),
]


@pytest.fixture(scope="module")
def gateway(cluster: Cluster, serving: Serving) -> Iterator[GatewayProcess]:
    with GatewayProcess(cluster.address) as gateway:
        yield gateway


@pytest.fixture(scope="module")
def named(serving: Serving) -> Iterator[None]:
    """A model that doubles under each of NAMES."""
    for name in NAMES:
        serving.deploy(name, models.double, slo="60s", example=PAIR, profile="0.1,0.5")
    yield
    for name in NAMES:
        serving.undeploy(name)


def check_routes(gateway: GatewayProcess, name: str, path: str) -> None:
    for version in ("", "/versions/1"):
        stem = f"/v2/models/{path}{version}"
        metadata = gateway.get(stem).json
        assert (metadata["name"], metadata["versions"]) == (name, ["1"])
        assert gateway.get(f"{stem}/ready").json == {"name": name, "ready": True}
        assert gateway.get(f"{stem}/config").json["name"] == name
        assert [row["name"] for row in gateway.get(f"{stem}/stats").json["model_stats"]] == [name]
        answer = gateway.post(f"{stem}/infer", {"inputs": [tensor([1, 2], [1, 2])]})
        assert (answer.json["model_name"], answer.json["outputs"][0]["data"]) == (name, [2.0, 4.0])
        method = gateway.get(f"{stem}/infer")
        assert (method.status, method.headers["allow"]) == (405, "POST")
        stem = f"/v1/models/{path}{version}"
        assert gateway.get(stem).json["name"] == name
        assert gateway.post(f"{stem}:predict", {"instances": [[1, 2]]}).json == {"predictions": [[2.0, 4.0]]}


@pytest.mark.parametrize("name", NAMES)
def test_a_model_of_any_name_is_reached_on_every_route(gateway: GatewayProcess, named: None, name: str) -> None:
    check_routes(gateway, name, quote(name, safe=""))


def test_slashes_of_a_name_may_stand_as_they_are(gateway: GatewayProcess, named: None) -> None:
    check_routes(gateway, "team/model", "team/model")
    assert gateway.get("/v2/models/x/versions/1").json["name"] == "x/versions/1"
    assert gateway.get("/v2/models/x/versions/1/ready").json == {"name": "x/versions/1", "ready": True}


def test_of_the_readings_of_a_path_the_first_that_is_deployed_holds(gateway: GatewayProcess, deploy: Deploy) -> None:
    name = deploy(models.double, example=PAIR, profile="0.1,0.5").name
    assert gateway.get(f"/v2/models/{name}/ready").json == {"name": name, "ready": True}
    assert gateway.get(f"/v2/models/{name}/versions/2").error == f"version '2' of model '{name}' is not deployed"
    assert gateway.get("/v2/models/no/one/ready").error == "model 'no/one' is not deployed"
    assert gateway.get("/v2/models/no%2Fone").error == "model 'no/one' is not deployed"


def test_names_are_listed(gateway: GatewayProcess, named: None) -> None:
    found = gateway.get("/v1/models")
    assert set(NAMES) <= set(found.json["models"])
    assert set(NAMES) <= {row["name"] for row in gateway.post("/v2/repository/index", {}).json}
    every = gateway.get("/v2/models/stats").json
    assert set(NAMES) <= {row["name"] for row in every["model_stats"]}
    assert every["name"] == "stats"  # the metadata of the model of this name, at the same path
    assert 'model="team/model"' in gateway.get("/metrics").body.decode()


def test_the_page_lists_the_models_and_escapes_their_names(gateway: GatewayProcess, named: None) -> None:
    found = gateway.get("/", Accept="text/html,application/xhtml+xml,*/*;q=0.8")
    assert (found.status, found.headers["content-type"]) == (200, "text/html; charset=utf-8")
    text = found.body.decode()
    assert '<a href="/v2/models/team%2Fmodel/versions/1">team/model</a>' in text
    assert "&lt;b&gt;&quot;&amp;</a>" in text
    assert "<b>" not in text
    assert '<a href="/openapi.json">' in text
    assert gateway.get("/").json["status"] == "alive"


def test_a_slash_at_the_end_changes_nothing(gateway: GatewayProcess, deploy: Deploy) -> None:
    name = deploy(models.double, example=PAIR, profile="0.1,0.5").name
    for path in ("/v2", "/v2/health/live", "/v1/models", f"/v2/models/{name}", f"/v2/models/{name}/config"):
        assert gateway.get(path + "/").json == gateway.get(path).json


@pytest.mark.parametrize(
    ("method", "path", "text"),
    [
        ("GET", "/nowhere", "/nowhere is not offered here; see /openapi.json"),
        ("POST", "/v2/health/live", "method POST is not offered here: GET, HEAD"),
        ("GET", "/v2/repository/index", "method GET is not offered here: POST"),
        ("GET", "/v2/models/m/infer", "method GET is not offered here: POST"),
        ("DELETE", "/v1/models/m:predict", "method DELETE is not offered here: POST"),
        ("PUT", "/v2/models/m/config", "method PUT is not offered here: GET, HEAD"),
        ("POST", "/v2/models/stats", "method POST is not offered here: GET, HEAD"),
        ("POST", "/v2/repository/models/m/load", "/v2/repository/models/m/load is not offered here; see /openapi.json"),
        ("GET", "/%ED%A0%80%00%0A", "/���\\x00\n is not offered here; see /openapi.json"),
    ],
)
def test_texts_of_errors_are_whole(gateway: GatewayProcess, method: str, path: str, text: str) -> None:
    assert gateway.ask(method, path, None, {}).error == text


HOSTILE = ["\ud800", "x \udce9", "\0", "\r\n", "é" * 10_000, "x" * 15_000, "\U0001f600", "{}%s%n", "../../etc", "NaN"]


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_any_string_anywhere_in_a_body_is_answered(gateway: GatewayProcess, deploy: Deploy, text: str) -> None:
    array = deploy(models.same, example=PAIR, profile="0.1,0.5").name
    anything = deploy(models.same, profile="0.1,0.5").name
    for model in (array, anything):
        one = tensor([1, 2], [1, 2])
        v2 = [
            {"inputs": [one | {"name": text}]},
            {"inputs": [one], "id": text},
            {"inputs": [one], text: 1},
            {"inputs": [one], "outputs": [{"name": text}]},
            {"inputs": [one], "outputs": [{"name": text}, {"name": "b"}]},
            {"inputs": [one], "parameters": {text: text}},
            *({"inputs": [one], "parameters": {name: text}} for name in ("slo", "timeout", "priority", "sequence_id")),
            {"inputs": [one | {"datatype": text}]},
            {"inputs": [one | {"shape": [text]}]},
            {"inputs": [one | {"data": [text]}]},
            {"inputs": [one | {"parameters": {"binary_data_size": text, "content_type": text}}]},
            {"inputs": [tensor([text], [1], "BYTES")]},
            {"inputs": [tensor([text], [1], "BYTES", "a"), tensor([text], [1], "BYTES", text)]},
        ]
        v1 = [
            {"instances": [text]},
            {"instances": [{text: 1}]},
            {"instances": [{text: text, "b": [1]}]},
            {"instances": [{"b64": text}]},
            {"inputs": {text: [1], "b": [1, 2]}},
            {"instances": [1], "signature_name": text},
            {"instances": [1], "parameters": {"slo": text}},
        ]
        for path, bodies in ((f"/v2/models/{model}/infer", v2), (f"/v1/models/{model}:predict", v1)):
            for body in bodies:
                check_answer(gateway.post(path, body), body)
                raw = json.dumps(body, ensure_ascii=False).encode("utf-8", "surrogatepass")
                check_answer(gateway.post(path, raw, {"Content-Type": "application/json"}), body)


@pytest.mark.parametrize("text", [t for t in HOSTILE if "\ud800" not in t and "\udce9" not in t], ids=repr)
def test_any_string_in_a_path_is_answered(gateway: GatewayProcess, text: str) -> None:
    name = quote(text[:1500], safe="")
    for path in (f"/{name}", f"/v2/models/{name}", f"/v2/models/m/versions/{name}/ready", f"/v1/models/{name}:predict"):
        for method in ("GET", "POST"):
            check_answer(gateway.ask(method, path, b"{}" if method == "POST" else None, {}), path)


@pytest.mark.parametrize(
    "header",
    [
        b"Host: [",
        b"Host: a]b@c:d/e?f#g",
        b"Host: \xff\xfe",
        b"Content-Type: \xff\xfe; charset=\x80",
        b"Content-Encoding: \xff" + b"x" * 5000,
        b"Accept-Encoding: gzip;q=\xff, \x80",
        b"Accept: \xff\xfe",
        b"Inference-Header-Content-Length: \xb2",
        b"Inference-Header-Content-Length: 99999999999999999999999999",
        b"Content-Length: 99999999999999999999999999",
        b"Content-Length: -1",
        b"Authorization: Bearer \xff",
        b"X-Any: \xff\xfe",
        b"Expect: \xff",
        b"Connection: Upgrade\r\nUpgrade: \xff",
        b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA",
    ],
    ids=range(16),
)
def test_any_value_of_a_header_is_answered(gateway: GatewayProcess, deploy: Deploy, header: bytes) -> None:
    name = deploy(models.same, example=PAIR, profile="0.1,0.5").name
    body = json.dumps({"inputs": [tensor([1, 2], [1, 2])]}).encode()
    for line in (
        f"POST /v2/models/{name}/infer",
        "GET /nowhere",
        "GET /",
        "GET /v2/",
        f"GET /v2/models/{name}",
        "PUT *",
    ):
        fields = [header] if header.startswith(b"Content-Length") else [header, b"Content-Length: %d" % len(body)]
        head = b"\r\n".join([f"{line} HTTP/1.1".encode(), *fields, b"Connection: close", b"", b""])
        answer = exchange(gateway, head + body)
        assert answer.startswith(b"HTTP/1.1 "), (line, answer)
        assert int(answer[9:12]) < 500, (line, answer)
        if b"h2c" in header and line.startswith("POST"):
            assert answer.startswith(b"HTTP/1.1 200 "), answer  # as curl --http2 and Java's client ask


def test_requests_that_offer_another_protocol_are_answered_each(gateway: GatewayProcess, deploy: Deploy) -> None:
    name = deploy(models.double, example=PAIR, profile="0.1,0.5").name
    body = json.dumps({"inputs": [tensor([1, 2], [1, 2])]}).encode()
    offer = b"Host: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n"
    head = f"POST /v2/models/{name}/infer HTTP/1.1\r\nContent-Length: {len(body)}\r\n".encode()
    chunked = f"POST /v2/models/{name}/infer HTTP/1.1\r\nTransfer-Encoding: chunked\r\n".encode()
    chunks = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
    last = b"GET /v2/health/live HTTP/1.1\r\nConnection: close, Upgrade\r\nUpgrade: websocket\r\n\r\n"
    found = exchange(gateway, (head + offer + b"\r\n" + body) * 2 + chunked + offer + b"\r\n" + chunks + last)
    assert (found.count(b"HTTP/1.1 200 "), found.count(b"[2.0,4.0]"), found.count(b"live")) == (4, 3, 1)
    assert exchange(gateway, b"CONNECT x:1 HTTP/1.1\r\nHost: x\r\n\r\n").startswith(b"HTTP/1.1 400 ")


def exchange(gateway: GatewayProcess, data: bytes) -> bytes:
    """What comes back until the gateway closes the connection."""
    host, port = gateway.host.split(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(data)
        found = b""
        while chunk := connection.recv(65536):
            found += chunk
        return found


def check_answer(answer: Any, sent: Any) -> None:
    """Not the server's fault, and valid JSON whose strings are valid Unicode."""
    assert answer.status < 500 or answer.status == 504, (sent, answer)
    found = answer.json
    json.dumps(found, ensure_ascii=False).encode()
    if answer.status != 200:
        assert len(found["error"]) < 20_000
