"""Hostile bytes at the sockets of a scheduler, a worker and a gateway that serve others meanwhile."""

from __future__ import annotations

import os
import random
import resource
import socket
import struct
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pytest

pytest.importorskip("uvicorn")

from symphony_dask.client.model import Model
from symphony_dask.client.serving import Serving
from symphony_dask.wire.hello import ClientHello, Hello, LinkHello
from tests.fuzz.body_targets import request
from tests.fuzz.lane_targets import client_frame, data_frame
from tests.helpers import models
from tests.helpers.cluster import Cluster, wait_until
from tests.helpers.gateway_process import GatewayProcess, tensor
from tests.helpers.lane.frames import frame

#: Connections that are left open, so that there are always some that have not ended.
OPEN = 30


@dataclass
class Scene:
    """Processes by name, their ports, and a model that a good client asks."""

    pids: dict[str, int]
    ports: dict[str, int]
    token: str
    model: Model
    gateway: GatewayProcess
    large: np.ndarray = field(default_factory=lambda: np.ones(20_000, np.float32))


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    settings = {
        "DASK_SYMPHONY__POLICY": "eager",
        "DASK_SYMPHONY__LANE__HELLO_TIMEOUT": "1s",
        "DASK_SYMPHONY__LANE__FRAME_TIMEOUT": "1s",
    }
    with Cluster(1, settings=settings) as cluster, Serving(cluster.client()) as serving:
        model = serving.deploy("m", models.double, slo="60s", profile="0.1,0.5", timeout="60s")
        model(np.ones(20_000, np.float32))
        assert serving._lane._direct is not None
        (link,) = serving._lane._direct._open.values()
        info = serving.client.sync(serving.client.scheduler.symphony_info)
        with GatewayProcess(cluster.address, "--read-timeout", "1s") as gateway:
            pids = {
                "scheduler": cluster.scheduler.pid,
                "worker": cluster.workers[0].pid,
                "gateway": gateway.process.pid,
            }
            port = int(gateway.host.rpartition(":")[2])
            ports = {"lane": info["port"], "direct": link.port, "gateway": port}
            yield Scene(pids, ports, info["token"], model, gateway)
        assert "ERROR" not in gateway.errors
        assert "Traceback" not in gateway.errors


def memory_bytes(pid: int) -> int:
    with open(f"/proc/{pid}/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


class Attack:
    """Sends hostile bytes to all ports in turn, on a thread of its own, until it is stopped."""

    def __init__(self, scene: Scene, seed: int) -> None:
        self.sent = 0
        self._scene, self._by = scene, random.Random(seed)
        self._open: list[socket.socket] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Attack:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._thread.join()
        for connection in self._open:
            connection.close()

    def _run(self) -> None:
        while not self._stop.is_set():
            where = self._by.choice(list(self._scene.ports))
            connection = socket.create_connection(("127.0.0.1", self._scene.ports[where]), timeout=10)
            try:
                connection.sendall(self._bytes_for(where))
            except ConnectionError:
                pass
            self.sent += 1
            self._leave(connection)

    def _bytes_for(self, where: str) -> bytes:
        by = self._by
        if where == "gateway":
            return request(by)
        token = self._scene.token if by.random() < 0.8 else "0" * 32
        hello: Hello = ClientHello(token=token)
        if where != "lane":
            hello = LinkHello(token=token, client=by.randrange(10**6, 2 * 10**6), link=0)
        start = frame(hello) if by.random() < 0.9 else b""
        make = client_frame if where == "lane" else lambda by, batch: data_frame(by, batch, [0, 1], [3, 4])
        return start + b"".join(make(by, by.randrange(200)) for _ in range(by.randrange(6)))

    def _leave(self, connection: socket.socket) -> None:
        """End a connection in one of the ways there are, or keep it for a while."""
        end = self._by.randrange(4)
        if end == 0:
            self._open.append(connection)
            if len(self._open) > OPEN:
                self._open.pop(self._by.randrange(OPEN)).close()
            return
        if end == 1:  # as a reset
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        elif end == 2:
            try:
                connection.shutdown(socket.SHUT_WR)
                connection.settimeout(0.01)
                connection.recv(1000)
            except OSError:
                pass
        connection.close()


def attacked(scene: Scene, seconds: float, seed: int) -> int:
    """Attack for so long while a good client is served; returns how many connections that were."""
    slowest = 0.0
    ask(scene)
    before = {name: (memory_bytes(pid), descriptors(pid)) for name, pid in scene.pids.items()}
    with Attack(scene, seed) as attack:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            began = time.monotonic()
            ask(scene)
            slowest = max(slowest, time.monotonic() - began)
    # A batch waits up to 5 s for a payload that a client of the cluster keeps, and then does not send.
    assert slowest < 8, f"a request took {slowest:.1f} s meanwhile"
    for name, pid in scene.pids.items():
        memory, files = before[name]
        wait_until(lambda pid=pid, files=files: descriptors(pid) <= files + 2, f"connections of the {name} to end")
        grown = memory_bytes(pid) - memory
        assert grown < 80 << 20, f"the {name} grew by {grown >> 20} MiB"
    ask(scene)
    return attack.sent


def ask(scene: Scene) -> None:
    """A small request, a large one past the scheduler, and one over HTTP: all are answered."""
    assert scene.model(np.ones(2, np.float32)).tolist() == [2.0, 2.0]
    assert scene.model(scene.large).sum() == 40_000
    answer = scene.gateway.infer("m", tensor([[1, 2]], [1, 2]))
    assert (answer.status, answer.json["outputs"][0]["data"]) == (200, [2.0, 4.0])


@pytest.mark.slow
def test_a_cluster_under_hostile_bytes_serves_others_and_keeps_nothing(scene: Scene) -> None:
    assert attacked(scene, 5, seed=0) > 200


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_two_minutes_of_hostile_bytes_leave_a_cluster_as_it_was(scene: Scene) -> None:
    assert attacked(scene, 120, seed=1) > 10_000
