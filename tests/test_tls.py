"""With a ``Security``, the lane is as secure as Dask's own channel."""

from __future__ import annotations

import asyncio
import concurrent.futures
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from distributed.security import Security

from symphony_dask.client import Serving
from symphony_dask.lane import VERSION, connect
from tests import models
from tests.cluster import Cluster, wait_until

pytest.importorskip("cryptography")


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    folder = tmp_path_factory.mktemp("tls")
    made = Security.temporary()
    ca, key = folder / "ca.pem", folder / "key.pem"
    ca.write_text(made.tls_ca_file)
    key.write_text(made.tls_client_key)
    tls = ["--tls-ca-file", str(ca), "--tls-cert", str(ca), "--tls-key", str(key)]
    with Cluster(1, tls=tls, security=made, settings={"DASK_SYMPHONY__POLICY": "eager"}) as cluster:
        assert cluster.address.startswith("tls://")
        with Serving(cluster.client()) as serving:
            yield serving


@pytest.fixture(scope="module")
def lane(serving: Serving) -> dict[str, Any]:
    """Port and token of the lane."""
    found: dict[str, Any] = serving.client.sync(serving.client.scheduler.symphony_info)
    return found


def join(lane: dict[str, Any], context: ssl.SSLContext | None) -> None:
    """Say HELLO on the lane with the right token; raises ``OSError`` when refused."""

    async def main() -> None:
        hello = {"token": lane["token"], "version": VERSION, "role": "client"}
        args = (lambda *frame: None, lambda *lost: None)
        connection = await connect("127.0.0.1", lane["port"], hello, *args, ssl_context=context)
        connection.close()

    asyncio.run(main())


def test_requests_are_served_over_tls(serving: Serving) -> None:
    model = serving.deploy("m", models.double, slo="60s", profile="0.1,0.5", timeout="60s")
    futures = model.map([np.array([float(i)]) for i in range(200)])
    assert [f.result(30).tolist() for f in futures] == [[2.0 * i] for i in range(200)]
    serving.undeploy("m")


def test_large_payloads_and_answers_pass_over_tls_between_client_and_worker(serving: Serving) -> None:
    model = serving.deploy("m", models.double, slo="60s", profile="0.1,0.5", timeout="60s")
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
    gets_nothing_in_plaintext(link.port)
    with pytest.raises(OSError, match=r"(?i)certificate"):
        join({"port": link.port, "token": ""}, Security.temporary().get_connection_args("client")["ssl_context"])
    serving.undeploy("m")


def test_the_lane_speaks_tls_1_2_or_newer(serving: Serving) -> None:
    assert serving._lane._connection is not None
    assert serving._lane._connection._transport is not None
    connection = serving._lane._connection._transport.get_extra_info("ssl_object")
    assert connection.version() in ("TLSv1.2", "TLSv1.3")


def test_a_client_of_the_cluster_may_join(serving: Serving, lane: dict[str, Any]) -> None:
    join(lane, serving.client.security.get_connection_args("client")["ssl_context"])


@pytest.mark.usefixtures("serving")
def test_a_plaintext_connection_gets_nothing(lane: dict[str, Any]) -> None:
    with pytest.raises(OSError, match="turned the connection away"):
        join(lane, None)
    gets_nothing_in_plaintext(lane["port"])


def gets_nothing_in_plaintext(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=10) as plain:
        plain.sendall(b"GET / HTTP/1.1\r\n\r\n")
        answer = b""
        try:
            while part := plain.recv(1000):
                answer += part
        except ConnectionResetError:
            pass
    assert len(answer) <= 7  # a TLS alert at most
    assert answer[:1] in (b"", b"\x15")


def test_a_client_with_certificates_of_another_authority_is_refused(serving: Serving, lane: dict[str, Any]) -> None:
    with pytest.raises(OSError, match=r"(?i)certificate"):
        join(lane, Security.temporary().get_connection_args("client")["ssl_context"])


def test_a_client_without_a_certificate_is_refused(serving: Serving, lane: dict[str, Any]) -> None:
    context = ssl.create_default_context(cadata=serving.client.security.tls_ca_file)
    context.check_hostname = False
    with pytest.raises(OSError, match=r"(?i)turned the connection away|certificate"):
        join(lane, context)
    assert serving.status()["clients"] == 1


def test_pending_requests_end_when_the_tls_lane_closes(serving: Serving, tmp_path: Path) -> None:
    gate = models.Gate(tmp_path)
    model = serving.deploy("gated", gate.model(), slo="60s", profile="0.1,0.5")
    future = model.submit(np.array([1.0]))
    wait_until(lambda: any(w["in_flight"] for w in serving.status()["workers"].values()), "a batch at the worker")
    serving.close()
    assert concurrent.futures.wait([future], 10).not_done == set()
    gate.open()
    serving.undeploy("gated")
