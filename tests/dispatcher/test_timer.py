from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import pytest

from symphony_dask.dispatcher import timer
from symphony_dask.dispatcher.timer import Timer
from symphony_dask.units import NS_PER_MS, NS_PER_S


@pytest.fixture(params=["timerfd", "call_at"])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "call_at":

        def none() -> None:
            raise OSError("no timerfd here")

        monkeypatch.setattr(timer, "_timerfd", none)
    return str(request.param)


class Rings:
    """Counts rings, and waits for them."""

    def __init__(self) -> None:
        self.times: list[int] = []
        self._rang = asyncio.Event()

    def __call__(self) -> None:
        self.times.append(time.monotonic_ns())
        self._rang.set()

    async def wait_for(self, n: int) -> None:
        async with asyncio.timeout(10):
            while len(self.times) < n:
                self._rang.clear()
                await self._rang.wait()


def run(main: Callable[[Timer, Rings], Awaitable[None]]) -> None:
    async def wrapped() -> None:
        rings = Rings()
        timer = Timer(asyncio.get_running_loop(), rings)
        try:
            await main(timer, rings)
        finally:
            timer.close()

    asyncio.run(wrapped())


@pytest.mark.usefixtures("kind")
def test_rings_once_and_not_before_its_time() -> None:
    async def main(timer: Timer, rings: Rings) -> None:
        at = time.monotonic_ns() + 5 * NS_PER_MS
        timer.set(at)
        assert timer.at_ns == at
        await rings.wait_for(1)
        assert rings.times[0] >= at - NS_PER_MS  # call_at rings within its clock's resolution
        assert timer.at_ns is None
        second = time.monotonic_ns() + NS_PER_MS
        timer.set(second)
        await rings.wait_for(2)
        assert len(rings.times) == 2

    run(main)


@pytest.mark.usefixtures("kind")
def test_a_time_that_is_past_rings_at_once() -> None:
    async def main(timer: Timer, rings: Rings) -> None:
        timer.set(0)
        await rings.wait_for(1)

    run(main)


@pytest.mark.usefixtures("kind")
def test_setting_again_replaces_the_time() -> None:
    async def main(timer: Timer, rings: Rings) -> None:
        timer.set(time.monotonic_ns() + 3600 * NS_PER_S)
        timer.set(time.monotonic_ns() + NS_PER_MS)
        await rings.wait_for(1)
        timer.set(time.monotonic_ns())
        timer.set(time.monotonic_ns() + 3600 * NS_PER_S)
        other = Rings()
        marker = Timer(asyncio.get_running_loop(), other)
        marker.set(time.monotonic_ns() + 5 * NS_PER_MS)
        await other.wait_for(1)
        marker.close()
        assert len(rings.times) == 1

    run(main)


@pytest.mark.usefixtures("kind")
def test_a_cleared_timer_does_not_ring() -> None:
    async def main(timer: Timer, rings: Rings) -> None:
        other = Rings()
        marker = Timer(asyncio.get_running_loop(), other)
        timer.set(time.monotonic_ns() + NS_PER_MS)
        timer.clear()
        marker.set(time.monotonic_ns() + 3 * NS_PER_MS)
        await other.wait_for(1)
        marker.close()
        assert rings.times == []

    run(main)


@pytest.mark.usefixtures("kind")
def test_it_may_be_set_again_while_it_rings() -> None:
    async def main(timer: Timer, rings: Rings) -> None:
        def ring_thrice() -> None:
            rings()
            if len(rings.times) < 3:
                again.set(time.monotonic_ns())

        again = Timer(asyncio.get_running_loop(), ring_thrice)
        again.set(time.monotonic_ns())
        await rings.wait_for(3)
        again.close()

    run(main)


@pytest.mark.usefixtures("kind")
def test_close_twice_is_close_once() -> None:
    async def main(timer: Timer, rings: Rings) -> None:
        timer.set(time.monotonic_ns())
        timer.close()
        timer.close()
        assert timer.at_ns is None

    run(main)
