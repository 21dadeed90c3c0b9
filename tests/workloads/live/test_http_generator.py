"""The HTTP load generator against a small server, and the search that it feeds."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest

from symphony_dask.errors import BadInput
from symphony_dask.trace import Outcome
from symphony_dask.units import NS_PER_MS, NS_PER_S
from workloads.bench.fidelity import highest_rate
from workloads.bench.peers import bench_peers
from workloads.live import load_generator


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200 if body == b"right" else 400)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ok")

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def url() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/infer"
    server.shutdown()


def test_every_request_is_answered_whether_connections_are_many_or_few(url: str) -> None:
    arrivals = np.arange(200, dtype=np.int64) * NS_PER_MS
    for connections in (1, 50):
        loaded = load_generator.offer_http(url, arrivals, 10 * NS_PER_S, body=b"right", connections=connections)
        assert (loaded.outcome == Outcome.OK).all()
        assert (loaded.done >= loaded.submitted).all()


def test_another_status_and_no_server_count_as_failed(url: str) -> None:
    for address, body in ((url, b"wrong"), ("http://127.0.0.1:9/infer", b"right")):
        loaded = load_generator.offer_http(address, np.zeros(3, np.int64), NS_PER_S, body=body)
        assert loaded.to_dict()["failed"] == 3


def test_the_search_finds_the_highest_rate_that_holds() -> None:
    tried: list[float] = []

    def good(rate_hz: float) -> float:
        tried.append(rate_hz)
        return 1.0 if rate_hz <= 730 else 0.5

    assert 730 / 1.03 < highest_rate(good, 1_000.0, 0.99) <= 730
    assert tried[0] == 500
    assert highest_rate(lambda rate_hz: 0.0, 1_000.0, 0.99) == 0.0


def test_an_unknown_peer_is_named() -> None:
    with pytest.raises(BadInput, match=r"peer 'x' is unknown: choose of mosec"):
        bench_peers(peers=["x"])
