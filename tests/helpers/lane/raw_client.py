"""A client that says on the lane what a test has it say."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from distributed.comm.addressing import get_address_host

from symphony_dask.client.model import Model
from symphony_dask.client.serving import Serving
from symphony_dask.wire.connection import Connection
from symphony_dask.wire.handshake import connect
from symphony_dask.wire.hello import ClientHello
from symphony_dask.wire.messages import Data, Op, Place, Result, Submit
from symphony_dask.wire.records import SUBMIT_ROW, make_column, make_records
from tests.helpers.serving import LIMIT_S


class RawClient:
    """A client on the lane by hand, which brings payloads only if asked to."""

    def __init__(self) -> None:
        self.placed: list[Place] = []
        self.ended: list[tuple[int, int]] = []
        self.errors: list[str] = []
        self.lost = False
        self.connection: Connection[None]

    def frame(self, connection: Connection[None], op: int, fields: list[Any], blob: memoryview) -> None:
        if op == Op.PLACE:
            self.placed.append(Place.decode(fields, blob))
        else:
            assert op == Op.RESULT
            result = Result.decode(fields, blob)
            self.ended += [(request, outcome) for request, _, _, outcome in result.rows.tolist()]
            self.errors += [failure.text for failure in result.failures.values()]

    def submit(self, model: Model, n: int, *, payload: bytes = b"", held_bytes: int = 0, slo_ns: int = 0) -> None:
        """n requests with ``payload``, or that hold so many bytes."""
        size = held_bytes or len(payload)
        held = held_bytes > 0
        rows = make_records(SUBMIT_ROW, n, id=range(n), slo=slo_ns, bytes=size, model=model._id, held=held)
        self.connection.send(Submit(rows), payload * n)

    def bring(self, size: int, payload: bytes) -> None:
        """Send a payload for request 0, as what it was asked for, and say that it has ``size``."""
        data = Data(self.placed[0].batch, 0, make_column([0]), make_column([size]))
        self.connection.send(data, payload)


def with_raw_client(serving: Serving, main: Callable[[RawClient], Awaitable[None]]) -> None:
    async def wrapped() -> None:
        info = await asyncio.to_thread(serving.client.sync, serving.client.scheduler.symphony_info)
        hello = ClientHello(token=info["token"])
        raw = RawClient()
        host = get_address_host(serving.client.scheduler.address)
        raw.connection, _ = await connect(
            host, info["port"], hello, raw.frame, lambda *lost: setattr(raw, "lost", True), peer=None, timeout_s=LIMIT_S
        )
        async with asyncio.timeout(LIMIT_S):
            await main(raw)
        raw.connection.close()

    asyncio.run(wrapped())
