"""The plugin at the scheduler's start: only who wants to serve waits for it, and no failure takes Dask along."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask.config
import pytest
from distributed import Client, Scheduler, Worker
from distributed.comm.core import CommClosedError
from distributed.core import Status

import symphony_dask.plugin.scheduler_plugin
import symphony_dask.plugin.start_attempts
import symphony_dask.plugin.worker_plugin
from symphony_dask.client.serving import Serving
from symphony_dask.dispatcher.dispatcher import Dispatcher
from symphony_dask.errors import NotServing
from symphony_dask.plugin.scheduler_plugin import SymphonyPlugin
from tests.helpers.cluster import Cluster, wait_until


def starting_scheduler() -> Scheduler:
    return Scheduler(dashboard_address=":0", host="127.0.0.1", port=0, preload=["symphony_dask"])


def test_a_starting_scheduler_answers_while_the_engine_compiles(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = threading.Event()

    def slow_dispatcher(*args: Any, **kwargs: Any) -> Dispatcher:
        assert compiled.wait(60)
        return Dispatcher(*args, **kwargs)

    monkeypatch.setattr(symphony_dask.plugin.scheduler_plugin, "Dispatcher", slow_dispatcher)

    async def run() -> None:
        try:
            async with (
                asyncio.timeout(60),
                starting_scheduler() as scheduler,
                Client(scheduler.address, asynchronous=True) as client,
            ):
                assert await client.run_on_scheduler(lambda: 1) == 1
                asking = asyncio.ensure_future(client.scheduler.symphony_info())
                await client.register_plugin(SymphonyPlugin())  # as Serving does where it finds none: not a second
                assert not asking.done()
                compiled.set()
                info = await asking
                assert info["port"] == scheduler.plugins["symphony"].dispatcher.port
        finally:
            compiled.set()

    asyncio.run(run())


def test_a_scheduler_closes_while_the_engine_compiles(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = threading.Event()
    monkeypatch.setattr(symphony_dask.plugin.scheduler_plugin, "Dispatcher", lambda *args, **kwargs: compiled.wait(60))

    async def run() -> None:
        async with asyncio.timeout(60):
            scheduler = await starting_scheduler()
            await scheduler.close()
            assert scheduler.status is Status.closed
            compiled.set()

    asyncio.run(run())


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What failed is tried again at once."""
    monkeypatch.setattr(symphony_dask.plugin.start_attempts, "_FIRST_WAIT_S", 0.05)


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def test_a_scheduler_whose_lane_port_is_taken_goes_on_says_why_and_serves_once_it_is_free(
    caplog: pytest.LogCaptureFixture, impatient: None
) -> None:
    async def run() -> None:
        with socket.create_server(("127.0.0.1", 0)) as other:
            port = other.getsockname()[1]
            with dask.config.set({"symphony.lane.port": port}):
                async with (
                    asyncio.timeout(240),
                    starting_scheduler() as scheduler,
                    Worker(scheduler.address, nthreads=1),
                    Client(scheduler.address, asynchronous=True) as client,
                ):
                    with pytest.raises(NotServing) as raised:
                        async with Serving(client):
                            pass
                    assert f"'127.0.0.1', {port}" in str(raised.value)
                    assert "address already in use" in str(raised.value)
                    assert "tried again" in str(raised.value)
                    assert await client.submit(lambda: 5) == 5
                    assert scheduler.status is Status.running
                    other.close()
                    await until(lambda: scheduler.get_metadata(keys=["symphony"], default=None))
                    async with Serving(client) as serving:
                        assert not (await serving.status())["problems"]
        assert "Symphony cannot start, and the scheduler goes on without it" in caplog.text

    asyncio.run(run())


def test_whoever_installs_the_plugin_hears_why_it_could_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_compiler(*args: Any, **kwargs: Any) -> Dispatcher:
        raise OSError("no space left for compiled code")

    monkeypatch.setattr(symphony_dask.plugin.scheduler_plugin, "Dispatcher", no_compiler)

    async def run() -> None:
        async with (
            asyncio.timeout(60),
            Scheduler(dashboard_address=":0", host="127.0.0.1", port=0) as scheduler,
            Client(scheduler.address, asynchronous=True) as client,
        ):
            for _ in range(2):
                with pytest.raises(NotServing, match="no space left for compiled code"):
                    async with Serving(client):
                        pass
            assert scheduler.status is Status.running
            monkeypatch.undo()
            async with Serving(client) as serving:
                assert (await serving.status())["models"] == {}

    asyncio.run(run())


def test_a_worker_that_leaves_while_the_plugin_starts_is_no_error(
    monkeypatch: pytest.MonkeyPatch, impatient: None
) -> None:
    async def run() -> None:
        async with (
            asyncio.timeout(120),
            Scheduler(dashboard_address=":0", host="127.0.0.1", port=0) as scheduler,
            Worker(scheduler.address, nthreads=1, resources={"GPU": 1}) as worker,
            Client(scheduler.address, asynchronous=True) as client,
        ):
            connect, asked = scheduler.rpc.connect, []

            async def leaving(address: str, *args: Any, **kwargs: Any) -> Any:
                asked.append(address)
                if asked.count(address) < 3:
                    raise CommClosedError("Address removed")
                return await connect(address, *args, **kwargs)

            monkeypatch.setattr(scheduler.rpc, "connect", leaving)
            async with Serving(client) as serving:
                await until(lambda: "symphony" in worker.plugins)
                await until(lambda: scheduler.plugins["symphony"].loader.workers)
                assert list((await serving.status())["workers"]) == [worker.address]
            assert asked.count(worker.address) >= 3
            assert scheduler.status is Status.running

    asyncio.run(run())


def test_what_serving_can_do_without_is_missed_and_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fails(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("of another version")

    monkeypatch.setattr(symphony_dask.plugin.scheduler_plugin.metrics, "expose", fails)
    monkeypatch.setattr(symphony_dask.plugin.scheduler_plugin.dashboard, "install", fails)
    file = tmp_path / "file"
    file.touch()

    async def run() -> None:
        with dask.config.set({"symphony.trace.directory": str(file)}):
            async with (
                asyncio.timeout(120),
                starting_scheduler() as scheduler,
                Client(scheduler.address, asynchronous=True) as client,
                Serving(client) as serving,
            ):
                metrics, dashboard, recording = (await serving.status())["problems"]
                assert metrics == "cannot be shown on Dask's /metrics: RuntimeError: of another version"
                assert dashboard == "cannot be shown on Dask's dashboard: RuntimeError: of another version"
                assert recording.startswith(f"cannot be recorded into symphony.trace.directory {str(file)!r}: ")

    asyncio.run(run())


def test_hooks_that_fail_leave_dask_what_it_had(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("broken")

    async def run() -> None:
        async with (
            asyncio.timeout(120),
            starting_scheduler() as scheduler,
            Worker(scheduler.address, nthreads=1) as worker,
            Client(scheduler.address, asynchronous=True) as client,
        ):
            async with Serving(client):
                pass
            plugin = scheduler.plugins["symphony"]
            for place, name in (
                (plugin._use, "serves"),
                (plugin._graph_tasks, "admit"),
                (plugin._graph_tasks, "moved"),
            ):
                monkeypatch.setattr(place, name, fails)
            monkeypatch.setattr(plugin.dispatcher, "drop_worker", fails)
            monkeypatch.setattr(plugin._use, "_end_batches", fails)
            monkeypatch.setattr(plugin.dispatcher, "stop", fails)
            assert await client.submit(lambda: 5) == 5
            await until(lambda: not scheduler.tasks)  # else the worker has data that no other can take
            assert list(await client.scheduler.workers_to_close(n=1)) == [worker.address]
            assert list(await client.retire_workers([worker.address])) == [worker.address]
            assert scheduler.workers == {}
        assert scheduler.status is Status.closed

    asyncio.run(run())


def test_a_worker_that_cannot_serve_goes_on_and_the_status_says_why(
    monkeypatch: pytest.MonkeyPatch, impatient: None
) -> None:
    right = symphony_dask.plugin.worker_plugin.gpu_class_of
    monkeypatch.setattr(symphony_dask.plugin.worker_plugin, "gpu_class_of", lambda worker: 1 / 0)

    async def run() -> None:
        async with (
            asyncio.timeout(120),
            starting_scheduler() as scheduler,
            Client(scheduler.address, asynchronous=True) as client,
            Serving(client) as serving,
            Worker(scheduler.address, nthreads=1, resources={"GPU": 1}) as worker,
        ):
            assert await client.submit(lambda: 5) == 5
            [text] = (await serving.status())["problems"]
            assert text == f"worker {worker.address} serves no models: ZeroDivisionError: division by zero"
            monkeypatch.setattr(symphony_dask.plugin.worker_plugin, "gpu_class_of", right)
            await until(lambda: scheduler.plugins["symphony"].loader.workers)
            assert not (await serving.status())["problems"]

    asyncio.run(run())


def test_workers_without_the_package_go_on_and_the_status_says_so() -> None:
    hidden = "import sys; sys.modules['symphony_dask'] = None; from dask.__main__ import main; main()"
    with Cluster(0) as cluster, Serving(cluster.client()) as serving:
        arguments = [sys.executable, "-c", hidden, "worker", cluster.address, "--no-nanny", "--no-dashboard"]
        with subprocess.Popen([*arguments, "--resources", "GPU=1", "--nthreads", "1"]) as worker:
            try:
                client = cluster.client()
                assert client.submit(lambda: 5).result(60) == 5
                [text] = wait_until(lambda: serving.status()["problems"], "the worker's word")
                assert "serves no models: ModuleNotFoundError" in text
                assert worker.poll() is None
            finally:
                worker.kill()
        wait_until(lambda: not serving.status()["problems"], "its end")


def test_a_preload_on_a_worker_changes_nothing() -> None:
    async def run() -> None:
        async with (
            asyncio.timeout(60),
            Scheduler(dashboard_address=":0", host="127.0.0.1", port=0) as scheduler,
            Worker(scheduler.address, nthreads=1, preload=["symphony_dask"]) as worker,
        ):
            assert list(worker.plugins) == ["shuffle"]

    asyncio.run(run())
