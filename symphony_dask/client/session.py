"""Keeps a client's connection to the dispatcher: requests leave on it from any thread, and their answers come back.

One frame leaves in a tick of the event loop, with all requests that were submitted in it.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar

import dask.config
import numpy as np
from distributed import Client

from symphony_dask import errors
from symphony_dask.client.future import InferenceFuture, Waiting
from symphony_dask.client.transfer import Direct
from symphony_dask.clock import now_ns
from symphony_dask.errors import ConnectionLost, NoAnswer
from symphony_dask.text import brief
from symphony_dask.trace.schema import Outcome
from symphony_dask.units import format_duration
from symphony_dask.wait_checks import AnsweringLoop, is_closed
from symphony_dask.wire.connection import Connection
from symphony_dask.wire.directions import SCHEDULER_TO_CLIENT
from symphony_dask.wire.error_codes import ErrorCode, Failure
from symphony_dask.wire.handshake import connect
from symphony_dask.wire.hello import ClientHello
from symphony_dask.wire.messages import OVERDUE_NS, RELAYED, Cancel, Place, Result, Submit
from symphony_dask.wire.records import SUBMIT_ROW, make_column, make_records

#: A frame of requests ends with the one that reaches so many bytes.
FRAME_BYTES = 1 << 24

#: The scheduler pings its clients every 0.2 s. One that has said nothing for so long is silent, and requests whose
#: deadline is longer ago than OVERDUE_NS then end here; ends of requests are looked for every WATCH_S.
_SILENT_NS = 300_000_000
_WATCH_S = 0.1

#: A look that is later than this is late, ns: this process stood still, and may have answers that it has not read yet.
_LATE_LOOK_NS = 300_000_000

W = TypeVar("W", bound=Waiting)

_OUTCOMES = {int(o): o.name.lower() for o in Outcome}


class Session:
    """The client's lane connection: submissions from any thread, one frame a tick of the client's event loop."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._connection: Connection[None] | None = None
        self._direct: Direct | None = None
        self._pending: dict[int, Waiting] = {}
        self._outbox: deque[tuple[int, int, int, int, int, bytes | memoryview]] = deque()
        self._cancels: deque[int] = deque()
        self._flush_due = False
        self._next = 0
        self._numbering = threading.Lock()
        self._watch: asyncio.Task[None] | None = None
        self._answering: AnsweringLoop | None = None
        self._wait_ns = 0  # for so long the scheduler lets requests wait for a first GPU
        self.scheduler_id = ""
        #: Names of models that were heard of, by their number here.
        self.names: dict[int, str] = {}

    @property
    def connected(self) -> bool:
        return self._connection is not None and not self._connection.closed and not is_closed(self._client)

    def check_wait(self) -> None:
        """Raises ``ConnectionLost`` or ``WouldDeadlock`` where to wait for an answer would never end."""
        if self._answering is not None:
            self._answering.check_wait()

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The event loop that the connection is in; there is none before ``open``."""
        return self._loop

    async def open(self, host: str, info: dict[str, Any]) -> None:
        self._fail_all("the connection to the scheduler was lost")  # what an earlier connection may have left
        self._loop = asyncio.get_running_loop()
        self.scheduler_id = info["scheduler"]
        self._thread = threading.get_ident()
        self._answering = AnsweringLoop(self._loop)
        hello = ClientHello(token=info["token"])
        ssl_context = self._client.security.get_connection_args("client").get("ssl_context")
        try:
            self._connection, welcome = await connect(
                host, info["port"], hello, self._frame, self._lost, peer=None, ssl_context=ssl_context
            )
        except (OSError, TimeoutError) as error:
            text = f"the lane at {host}:{info['port']} cannot be reached: {error or type(error).__name__}"
            raise ConnectionLost(f"{text}; check that the port is open, or set symphony.lane.port") from error
        self._connection.on_drained = self._wake
        self._wait_ns = welcome.wait_ns
        self._direct = Direct(
            self._connection,
            welcome,
            info["token"],
            ssl_context=ssl_context,
            relay=str(dask.config.get("symphony.lane.relay")),
            pending=self._pending,
            on_answer=self._answered,
            on_broken=self._broken,
        )
        if self._watch is None:
            self._watch = self._loop.create_task(self._watch_loop())

    async def _watch_loop(self) -> None:
        """End requests that a silent scheduler does not end, and all of them when the event loop does, as when the Dask
        client is closed: it cancels its tasks then.
        """
        heard, heard_ns, looked_ns = -1, 0, 0
        # Answers that are under way from workers: what has been read from there, and when that was less.
        expected: dict[int, tuple[int, int]] = {}
        try:
            while True:
                await asyncio.sleep(_WATCH_S)
                if is_closed(self._client):  # in an event loop that goes on, as that of a cluster in this process
                    return
                now, connection, direct = now_ns(), self._connection, self._direct
                read = connection.bytes_in if connection is not None else 0
                late = now - looked_ns > _LATE_LOOK_NS
                looked_ns = now
                if read != heard:
                    heard, heard_ns = read, now
                if now - heard_ns > _SILENT_NS and not late:
                    text = f"the scheduler has been silent for {format_duration(now - heard_ns)}"
                    self._end_overdue(now, list(self._pending), text)
                before, expected = expected, {}
                for request, come in (direct.expected if direct is not None else {}).items():
                    known = before.get(request)
                    expected[request] = known if known is not None and known[0] == come else (come, now)
                stuck = [r for r, (_, since_ns) in expected.items() if now - since_ns > _SILENT_NS]
                if stuck and not late:
                    self._end_overdue(now, stuck, "its answer does not arrive from the worker")
        finally:
            self._watch = None
            self._hang_up("the Dask client was closed")

    def _end_overdue(self, now: int, requests: list[int], why: str) -> None:
        """Wait no longer for those of some requests that should have ended."""
        for request in requests:
            future = self._pending.get(request)
            if future is None or now <= future.ends_ns + OVERDUE_NS + self._wait_ns:
                continue
            self._cancel(request)
            text = f"{why}, and the deadline is over: whether the request ran is not known; check the network"
            future._finish("failed", None, NoAnswer(text))

    async def close(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
        self._hang_up("the lane was closed by Serving.close()")

    def _hang_up(self, text: str) -> None:
        if self._connection is not None:
            self._flush()
            self._connection.close()
        if self._direct is not None:
            self._direct.close()
        self._fail_all(text)

    def submit(
        self,
        model_id: int,
        payload: bytes | memoryview,
        slo_ns: int,
        priority: int,
        make: Callable[[int, Callable[[int], None]], W] = InferenceFuture,  # type: ignore[assignment]
        *,
        within_ns: int,
        began_ns: int | None = None,
    ) -> W:
        """What ``make(request, on_cancel)`` gives, once the request is in the outbox.

        slo_ns: 0 for the model's. within_ns: what its SLO is as far as is known here. began_ns: from when it counts, on
        ``clock.now_ns``; by default from now.
        """
        if self._answering is None:
            raise ConnectionLost("the lane to the scheduler was never opened: await Serving(client) first")
        self._answering.check_process()
        if not self.connected:
            closed = is_closed(self._client)
            text = "the Dask client is closed" if closed else "the connection to the scheduler is gone"
            raise ConnectionLost(f"{text}: make a new {'Client and Serving' if closed else 'Serving(client)'}")
        with self._numbering:
            request = self._next
            self._next += 1
        future = make(request, self._cancel)
        began_ns = now_ns() if began_ns is None else began_ns
        future.ends_ns, future.answered_in, future.model_id = began_ns + within_ns, self._answering, model_id
        self._pending[request] = future
        self._outbox.append((model_id, slo_ns, began_ns, request, priority, payload))
        self._wake()
        if not self.connected:  # lost between the check and the append: nobody will look at the outbox again
            self._fail_all("the connection to the scheduler was lost")
        return future

    def _wake(self) -> None:
        """Have the outbox sent at the end of the event loop's tick, from whichever thread this is."""
        if self._flush_due:
            return
        self._flush_due = True
        try:
            if threading.get_ident() == self._thread:
                self._loop.call_soon(self._flush)
            else:
                self._loop.call_soon_threadsafe(self._flush)
        except RuntimeError:  # the event loop is closed
            self._flush_due = False
            self._fail_all("the Dask client is closed")

    def later(self, wait_s: float, future: InferenceFuture, call: Callable[[], None]) -> None:
        """Have ``call()`` made in the event loop after ``wait_s``; ``future`` fails if the connection ends before."""
        waits = -1 - future.request  # no request has this number
        self._pending[waits] = future

        def due() -> None:
            if self._pending.pop(waits, None) is not None:
                call()

        try:
            self._loop.call_soon_threadsafe(self._loop.call_later, wait_s, due)
        except RuntimeError:  # the event loop is closed
            self._fail_all("the Dask client is closed")

    def _cancel(self, request: int) -> None:
        self._pending.pop(request, None)
        self._cancels.append(request)
        self._wake()

    def _flush(self) -> None:
        self._flush_due = False
        connection, direct = self._connection, self._direct
        if connection is None or direct is None or connection.stuck:
            return
        rows: list[tuple[int, int, int, int, int, bytes | memoryview]] = []
        payloads: list[bytes | memoryview] = []
        held: list[bool] = []
        left = FRAME_BYTES
        while self._outbox and left > 0:
            try:
                rows.append(self._outbox.popleft())
            except IndexError:  # another thread found the connection lost
                break
            payload = rows[-1][-1]
            held.append(direct.keeps(len(payload)))
            if held[-1]:
                direct.hold(rows[-1][3], payload)
            else:
                payloads.append(payload)
                left -= len(payload)
        if rows:
            models, slos, times, requests, priorities, samples = zip(*rows, strict=True)
            try:
                records = make_records(
                    SUBMIT_ROW, len(rows), id=requests, slo=slos, age=now_ns() - np.array(times, np.int64),
                    model=models, bytes=[len(p) for p in samples], priority=priorities, held=held,
                )  # fmt: skip
                connection.send(Submit(records), *payloads)
            except Exception as error:  # they have left the outbox, and nobody else would end them
                for request in requests:
                    direct.forget(request)
                    if (future := self._pending.pop(request, None)) is not None:
                        future._finish("failed", None, errors.RequestError(f"it cannot be sent: {brief(error)}"))
        if self._cancels:
            cancels = [self._cancels.popleft() for _ in range(len(self._cancels))]
            connection.send(Cancel(make_column(cancels)))
            for request in cancels:
                direct.forget(request)
        if self._outbox:
            self._wake()

    def _frame(self, connection: Connection[None], op: int, fields: list[Any], blob: memoryview) -> None:
        direct = self._direct
        assert direct is not None
        message = SCHEDULER_TO_CLIENT.read(op, fields, blob)
        if isinstance(message, Result):
            self._end(direct, message, blob)
        elif isinstance(message, Place):
            direct.place(message.batch, message.host, message.port, message.ids.tolist())
        else:
            direct.take(RELAYED, message, blob)

    def _end(self, direct: Direct, result: Result, blob: memoryview) -> None:
        """End the requests that a RESULT tells of, but for those whose answers come from a worker."""
        failures = result.failures
        at = 0
        for i, (request, size, link, outcome) in enumerate(result.rows.tolist()):
            if link >= 0:
                direct.outcome(request, link, _OUTCOMES[outcome])
                continue
            direct.forget(request)
            future = self._pending.pop(request, None)
            payload = blob[at : at + size]
            at += size
            if future is None:
                continue
            if i in failures:
                future._finish(_OUTCOMES[outcome], None, self._named(failures[i], future.model_id).error())
            else:
                future._answer(_OUTCOMES[outcome], payload)

    def _named(self, failure: Failure, model_id: int) -> Failure:
        """One about a number that the scheduler no longer knows says the name that it was of."""
        if failure.code != ErrorCode.UNKNOWN_MODEL or model_id not in self.names:
            return failure
        remedy = "serving.deployed() has what is, and serving.find(name) a handle to what serves now"
        text = f"model {self.names[model_id]!r} is not deployed any more: deploy it again ({remedy})"
        return failure._replace(text=text)

    def _answered(self, request: int, outcome: str, payload: memoryview) -> None:
        future = self._pending.pop(request, None)
        if future is not None:
            future._answer(outcome, payload)

    def _broken(self, request: int, text: str) -> None:
        future = self._pending.pop(request, None)
        if future is not None:
            future._finish("failed", None, ConnectionLost(f"{text} before the answer came"))

    def _lost(self, connection: Connection[None], error: Exception | None) -> None:
        if connection is self._connection:  # and not an earlier one
            if self._direct is not None:
                self._direct.close()
            self._fail_all(f"the connection to the scheduler was lost ({error or 'closed'})")

    def _fail_all(self, text: str) -> None:
        """End every request without an answer; whether it ran is not known."""
        self._outbox.clear()
        while self._pending:
            try:
                _, future = self._pending.popitem()
            except KeyError:  # another thread took the last one
                break
            future._finish("failed", None, ConnectionLost(f"{text} before the answer came"))
