"""Offers requests over HTTP/1.1 from a process of its own: ``python -m workloads.live.http_generator PLAN RESULT``; see
``load_generator``.

The same rules as ``lane_generator``. Open loop: each request counted from the time at which it was due. A request takes
an idle connection, or a new one while there are fewer than ``connections``; else it waits for one, and its latency
runs.
"""

from __future__ import annotations

import asyncio
import gc
import sys
from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from symphony_dask.clock import now_ns
from symphony_dask.dispatcher.timer import Timer
from symphony_dask.trace import Outcome
from symphony_dask.units import NS_PER_S
from workloads.live.lane_generator import NO_ANSWER, TOGETHER_NS, main

#: A closed loop ends after so many requests a second of its time, at the latest.
_MOST_HZ = 50_000


@dataclass(frozen=True)
class HttpPlan:
    """What one process offers: POST ``body`` to http://host:port/path at each time of ``due`` (ns from the start).

    due: None in a closed loop, where each of ``connections`` has a request under way for ``seconds``, and sends the
        next when the answer is here.
    headers: lines beside the usual ones, as "Name: value".
    """

    host: str
    port: int
    path: str
    body: bytes
    content_type: str
    due: npt.NDArray[np.int64] | None
    connections: int
    drain: int
    headers: tuple[str, ...] = ()
    seconds: float = 0.0

    @property
    def span(self) -> int:
        """From the start to the last request, ns."""
        return int(self.due[-1]) if self.due is not None else round(self.seconds * NS_PER_S)


class _Connection(asyncio.Protocol):
    def __init__(self, generator: _HttpGenerator) -> None:
        self._generator = generator
        self._buffer = b""
        self.request = -1

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, found, body = self._buffer.partition(b"\r\n\r\n")
        if not found:
            return
        fields = head.lower().split(b"\r\n")
        length = next((int(f[15:]) for f in fields if f.startswith(b"content-length:")), None)
        if length is None:
            if not body.endswith(b"0\r\n\r\n"):  # chunked, up to its last chunk
                return
        elif len(body) < length:
            return
        self._buffer = b""
        ok = fields[0].split(b" ")[1] == b"200"
        self._generator.answered(self, ok, b"connection: close" in fields)

    def connection_lost(self, exc: Exception | None) -> None:
        self._generator.lost(self)


class _HttpGenerator:
    def __init__(self, plan: HttpPlan) -> None:
        n = len(plan.due) if plan.due is not None else round(plan.seconds * _MOST_HZ) + plan.connections
        self._plan = plan
        further = "".join(f"{line}\r\n" for line in plan.headers)
        head = (
            f"POST {plan.path} HTTP/1.1\r\nHost: {plan.host}:{plan.port}\r\nContent-Type: {plan.content_type}\r\n"
            f"Content-Length: {len(plan.body)}\r\n{further}\r\n"
        )
        self._message = head.encode() + plan.body
        self.submitted = np.full(n, -1, np.int64)
        self.done = np.full(n, -1, np.int64)
        self.outcome = np.full(n, NO_ANSWER, np.int8)
        self._idle: list[_Connection] = []
        self._open = 0
        self._waiting: deque[int] = deque()
        self._next = 0
        self._ended = 0

    async def run(self) -> dict[str, Any]:
        plan = self._plan
        self._loop = loop = asyncio.get_running_loop()
        self._finished = loop.create_future()
        print("ready", flush=True)
        start = int(await asyncio.to_thread(sys.stdin.readline))
        gc.collect()
        gc.disable()
        timer = self._timer = Timer(loop, self._ring)
        self._due = plan.due + start if plan.due is not None else np.empty(0, np.int64)
        self._until = start + plan.span
        timer.set(int(self._due[0]) if plan.due is not None else start)
        try:
            await asyncio.wait_for(self._finished, (self._until + plan.drain - now_ns()) / NS_PER_S)
        except TimeoutError:
            pass
        timer.close()
        if plan.due is None:  # those that were sent
            n = self._next
            self.submitted, self.done, self.outcome = self.submitted[:n], self.done[:n], self.outcome[:n]
        return {
            "submitted": self.submitted - start,
            "done": np.where(self.done >= 0, self.done - start, -1),
            "outcome": self.outcome,
            "lost": "",
        }

    def _ring(self) -> None:
        now = now_ns()
        if self._plan.due is None:
            for _ in range(self._plan.connections):
                self._another(now)
            self._serve()
            return
        n = len(self._due)
        while self._next < n and self._due[self._next] <= now + TOGETHER_NS:
            self._waiting.append(self._next)
            self.submitted[self._next] = now
            self._next += 1
        self._serve()
        if self._next < n:
            self._timer.set(int(self._due[self._next]))

    def _another(self, now: int) -> None:
        """The next request of a closed loop."""
        self._waiting.append(self._next)
        self.submitted[self._next] = now
        self._next += 1

    def _serve(self) -> None:
        while self._waiting and self._idle:
            self._send(self._idle.pop(), self._waiting.popleft())
        while self._waiting and self._open < self._plan.connections:
            self._open += 1
            self._loop.create_task(self._connect(self._waiting.popleft()))

    async def _connect(self, request: int) -> None:
        try:
            _, connection = await self._loop.create_connection(
                lambda: _Connection(self), self._plan.host, self._plan.port
            )
        except OSError:
            self._open -= 1
            self._end(request, Outcome.FAILED)
            return
        self._send(connection, request)

    def _send(self, connection: _Connection, request: int) -> None:
        connection.request = request
        connection.transport.write(self._message)

    def answered(self, connection: _Connection, ok: bool, closes: bool) -> None:
        request, connection.request = connection.request, -1
        self._end(request, Outcome.OK if ok else Outcome.FAILED)
        if closes:
            connection.transport.close()
        else:
            self._idle.append(connection)
            self._serve()

    def lost(self, connection: _Connection) -> None:
        self._open -= 1
        if connection in self._idle:
            self._idle.remove(connection)
        if connection.request >= 0:
            self._end(connection.request, Outcome.FAILED)
        self._serve()

    def _end(self, request: int, outcome: Outcome) -> None:
        self.done[request] = now_ns()
        self.outcome[request] = outcome
        self._ended += 1
        if self._plan.due is None:
            if (now := now_ns()) < self._until and self._next < len(self.outcome):
                self._another(now)
            last = self._next
        else:
            last = len(self.outcome)
        if self._ended == last and not self._finished.done():
            self._finished.set_result(None)


if __name__ == "__main__":
    main(_HttpGenerator)
