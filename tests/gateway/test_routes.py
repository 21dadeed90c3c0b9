"""The gateway as a process, before a real cluster, spoken to over HTTP."""

from __future__ import annotations

import gzip
import json
import socket
import ssl
import struct
import time
import urllib.request
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest

from symphony_dask.backends.emulated import Emulated
from symphony_dask.client.model import Model
from symphony_dask.client.serving import Serving
from tests.helpers import models
from tests.helpers.cluster import Cluster, wait_until
from tests.helpers.gateway_process import GatewayProcess, tensor
from tests.helpers.models import Gate

pytest.importorskip("uvicorn")
pytest.importorskip("starlette")

Deploy = Callable[..., Model]
PAIR = np.zeros(2, np.float32)


@pytest.fixture(scope="module")
def gateway(cluster: Cluster, serving: Serving) -> Iterator[GatewayProcess]:
    with GatewayProcess(cluster.address) as gateway:
        yield gateway


@pytest.fixture
def double(deploy: Deploy) -> str:
    """The name of a model that doubles arrays of two FP32."""
    return deploy(models.double, example=PAIR, profile="0.1,0.5").name


# The protocol


def test_a_pipeline_is_served_as_a_model(gateway: GatewayProcess, serving: Serving, double: str) -> None:
    serving.pipeline("twice-doubled", [double, double], slo="60s")
    try:
        answer = gateway.infer("twice-doubled", tensor([1, 2, 3, 4], [2, 2]))
        assert (answer.status, answer.json["outputs"][0]["data"]) == (200, [4.0, 8.0, 12.0, 16.0])
        found = gateway.get("/v2/models/twice-doubled").json
        assert found["inputs"] == [{"name": "input", "datatype": "FP32", "shape": [-1, 2]}]
        assert found["outputs"] == [{"name": "output", "datatype": "FP32", "shape": [-1, 2]}]
        late = gateway.infer("twice-doubled", tensor([1, 2], [1, 2]), parameters={"slo": "1us"})
        assert late.status == 504
    finally:
        serving.undeploy("twice-doubled")


def test_what_a_function_of_a_pipeline_raises_is_told(gateway: GatewayProcess, serving: Serving, double: str) -> None:
    serving.pipeline("raises", [double, lambda x: {}[x.size]], slo="60s")
    try:
        answer = gateway.infer("raises", tensor([1, 2], [1, 2]))
        assert (answer.status, answer.error) == (500, "a function of pipeline 'raises' raised KeyError: 2")
    finally:
        serving.undeploy("raises")


def test_the_server_and_its_models_describe_themselves(gateway: GatewayProcess, double: str) -> None:
    assert gateway.get("/v2").json["name"] == "symphony-dask"
    assert gateway.get("/v2/health/live").json == {"live": True}
    assert gateway.get("/v2/health/ready").json == {"ready": True}
    assert gateway.get(f"/v2/models/{double}/ready").json == {"name": double, "ready": True}
    found = gateway.get(f"/v2/models/{double}/versions/1").json
    assert found["inputs"] == [{"name": "input", "datatype": "FP32", "shape": [-1, 2]}]
    assert found["outputs"] == [{"name": "output", "datatype": "FP32", "shape": [-1, 2]}]
    config = gateway.get(f"/v2/models/{double}/config").json
    assert config["input"] == [{"name": "input", "data_type": "TYPE_FP32", "dims": [2]}]
    assert {"name": double, "version": "1", "state": "READY", "reason": ""} in gateway.post(
        "/v2/repository/index", {}
    ).json
    assert gateway.get(f"/v1/models/{double}").json["model_version_status"][0]["state"] == "AVAILABLE"
    assert "/v2/models/{model}/infer" in gateway.get("/openapi.json").json["paths"]


def test_json_is_inferred_one_sample_or_several(gateway: GatewayProcess, double: str) -> None:
    several = gateway.infer(double, tensor([[1, 2], [3, 4]], [2, 2]), id="a")
    assert several.status == 200
    assert several.headers["content-type"] == "application/json"
    assert several.json == {
        "model_name": double,
        "model_version": "1",
        "id": "a",
        "outputs": [{"name": "output", "datatype": "FP32", "shape": [2, 2], "data": [2.0, 4.0, 6.0, 8.0]}],
    }
    one = gateway.infer(double, tensor([1, 2], [2], name="anything"), outputs=[{"name": "mine"}])
    assert one.json["outputs"] == [{"name": "mine", "datatype": "FP32", "shape": [2], "data": [2.0, 4.0]}]


def test_binary_data_follows_the_json(gateway: GatewayProcess, double: str) -> None:
    head = {
        "inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "parameters": {"binary_data_size": 8}}],
        "parameters": {"binary_data_output": True},
    }
    text = json.dumps(head).encode()
    headers = {"Inference-Header-Content-Length": str(len(text)), "Content-Type": "application/octet-stream"}
    answer = gateway.post(f"/v2/models/{double}/infer", text + np.array([1, 2], "<f4").tobytes(), headers)
    assert answer.status == 200, answer.body
    split = int(answer.headers["inference-header-content-length"])
    assert json.loads(answer.body[:split])["outputs"][0]["parameters"] == {"binary_data_size": 8}
    assert np.frombuffer(answer.body[split:], "<f4").tolist() == [2.0, 4.0]


def test_a_body_without_json_is_one_sample(gateway: GatewayProcess, double: str) -> None:
    headers = {"Inference-Header-Content-Length": "0"}
    answer = gateway.post(f"/v2/models/{double}/infer", np.array([1, 2], "<f4").tobytes(), headers)
    assert answer.body.endswith(np.array([2, 4], "<f4").tobytes())


def test_predict_takes_rows_and_columns(gateway: GatewayProcess, double: str) -> None:
    rows = gateway.post(f"/v1/models/{double}:predict", {"instances": [[1, 2], [3, 4]]})
    assert rows.json == {"predictions": [[2.0, 4.0], [6.0, 8.0]]}
    columns = gateway.post(f"/v1/models/{double}/versions/1:predict", {"inputs": [[1, 2]]})
    assert columns.json == {"outputs": [[2.0, 4.0]]}


def test_a_model_of_several_inputs_takes_them_by_name(gateway: GatewayProcess, deploy: Deploy) -> None:
    model = deploy(models.scale, example={"x": PAIR, "factor": np.float32(1)}, profile="0.1,0.5")
    found = gateway.get(f"/v2/models/{model.name}").json
    assert {(t["name"], tuple(t["shape"])) for t in found["inputs"]} == {("x", (-1, 2)), ("factor", (-1,))}
    assert [t["name"] for t in found["outputs"]] == ["scaled", "factor"]
    answer = gateway.infer(model.name, tensor([[1, 2]], [1, 2], name="x"), tensor([3], [1], name="factor"))
    assert [(o["name"], o["data"]) for o in answer.json["outputs"]] == [("scaled", [3.0, 6.0]), ("factor", [3.0])]


def test_bodies_may_be_compressed_both_ways(gateway: GatewayProcess, deploy: Deploy) -> None:
    model = deploy(models.double, example=np.zeros(1000, np.float32), profile="0.1,0.5")
    text = json.dumps({"inputs": [tensor([1.5] * 1000, [1, 1000])]}).encode()
    expected = [3.0] * 1000
    for coding, pack, unpack in (
        ("gzip", gzip.compress, gzip.decompress),
        ("deflate", zlib.compress, zlib.decompress),
    ):
        headers = {"Content-Encoding": coding, "Accept-Encoding": coding, "Content-Type": "application/json"}
        answer = gateway.post(f"/v2/models/{model.name}/infer", pack(text), headers)
        assert answer.headers["content-encoding"] == coding
        assert json.loads(unpack(answer.body))["outputs"][0]["data"] == expected


# Errors


def test_what_is_wrong_with_a_request_decides_its_status(gateway: GatewayProcess, double: str) -> None:
    path = f"/v2/models/{double}/infer"
    wrong = gateway.infer(double, tensor([1, 2, 3], [1, 3]))
    assert wrong.status == 400
    assert "input 'input' has shape [1, 3]: the model takes [2] for one sample, or [n, 2] for n" in wrong.error
    assert gateway.infer("nobody", tensor([1], [1])).status == 404
    assert gateway.get("/v2/models/nobody").error == "model 'nobody' is not deployed"
    assert gateway.post(f"/v2/models/{double}/versions/9/infer", {}).status == 404
    assert gateway.get("/nowhere").status == 404
    method = gateway.get(path)
    assert (method.status, method.headers["allow"]) == (405, "POST")
    assert gateway.post("/v2/health/live", {}).status == 405
    assert gateway.post(path, b"<x/>", {"Content-Type": "text/xml"}).status == 415
    assert gateway.post(path, b"{}", {"Content-Encoding": "br"}).status == 415
    assert gateway.post(path, b"x", {"Inference-Header-Content-Length": "2"}).status == 400
    assert gateway.post(path, b"no gzip", {"Content-Encoding": "gzip"}).status == 400
    assert gateway.infer(double, tensor([1, 2], [2]), parameters={"slo": "soon"}).status == 400


def test_a_model_that_raises_is_500_with_its_traceback(gateway: GatewayProcess, deploy: Deploy) -> None:
    model = deploy(models.divide, profile="0.1,0.5")
    answer = gateway.infer(model.name, tensor(["a"], [1], "BYTES"))
    assert answer.status == 500
    assert "TypeError: unsupported operand" in answer.error


def test_a_full_queue_is_429_and_a_deadline_that_passed_504(
    gateway: GatewayProcess, deploy: Deploy, gate: Gate, serving: Serving
) -> None:
    model = deploy(gate.model(), example=None, profile="0.1,0.5", max_batch=1, queue_limit=1)
    ask = lambda **terms: gateway.infer(model.name, tensor([1], [1]), parameters=terms)  # noqa: E731
    with ThreadPoolExecutor(8) as pool:
        status = lambda: serving.status()["models"][model.name]  # noqa: E731
        # Two slots with two batches each, then one in the queue.
        under_way = []
        for n in range(1, 5):
            under_way.append(pool.submit(ask))
            wait_until(lambda n=n: status()["batches"] == n, "a batch to be sent")
        under_way.append(pool.submit(ask))
        wait_until(lambda: status()["queued"] == 1, "a queued request")
        full = ask()
        gate.open()
        assert [future.result().status for future in under_way] == [200] * 5
    assert (full.status, full.headers["retry-after"]) == (429, "1")
    assert "is full" in full.error
    late = gateway.infer(model.name, tensor([1], [1]), parameters={"timeout": 1})
    assert late.status == 504


def test_a_client_that_hangs_up_takes_its_request_out_of_the_queue(
    gateway: GatewayProcess, deploy: Deploy, gate: Gate, serving: Serving
) -> None:
    model = deploy(gate.model(), profile="0.1,0.5", max_batch=1)
    with ThreadPoolExecutor(4) as pool:
        status = lambda: serving.status()["models"][model.name]  # noqa: E731
        for n in range(1, 5):
            pool.submit(gateway.infer, model.name, tensor([1], [1]))
            wait_until(lambda n=n: status()["batches"] == n, "a batch to be sent")
        text = json.dumps({"inputs": [tensor([1], [1])]}).encode()
        with raw(gateway) as connection:
            connection.sendall(head(f"/v2/models/{model.name}/infer", f"Content-Length: {len(text)}") + text)
            wait_until(lambda: status()["queued"] == 1, "a queued request")
        wait_until(lambda: status()["outcomes"]["cancelled"] == 1, "the request to be cancelled")
        gate.open()
    wait_until(lambda: metric(gateway, "requests_total", model=model.name, code="499") == 1, "the count")


def test_no_gpu_is_503_and_a_scheduler_that_is_gone_too_until_it_is_back() -> None:
    with Cluster(0, settings={"DASK_SYMPHONY__POLICY": "eager"}) as cluster, GatewayProcess(cluster.address) as gateway:
        assert gateway.infer("m", tensor([1], [1])).status == 404
        worker = cluster.add_worker()
        with Serving(cluster.client()) as serving:
            serving.deploy("m", models.double, slo="60s", profile="0.1,0.5", timeout="60s")
            assert gateway.infer("m", tensor([1], [1])).status == 200
            worker.kill()
            wait_until(lambda: not serving.status()["workers"], "the worker to be missed")
            no_gpu = gateway.infer("m", tensor([1], [1]))
            assert (no_gpu.status, no_gpu.headers["retry-after"]) == (503, "1")
            wait_until(lambda: gateway.get("/v2/models/m/ready").status == 503, "the model not to be ready")
        cluster.scheduler.kill()

        def notices() -> Any:
            gone = gateway.infer("m", tensor([1], [1]))
            return gone if "no connection to the scheduler" in gone.error else None

        gone = wait_until(notices, "the gateway to notice that")
        assert (gone.status, gone.headers["retry-after"]) == (503, "1")
        assert gateway.get("/v2/health/ready").status == 503
        assert gateway.get("/v2/health/live").status == 200
        cluster.restart_scheduler()
        wait_until(lambda: gateway.get("/v2/health/ready").status == 200, "the gateway to reconnect", 60)


# Limits


def test_bodies_are_limited_as_they_come_and_decompressed(cluster: Cluster, serving: Serving, double: str) -> None:
    with GatewayProcess(cluster.address, "--max-body", "10000") as gateway:
        path = f"/v2/models/{double}/infer"
        large = gateway.post(path, b" " * 10_001)
        assert (large.status, large.error) == (413, "the body is too large: the most is 10000 bytes")
        assert gateway.post(path, gzip.compress(bytes(10**7)), {"Content-Encoding": "gzip"}).status == 413
        chunk = b"1388\r\n" + b" " * 5000 + b"\r\n"
        with raw(gateway) as connection:
            connection.sendall(head(path, "Transfer-Encoding: chunked") + chunk * 3)
            assert connection.recv(100).startswith(b"HTTP/1.1 413 ")


def test_slow_and_endless_heads_and_bodies_are_cut_off(cluster: Cluster, serving: Serving, double: str) -> None:
    with GatewayProcess(cluster.address, "--read-timeout", "1s") as gateway:
        path = f"/v2/models/{double}/infer"
        with raw(gateway) as endless:
            endless.sendall(b"GET / HTTP/1.1\r\n" + b"x: y\r\n" * 1000)
            assert b"HTTP/1.1 431 " in endless.recv(100)
        with raw(gateway) as endless:
            endless.sendall(b"GET / HTTP/1.1\r\nx: " + b"y" * 20_000)
            assert endless.recv(100).startswith(b"HTTP/1.1 431 ")
        with raw(gateway) as slow_body, raw(gateway) as slow_head, raw(gateway) as silent:
            slow_body.sendall(head(path, "Content-Length: 100") + b"{")
            slow_head.sendall(b"POST / HTTP/1.1\r\nHost: x\r\n")
            assert slow_body.recv(100).startswith(b"HTTP/1.1 408 ") or slow_body.recv(100) == b""
            assert slow_head.recv(100) == b""
            assert silent.recv(100) == b""


def test_empty_lines_keep_no_idle_connection_open(cluster: Cluster, serving: Serving) -> None:
    with GatewayProcess(cluster.address, "--read-timeout", "1s") as gateway, raw(gateway) as connection:
        connection.sendall(head("/v2").replace(b"POST", b"GET"))
        assert connection.recv(10_000).startswith(b"HTTP/1.1 200 ")
        connection.settimeout(0.2)
        began = time.monotonic()
        while time.monotonic() - began < 20:
            try:
                connection.sendall(b"\r\n")
                if connection.recv(100) == b"":
                    break
            except TimeoutError:
                continue
            except ConnectionError:
                break
        assert time.monotonic() - began < 10


def test_who_does_not_read_an_answer_is_cut_off(cluster: Cluster, serving: Serving, deploy: Deploy) -> None:
    name = deploy(models.megabyte, example=b"x", profile="0.1,0.5").name
    inputs = [tensor(["x"] * 30, [30], "BYTES")]
    body = json.dumps({"inputs": inputs, "parameters": {"binary_data_output": True}}).encode()
    with GatewayProcess(cluster.address, "--read-timeout", "1s") as gateway, raw(gateway) as deaf:
        deaf.sendall(head(f"/v2/models/{name}/infer", f"Content-Length: {len(body)}") + body)
        assert deaf.recv(10).startswith(b"HTTP/1.1 2")  # 30 MB follow
        assert is_open(deaf)
        wait_until(lambda: not is_open(deaf), "the connection to be ended", 20)


def is_open(connection: socket.socket) -> bool:
    """Whether the other end of a connection on this machine is established, by what the kernel says."""
    here, there = (f":{port:04X}" for port in (connection.getsockname()[1], connection.getpeername()[1]))
    rows = [line.split()[1:4] for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return any(local.endswith(there) and remote.endswith(here) and state == "01" for local, remote, state in rows)


def test_more_than_the_most_requests_at_once_are_429(
    cluster: Cluster, serving: Serving, deploy: Deploy, gate: Gate
) -> None:
    model = deploy(gate.model(), profile="0.1,0.5")
    with GatewayProcess(cluster.address, "--max-concurrency", "1") as gateway, ThreadPoolExecutor(1) as pool:
        first = pool.submit(gateway.infer, model.name, tensor([1], [1]))
        wait_until(lambda: metric(gateway, "in_flight") == 1, "a request under way")
        assert gateway.infer(model.name, tensor([1], [1])).status == 429
        gate.open()
        assert first.result().status == 200


def test_who_hangs_up_with_requests_under_way_has_them_cancelled_and_leaves_no_trace_in_the_log(
    cluster: Cluster, serving: Serving, deploy: Deploy, gate: Gate
) -> None:
    model = deploy(gate.model(), profile="0.1,0.5")
    body = json.dumps({"inputs": [tensor([1], [1])]}).encode()
    request = head(f"/v2/models/{model.name}/infer", f"Content-Length: {len(body)}") + body
    with GatewayProcess(cluster.address) as gateway:
        connection = raw(gateway)
        connection.sendall(2 * request)  # the second waits for the first
        wait_until(lambda: metric(gateway, "in_flight") == 1, "a request under way")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.close()
        wait_until(lambda: metric(gateway, "in_flight") == 0, "its end")
        gate.open()
    assert "ERROR" not in gateway.errors
    assert "Traceback" not in gateway.errors


def test_a_length_beside_chunks_is_no_request(gateway: GatewayProcess) -> None:
    with raw(gateway) as connection:
        connection.sendall(head("/v2", "Content-Length: 4", "Transfer-Encoding: chunked") + b"0\r\n\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 400 ")


# Tokens, TLS, processes, metrics, the end


def test_with_a_token_file_a_token_must_come_with_each_request_but_probes(cluster: Cluster, tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    file.write_text("# ours\nfirst\nsecond\n")
    with GatewayProcess(cluster.address, "--token-file", str(file)) as gateway:
        assert gateway.get("/v2/health/live").status == 200
        for wrong in (
            {},
            {"Authorization": "Bearer third"},
            {"Authorization": "Basic first"},
            {"Authorization": "first"},
        ):
            answer = gateway.ask("GET", "/v2", None, wrong)
            assert (answer.status, answer.headers["www-authenticate"]) == (401, "Bearer")
        assert gateway.post("/v2/models/m/infer", {}).status == 401
        assert gateway.get("/v2", Authorization="Bearer second").status == 200
        file.write_text("third\n")
        wait_until(lambda: gateway.get("/v2", Authorization="Bearer third").status == 200, "the new tokens to hold")
        assert gateway.get("/v2", Authorization="Bearer second").status == 401


def test_it_serves_https(cluster: Cluster, tmp_path: Path) -> None:
    cert, key = certificate(tmp_path)
    arguments = ("--tls-cert", str(cert), "--tls-key", str(key))
    with GatewayProcess(cluster.address, *arguments, ready=False) as gateway:
        assert gateway.url.startswith("https://")
        context = ssl.create_default_context(cafile=str(cert))
        with urllib.request.urlopen(f"{gateway.url}/v2/health/live", context=context, timeout=10) as answer:
            assert json.load(answer) == {"live": True}


def test_several_processes_share_the_port_and_their_counts(cluster: Cluster, serving: Serving, double: str) -> None:
    with GatewayProcess(cluster.address, "--processes", "2") as gateway:
        wait_until(lambda: metric(gateway, "connected") == 2, "both processes to connect", 60)
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda i: gateway.infer(double, tensor([1, 2], [2])), range(64)))
        assert {answer.status for answer in answers} == {200}
        counted = lambda: metric(gateway, "requests_total", model=double, code="200", outcome="ok")  # noqa: E731
        wait_until(lambda: counted() == 64, "the counts of both")


def test_requests_are_counted_by_model_code_and_outcome(gateway: GatewayProcess, double: str) -> None:
    for _ in range(3):
        gateway.infer(double, tensor([[1, 2], [3, 4]], [2, 2]))
    gateway.infer(double, tensor([1], [1]))
    gateway.infer("made-up-label", tensor([1], [1]))
    assert metric(gateway, "requests_total", model=double, code="200", outcome="ok") == 3
    assert metric(gateway, "requests_total", model=double, code="400", outcome="invalid") == 1
    assert metric(gateway, "latency_seconds_count", model=double) == 3
    assert metric(gateway, "samples_total", model=double) == 6
    assert "made-up-label" not in gateway.get("/metrics").body.decode()
    stats = gateway.get(f"/v2/models/{double}/stats").json["model_stats"][0]
    assert stats["inference_count"] == 6
    assert stats["inference_stats"]["success"]["count"] == 6  # a request is a sample


def test_statistics_say_where_the_time_of_requests_went(gateway: GatewayProcess, deploy: Deploy) -> None:
    name = deploy(Emulated(0, 50), example=PAIR, max_batch=1).name

    def stats() -> Any:
        return gateway.get(f"/v2/models/{name}/versions/1/stats").json["model_stats"][0]

    before = stats()
    assert (before["last_inference"], before["inference_count"], before["batch_stats"]) == (0, 0, [])
    assert set(before["inference_stats"]) == {
        *("success", "fail", "queue", "compute_input", "compute_infer", "compute_output", "cache_hit", "cache_miss")
    }
    assert gateway.infer(name, tensor([1, 2] * 8, [8, 2])).status == 200  # two GPUs, four turns
    found = stats()
    told = {part: value["ns"] / 1e6 for part, value in found["inference_stats"].items()}
    assert [found["inference_stats"][part]["count"] for part in ("success", "queue", "compute_infer")] == [8, 8, 8]
    assert 8 * 50 <= told["compute_infer"] < 8 * 60
    assert 2 * (50 + 100 + 150) <= told["queue"] < 2 * (60 + 120 + 180) + 8 * 50
    parts = sum(told[part] for part in ("queue", "compute_input", "compute_infer", "compute_output"))
    assert parts <= told["success"] < parts + 8 * 50
    (by_size,) = found["batch_stats"]
    assert (by_size["batch_size"], by_size["compute_infer"]["count"]) == (1, 8)
    assert 0 <= time.time() * 1000 - found["last_inference"] < 60_000
    assert (found["execution_count"], found["inference_count"]) == (8, 8)


def test_a_torch_models_answer_spends_time_on_input_model_and_output(gateway: GatewayProcess, deploy: Deploy) -> None:
    torch = pytest.importorskip("torch")
    side = 512
    example = np.zeros((side, side), np.float32)
    name = deploy(torch.nn.Linear(side, side), example=example, profile="1,20").name
    data = np.ones((8, side, side), "<f4").tobytes()
    entry = {"name": "x", "shape": [8, side, side], "datatype": "FP32", "parameters": {"binary_data_size": len(data)}}
    head = json.dumps({"inputs": [entry], "parameters": {"binary_data_output": True}}).encode()
    headers = {"Inference-Header-Content-Length": str(len(head))}
    assert gateway.post(f"/v2/models/{name}/infer", head + data, headers).status == 200
    stats = gateway.get(f"/v2/models/{name}/stats").json["model_stats"][0]["inference_stats"]
    for part in ("compute_input", "compute_infer", "compute_output"):
        assert stats[part]["count"] == 8
        assert stats[part]["ns"] > 10_000


def test_sigterm_lets_what_is_under_way_be_answered(
    cluster: Cluster, serving: Serving, deploy: Deploy, gate: Gate
) -> None:
    model = deploy(gate.model(), profile="0.1,0.5")
    with GatewayProcess(cluster.address, "--notice", "500ms") as gateway, ThreadPoolExecutor(1) as pool:
        under_way = pool.submit(gateway.infer, model.name, tensor([1], [1]))
        wait_until(lambda: metric(gateway, "in_flight") == 1, "a request under way")
        gateway.process.terminate()
        assert wait_until(lambda: gateway.get("/v2/health/ready").status == 503, "it not to be ready")
        wait_until(lambda: not listens(gateway), "it to take no more connections")
        gate.open()
        assert under_way.result(10).status == 200
        assert gateway.process.wait(10) == 0


def test_a_model_that_was_replaced_answers_under_its_name(gateway: GatewayProcess, serving: Serving) -> None:
    serving.deploy("replaced", models.double, slo="60s", profile="0.1,0.5")
    assert gateway.infer("replaced", tensor([1], [1])).json["outputs"][0]["data"] == [2.0]
    serving.undeploy("replaced")
    serving.deploy("replaced", models.total, slo="60s", profile="0.1,0.5")
    assert gateway.infer("replaced", tensor([[1, 2]], [1, 2])).json["outputs"][0]["data"] == [3.0]
    serving.undeploy("replaced")
    assert gateway.infer("replaced", tensor([1], [1])).status == 404


# Tools


def raw(gateway: GatewayProcess) -> socket.socket:
    at = urlsplit(gateway.url)
    assert at.hostname is not None
    return socket.create_connection((at.hostname, at.port or 80), timeout=10)


def listens(gateway: GatewayProcess) -> bool:
    try:
        raw(gateway).close()
    except OSError:
        return False
    return True


def head(path: str, *lines: str) -> bytes:
    fields = "".join(f"{line}\r\n" for line in ("Host: x", "Content-Type: application/json", *lines))
    return f"POST {path} HTTP/1.1\r\n{fields}\r\n".encode()


def metric(gateway: GatewayProcess, name: str, **labels: str) -> float:
    """The sum of a metric's values whose labels include these."""
    total = 0.0
    for line in gateway.get("/metrics").body.decode().splitlines():
        key, _, value = line.rpartition(" ")
        if key.partition("{")[0] == f"symphony_gateway_{name}" and all(f'{k}="{v}"' in key for k, v in labels.items()):
            total += float(value)
    return total


def certificate(folder: Path) -> tuple[Path, Path]:
    """A self-signed one for 127.0.0.1, and its key."""
    import datetime
    import ipaddress

    x509 = pytest.importorskip("cryptography.x509")
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    cert_file, key_file = folder / "cert.pem", folder / "key.pem"
    cert_file.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    key_file.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return cert_file, key_file
