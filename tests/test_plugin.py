"""The plugin at the scheduler's start: nobody waits for the engine's compilation but who wants to serve."""

from __future__ import annotations

import asyncio
import socket
import threading
from typing import Any

import dask.config
import pytest
from distributed import Client, Scheduler
from distributed.core import Status

import symphony_dask.plugin
from symphony_dask.dispatcher import Dispatcher
from symphony_dask.plugin import SymphonyPlugin


def starting_scheduler() -> Scheduler:
    return Scheduler(dashboard_address=":0", host="127.0.0.1", port=0, preload=["symphony_dask"])


def test_a_starting_scheduler_answers_while_the_engine_compiles(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = threading.Event()

    def slow_dispatcher(*args: Any, **kwargs: Any) -> Dispatcher:
        assert compiled.wait(60)
        return Dispatcher(*args, **kwargs)

    monkeypatch.setattr(symphony_dask.plugin, "Dispatcher", slow_dispatcher)

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
    monkeypatch.setattr(symphony_dask.plugin, "Dispatcher", lambda *args, **kwargs: compiled.wait(60))

    async def run() -> None:
        async with asyncio.timeout(60):
            scheduler = await starting_scheduler()
            await scheduler.close()
            assert scheduler.status is Status.closed
            compiled.set()

    asyncio.run(run())


def test_a_scheduler_whose_lane_port_is_taken_ends_and_says_why(caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        with socket.create_server(("127.0.0.1", 0)) as other:
            port = other.getsockname()[1]
            with dask.config.set({"symphony.lane.port": port}):
                async with asyncio.timeout(240):
                    scheduler = await starting_scheduler()
                    await scheduler.finished()
            assert scheduler.status is Status.closed
            # Python 3.13 has the error's number between the two.
            assert f"('127.0.0.1', {port})" in caplog.text
            assert "address already in use" in caplog.text

    asyncio.run(run())
