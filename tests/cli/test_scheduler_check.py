"""Whether a scheduler answers is told within seconds, and what is the matter with one that does not."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from distributed import LocalCluster

from symphony_dask.cli.scheduler_check import check
from symphony_dask.errors import BadInput, NotServing
from tests.helpers.certificates import Authority


@pytest.fixture(scope="module")
def plain() -> Iterator[LocalCluster]:
    """Dask without Symphony."""
    where = {"protocol": "tcp", "host": "127.0.0.1", "scheduler_port": 0, "dashboard_address": ":0"}
    with LocalCluster(n_workers=1, threads_per_worker=1, processes=False, **where) as cluster:
        yield cluster


@pytest.fixture
def silent() -> Iterator[int]:
    """The port of a server that takes connections and says nothing."""
    taken = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def take() -> None:
            while True:
                try:
                    taken.append(server.accept())
                except OSError:
                    return

        threading.Thread(target=take, daemon=True).start()
        yield server.getsockname()[1]


def test_a_port_that_never_answers_is_given_up_within_five_seconds(silent: int) -> None:
    began = time.monotonic()
    with pytest.raises(NotServing, match=f"something listens at tcp://127.0.0.1:{silent}, but does not answer") as e:
        check(f"tcp://127.0.0.1:{silent}")
    assert time.monotonic() - began < 5
    assert "is it tls://" in str(e.value)


def test_a_host_that_nobody_knows_is_named() -> None:
    with pytest.raises(NotServing, match=r"the host 'nohost.invalid' of the scheduler tcp://nohost.invalid:8786"):
        check("tcp://nohost.invalid:8786")


def test_a_scheduler_without_symphony_and_a_worker_are_told_apart(plain: LocalCluster) -> None:
    with pytest.raises(NotServing, match="does not run Symphony: start it with dask scheduler --preload symphony_dask"):
        check(plain.scheduler_address)
    check(plain.scheduler_address, needs_plugin=False)
    worker = next(iter(plain.workers.values())).address
    with pytest.raises(NotServing, match=f"what answers at {worker} is no Dask scheduler .it is a Dask worker."):
        check(worker)


def test_tls_and_tcp_that_meet_are_named(plain: LocalCluster, tmp_path: Path) -> None:
    port = plain.scheduler_address.rpartition(":")[2]
    with pytest.raises(BadInput, match=f"the scheduler at tls://127.0.0.1:{port} speaks TLS, and no certificates"):
        check(f"tls://127.0.0.1:{port}")
    security = Authority(tmp_path, "ours").issue("client").security()
    with pytest.raises(NotServing, match=r"does not answer as a Dask scheduler over tls does .*is it tcp://"):
        check(f"tls://127.0.0.1:{port}", security=security)
