"""``autoscale.Adaptive`` on Dask's ``SSHCluster``: its own SSH client, and a server in this process for sshd."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import dask.config
import pytest
from distributed import SSHCluster

import autoscale
from symphony_dask import Serving
from symphony_dask.backends import Emulated
from tests.helpers.aws.adaptive_load import Load, by_the_latest_rate
from tests.helpers.cluster import START_S, wait_until

asyncssh = pytest.importorskip("asyncssh")


class SshServer:
    """Runs what it is told to on this machine, for anybody who knows its port; what runs ends with its connection."""

    def __enter__(self) -> SshServer:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self._server = asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(30)
        self.port: int = self._server.get_port()
        return self

    def __exit__(self, *exc: object) -> None:
        async def close() -> None:
            self._server.close()
            await self._server.wait_closed()
            left = asyncio.all_tasks() - {asyncio.current_task()}
            if left:
                await asyncio.wait(left, timeout=10)
            for task in left:
                task.cancel()
            await asyncio.gather(*left, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(close(), self._loop).result(30)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _listen(self) -> Any:
        class Open(asyncssh.SSHServer):  # type: ignore[misc, name-defined]
            def begin_auth(self, username: str) -> bool:
                return False

        key = asyncssh.generate_private_key("ssh-ed25519")
        return await asyncssh.listen(
            "127.0.0.1", 0, server_factory=Open, server_host_keys=[key], process_factory=self._run
        )

    async def _run(self, process: Any) -> None:
        child = await asyncio.create_subprocess_shell(
            f"exec {process.command}",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            await process.redirect(stdin=child.stdin, stdout=child.stdout, stderr=child.stderr)
            ended = asyncio.ensure_future(child.wait())
            closed = asyncio.ensure_future(process.wait_closed())
            await asyncio.wait({ended, closed}, return_when=asyncio.FIRST_COMPLETED)
            if not ended.done():
                child.kill()
            await ended
            process.exit(child.returncode or 0)
        finally:
            if child.returncode is None:
                child.kill()


@pytest.fixture
def server() -> Iterator[SshServer]:
    with SshServer() as server:
        yield server


@pytest.mark.slow
def test_an_ssh_cluster_follows_its_load_over_its_list_of_hosts(server: SshServer) -> None:
    """One GPU serves 25 requests a second; the load is 10, then 60, then 10, then nothing, then 10 again."""
    settings = {"symphony.gpu-class": "cpu", "symphony.policy": "eager", "symphony.wait-for-gpu": "60s"}
    with (
        dask.config.set(settings),
        SSHCluster(
            ["127.0.0.1"] * 4,
            connect_options={"port": server.port, "known_hosts": None, "username": "anybody"},
            worker_class="distributed.Worker",
            worker_options={"nthreads": 1, "resources": {"GPU": 1}, "memory_limit": 0, "dashboard_address": None},
            scheduler_options={"host": "127.0.0.1", "port": 0, "dashboard_address": None},
        ) as cluster,
        cluster.get_client() as client,
        Serving(client) as serving,
    ):
        client.wait_for_workers(3, timeout=START_S)
        model = serving.deploy("m", Emulated(40, 0), slo="30s", max_batch=4, timeout="60s")

        def workers() -> int:
            return len(cluster.scheduler_info["workers"])

        cluster.adapt(
            Adaptive=autoscale.Adaptive, minimum=0, maximum=3, interval="250ms", wait_count=2, policy=by_the_latest_rate
        )
        load = Load(model, 10)
        try:
            wait_until(lambda: workers() == 1, "one worker", START_S)
            wait_until(lambda: len(cluster.plan) == 1, "one planned worker", START_S)
            load.rate_hz = 60
            wait_until(lambda: workers() == 3, "all three workers again", START_S)
            load.rate_hz = 10
            wait_until(lambda: workers() == 1, "one worker once more", START_S)
            load.rate_hz = 0
            wait_until(lambda: workers() == 0, "none", START_S)
            load.rate_hz = 10
            wait_until(lambda: workers() == 1, "one worker from none", START_S)
        finally:
            futures = load.end()
        for future in futures:
            future.result(timeout=60)
        assert {future.outcome for future in futures} == {"ok"}
