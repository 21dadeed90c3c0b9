"""Work on large bodies happens beside the gateway's event loop."""

from __future__ import annotations

import asyncio
import threading

from symphony_dask.gateway.bodies import THREAD_BYTES, aside


def test_large_bodies_are_worked_on_in_threads_and_small_ones_at_once() -> None:
    async def main() -> tuple[int, int]:
        return await aside(THREAD_BYTES, threading.get_ident), await aside(THREAD_BYTES + 1, threading.get_ident)

    small, large = asyncio.run(main())
    assert small == threading.get_ident()
    assert large != threading.get_ident()
