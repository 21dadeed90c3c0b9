"""With a ``Security``, every socket is as secure as Dask's own channel: who has no certificate of the cluster's
authority is turned away before anything is said.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from symphony_dask.client.serving import Serving
from symphony_dask.wire.handshake import connect
from symphony_dask.wire.hello import ClientHello, LinkHello
from symphony_dask.wire.messages import Op
from tests.helpers import models
from tests.helpers.cluster import Cluster, wait_until
from tests.helpers.gateway_process import GatewayProcess, tensor
from tests.helpers.lane.frames import frame, raw_frame

pytest.importorskip("cryptography")
pytest.importorskip("uvicorn")

from symphony_dask.wire.listener import Listener
from tests.helpers.certificates import Authority, Certificate, trusting

#: The sockets that ask for a certificate, and how a connection is found to be one that is served.
ASKING = ("scheduler", "lane", "direct", "gateway")

#: How long TLS may take on lanes and the gateway, s.
LIMIT_S = 4


@dataclass
class Deployment:
    """A cluster with TLS, its gateway, and certificates that are and are not of it."""

    cluster: Cluster
    serving: Serving
    gateway: GatewayProcess
    good: Certificate
    expired: Certificate
    foreign: Certificate
    token: str
    ports: dict[str, int]

    def opening(self, where: str) -> bytes:
        """What a client sends first, all of it right."""
        if where in ("gateway", "dashboard"):
            path = "/v2/health/live" if where == "gateway" else "/health"
            return f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode()
        if where == "scheduler":
            return b""  # Dask's server speaks first
        if where == "direct":
            return frame(LinkHello(token=self.token, client=10**6, link=0))
        return frame(ClientHello(token=self.token))


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    folder = tmp_path_factory.mktemp("tls")
    ours, theirs = Authority(folder, "ours"), Authority(folder, "theirs")
    good = ours.issue("good")
    tls = "DASK_DISTRIBUTED__SCHEDULER__DASHBOARD__TLS__"
    settings = {
        "DASK_SYMPHONY__POLICY": "eager",
        "DASK_SYMPHONY__LANE__HELLO_TIMEOUT": f"{LIMIT_S}s",
        f"{tls}CA_FILE": good.authority,
        f"{tls}CERT": good.cert,
        f"{tls}KEY": good.key,
    }
    front = ["--tls-cert", good.cert, "--tls-key", good.key, "--tls-client-ca", good.authority]
    back = ["--scheduler-ca-file", good.authority, "--scheduler-cert", good.cert, "--scheduler-key", good.key]
    with Cluster(1, tls=good.dask_arguments(), security=good.security(), settings=settings, dashboard=True) as cluster:
        client = cluster.client()
        serving = Serving(client)
        serving.wait_ready()
        example = np.zeros(20_000, np.float32)
        model = serving.deploy("m", models.double, slo="60s", profile="0.1,0.5", example=example)
        np.testing.assert_array_equal(model(example + 1), example + 2)  # opens a link to the worker
        assert serving._lane._direct is not None
        (link,) = serving._lane._direct._open.values()
        info = client.sync(client.scheduler.symphony_info)
        limit = ["--read-timeout", f"{LIMIT_S}s"]
        with GatewayProcess(cluster.address, *front, *back, *limit, context=good.client_context()) as gateway:
            ports = {
                "scheduler": int(cluster.address.rpartition(":")[2]),
                "lane": info["port"],
                "direct": link.port,
                "gateway": int(gateway.host.rpartition(":")[2]),
                "dashboard": client.scheduler_info()["services"]["dashboard"],
            }
            yield Deployment(
                cluster,
                serving,
                gateway,
                good,
                ours.issue("expired", days=-1),
                theirs.issue("foreign"),
                info["token"],
                ports,
            )


def answer(port: int, opening: bytes, context: ssl.SSLContext | None) -> bytes:
    """What a server answers to a first message; empty if it turns the connection away."""
    got = b""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as plain:
        try:
            wrapped = plain if context is None else context.wrap_socket(plain)
            wrapped.sendall(opening)
            while len(got) < 11 and (part := wrapped.recv(1000)):
                got += part
        except (ssl.SSLError, ConnectionError):
            pass
    return got


def test_requests_are_served_over_tls(deployed: Deployment) -> None:
    serving = deployed.serving
    model = serving.deploy("other", models.double, slo="60s", profile="0.1,0.5", timeout="60s")
    futures = model.map([np.array([float(i)]) for i in range(200)])
    assert [f.result(30).tolist() for f in futures] == [[2.0 * i] for i in range(200)]
    serving.undeploy("other")


def test_large_payloads_and_answers_pass_over_tls_between_client_and_worker(deployed: Deployment) -> None:
    serving = deployed.serving
    model = serving.deploy("other", models.double, slo="60s", profile="0.1,0.5", timeout="60s")
    before = sum(serving.status()["lane"].values())
    samples = [np.arange(i, i + 20_000) for i in range(20)]
    for sample, future in zip(samples, model.map(samples), strict=True):
        np.testing.assert_array_equal(future.result(30), sample * 2)
    assert sum(serving.status()["lane"].values()) - before < samples[0].nbytes
    assert serving._lane._direct is not None
    (link,) = serving._lane._direct._open.values()
    assert link.connection is not None
    assert link.connection._transport is not None
    assert link.connection._transport.get_extra_info("ssl_object").version() in ("TLSv1.2", "TLSv1.3")
    serving.undeploy("other")


def test_the_lane_speaks_tls_1_2_or_newer(deployed: Deployment) -> None:
    serving = deployed.serving
    assert serving._lane._connection is not None
    assert serving._lane._connection._transport is not None
    connection = serving._lane._connection._transport.get_extra_info("ssl_object")
    assert connection.version() in ("TLSv1.2", "TLSv1.3")


@pytest.mark.parametrize("where", [*ASKING, "dashboard"])
def test_who_has_a_certificate_of_the_cluster_is_served(deployed: Deployment, where: str) -> None:
    got = answer(deployed.ports[where], deployed.opening(where), deployed.good.client_context())
    assert len(got) >= 11
    if where in ("gateway", "dashboard"):
        assert got.startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("where", [*ASKING, "dashboard"])
def test_plaintext_is_not_answered(deployed: Deployment, where: str) -> None:
    got = answer(deployed.ports[where], deployed.opening(where) or b"GET / HTTP/1.1\r\n\r\n", None)
    assert len(got) <= 7  # a TLS alert at most
    assert got[:1] in (b"", b"\x15")


@pytest.mark.parametrize("where", ASKING)
@pytest.mark.parametrize("who", ["of another authority", "expired", "none"])
def test_who_has_no_valid_certificate_is_not_answered(deployed: Deployment, where: str, who: str) -> None:
    contexts: dict[str, Callable[[], ssl.SSLContext]] = {
        "of another authority": deployed.foreign.client_context,
        "expired": deployed.expired.client_context,
        "none": trusting,
    }
    assert answer(deployed.ports[where], deployed.opening(where), contexts[who]()) == b""
    assert deployed.serving.status()["clients"] >= 1  # and the others are served as before


def test_the_dashboard_asks_nobody_for_a_certificate_as_dask_has_it(deployed: Deployment) -> None:
    assert answer(deployed.ports["dashboard"], deployed.opening("dashboard"), trusting()).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("where", ["lane", "direct"])
@pytest.mark.parametrize("token", ["", "0" * 32, None])
def test_a_certificate_does_not_replace_the_token(deployed: Deployment, where: str, token: Any) -> None:
    role = "link" if where == "direct" else "client"
    opening = raw_frame(Op.HELLO, {"token": token, "versions": [8, 8], "role": role, "client": 1, "link": 0})
    assert answer(deployed.ports[where], opening, deployed.good.client_context()) == b""


def test_tls_handshakes_that_do_not_end_are_cut_off(deployed: Deployment) -> None:
    first = client_hello(deployed.good.client_context())
    began = time.monotonic()
    with contextlib.ExitStack() as stack:
        for where in ("lane", "direct", "gateway"):
            for sent in (b"", first[: len(first) // 2], first):
                plain = stack.enter_context(socket.create_connection(("127.0.0.1", deployed.ports[where]), timeout=20))
                plain.sendall(sent)
                stack.callback(read_to_the_end, plain)
    assert LIMIT_S - 0.5 < time.monotonic() - began < LIMIT_S + 10


def read_to_the_end(connection: socket.socket) -> None:
    with contextlib.suppress(ConnectionError):
        while connection.recv(10_000):
            pass


def client_hello(context: ssl.SSLContext) -> bytes:
    """What a client of TLS sends first."""
    out = ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), out).do_handshake()
    return out.read()


def test_the_gateway_infers_over_tls_on_both_sides(deployed: Deployment) -> None:
    got = deployed.gateway.infer("m", tensor([1.0] * 20_000, [1, 20_000]))
    assert got.status == 200
    assert got.json["outputs"][0]["data"] == [2.0] * 20_000


@pytest.mark.parametrize("kind", ["expired", "foreign"])
def test_a_gateway_without_a_valid_certificate_gets_no_connection_to_the_scheduler(
    deployed: Deployment, kind: str
) -> None:
    bad: Certificate = getattr(deployed, kind)
    back = ["--scheduler-ca-file", deployed.good.authority, "--scheduler-cert", bad.cert, "--scheduler-key", bad.key]
    with GatewayProcess(deployed.cluster.address, *back, ready=False) as gateway:
        wait_until(lambda: "has not been reached" not in gateway.get("/v2/health/ready").error, "an attempt", 30)
        assert gateway.get("/v2/health/ready").status == 503
        assert gateway.infer("m", tensor([1.0], [1])).status == 503


@pytest.mark.parametrize("days", [-1, None], ids=["expired", "of another authority"])
def test_a_client_does_not_talk_to_a_lane_whose_certificate_is(tmp_path: Path, days: int | None) -> None:
    """What it would say first is the token."""
    ours, theirs = Authority(tmp_path, "ours"), Authority(tmp_path, "theirs")
    bad = theirs.issue("server") if days is None else ours.issue("server", days=days)
    heard: list[int] = []

    async def main() -> None:
        door: Listener[None] = Listener(lambda connection, op, fields, blob: heard.append(op), lambda *lost: None)
        server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        server.load_cert_chain(bad.cert, bad.key)
        await door.listen("127.0.0.1", 0, server)
        context = ours.issue("client").security().get_connection_args("client")["ssl_context"]
        args: Any = (lambda *frame: None, lambda *lost: None)
        with pytest.raises(ssl.SSLCertVerificationError):
            await connect("127.0.0.1", door.port, ClientHello(token="secret"), *args, peer=None, ssl_context=context)
        await asyncio.sleep(0)
        door.close()

    asyncio.run(main())
    assert heard == []


def test_tritonclient_infers_over_https_and_a_gateway_that_is_configured_as_dask_is(deployed: Deployment) -> None:
    http = pytest.importorskip("tritonclient.http")
    tritonclient_utils = pytest.importorskip("tritonclient.utils")
    good = deployed.good
    tls = "DASK_DISTRIBUTED__COMM__TLS__"
    settings = {f"{tls}CA_FILE": good.authority, f"{tls}CLIENT__CERT": good.cert, f"{tls}CLIENT__KEY": good.key}
    front = ["--processes", "2", "--tls-cert", good.cert, "--tls-key", good.key]
    with GatewayProcess(deployed.cluster.address, *front, context=trusting(), settings=settings) as gateway:
        with http.InferenceServerClient(gateway.host, ssl=True, ssl_options={"ca_certs": good.authority}) as client:
            values = np.full((2, 20_000), 3, np.float32)
            given = http.InferInput("input", list(values.shape), "FP32")
            given.set_data_from_numpy(values)

            def answered() -> Any:  # the other of the two processes may have no connection to the scheduler yet
                try:
                    return client.infer("m", [given])
                except tritonclient_utils.InferenceServerException as error:
                    if "503" not in str(error):
                        raise
                    return None

            np.testing.assert_array_equal(wait_until(answered, "an answer").as_numpy("output"), values * 2)
        assert len(answer(int(gateway.host.rpartition(":")[2]), deployed.opening("gateway"), None)) <= 7


def test_pending_requests_end_when_the_tls_lane_closes(deployed: Deployment, tmp_path: Path) -> None:
    serving = deployed.serving
    gate = models.Gate(tmp_path)
    model = serving.deploy("gated", gate.model(), slo="60s", profile="0.1,0.5")
    future = model.submit(np.array([1.0]))
    wait_until(lambda: any(w["in_flight"] for w in serving.status()["workers"].values()), "a batch at the worker")
    serving.close()
    assert concurrent.futures.wait([future], 10).not_done == set()
    gate.open()
    serving.undeploy("gated")
