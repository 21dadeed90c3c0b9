"""Asks the Dask scheduler what the watchers of an instance need, with the TLS settings of Dask's configuration."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from distributed.comm.addressing import get_address_host
from distributed.core import rpc
from distributed.security import Security

from symphony_dask.errors import SymphonyError

_TIMEOUT_S = 10.0


async def workers_here(address: str, host: str) -> list[str]:
    """Addresses of the workers that the scheduler at ``address`` has on ``host``; raises ``OSError``."""
    workers = await _ask(address, lambda scheduler: scheduler.ncores())
    return sorted(worker for worker in workers if get_address_host(worker) == host)


async def drain(address: str, workers: list[str]) -> None:
    """Have the scheduler place nothing more on ``workers``; raises ``OSError`` (a time-out too), ``SymphonyError``."""
    reply = await _ask(address, lambda scheduler: scheduler.symphony_drain(workers=workers, why="spot notice"))
    if "error" in reply:
        raise SymphonyError(f"the scheduler at {address} did not drain: {reply['error'][1]}")


async def _ask(address: str, question: Callable[[Any], Awaitable[Any]]) -> Any:
    scheduler = rpc(address, connection_args=Security().get_connection_args("client"))
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            return await question(scheduler)
    finally:
        await scheduler.close_rpc()
