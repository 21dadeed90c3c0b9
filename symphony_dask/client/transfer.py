"""Keeps large payloads until their worker is known, sends them there, and takes answers from workers.

A payload above ``inline_bytes`` stays here when its request is submitted. PLACE says which worker the request's batch
went to, and the payload goes there as DATA on the client's connection to that worker (a *link*), opened on first use.
Where a link does not open within ``PATIENCE_S``, or breaks before the request has ended, the same DATA goes to the
scheduler, which passes it on: the *relay*. A payload is let go when its request ends, so a lost worker costs nothing
but another DATA.

A large answer comes as ANSWER on a link, its outcome as RESULT from the scheduler, in either order. If the link breaks
between them, the answer is lost: the request has run, and ends as ``ConnectionLost``.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable, Container, Iterable
from dataclasses import dataclass, field
from typing import Any

from symphony_dask.errors import BadInput
from symphony_dask.wire.connection import Connection
from symphony_dask.wire.directions import WORKER_TO_CLIENT
from symphony_dask.wire.handshake import connect
from symphony_dask.wire.hello import LinkHello, Welcome
from symphony_dask.wire.messages import Answer, Data, in_parts
from symphony_dask.wire.records import make_column

logger = logging.getLogger(__name__)

#: ``symphony.lane.relay``: relay what cannot go directly, relay all, or end what cannot go directly as ``PayloadLost``.
RELAY = ("auto", "always", "never")

#: How long payloads wait for a link to open before they are relayed, s; the attempt goes on for ``CONNECT_S``.
PATIENCE_S = 0.3
CONNECT_S = 5.0

#: When a worker that could not be reached is tried again, s.
RETRY_S = 30.0


@dataclass
class _KeptPayload:
    """A payload, and where it was last sent: a batch, and a link or -1."""

    payload: bytes | memoryview
    batch: int = -1
    link: int = -1


@dataclass(eq=False)
class _Link:
    """The connection to one worker, being opened, open, or failed. ``waiting`` are (batch, ids) that wait for it."""

    host: str
    port: int
    number: int = -1
    waiting: list[tuple[int, list[int]]] | None = field(default_factory=list)
    connection: Connection[int] | None = None
    task: asyncio.Task[None] | None = None
    retry_at: float = 0.0


class Direct:
    """Payloads kept, and links to workers, for one connection ``lane`` to the scheduler. In one event loop's thread.

    welcome: what the scheduler said there. token: the cluster's.
    relay: one of ``RELAY``.
    pending: the ids of requests without an answer.
    on_answer: called with (request, outcome, payload) when both an answer and its outcome have come.
    on_broken: called with (request, text) when an answer was lost.
    """

    def __init__(
        self,
        lane: Connection[None],
        welcome: Welcome,
        token: str,
        *,
        ssl_context: ssl.SSLContext | None,
        relay: str,
        pending: Container[int],
        on_answer: Callable[[int, str, memoryview], None],
        on_broken: Callable[[int, str], None],
    ) -> None:
        if relay not in RELAY:
            raise BadInput(f"setting symphony.lane.relay is {relay!r}: give one of {', '.join(RELAY)}")
        self._lane = lane
        self._client = welcome.connection
        self._inline_bytes = welcome.inline_bytes
        self._token = token
        self._ssl_context = ssl_context
        self._relay_mode = relay
        self._pending = pending
        self._on_answer = on_answer
        self._on_broken = on_broken
        self._kept: dict[int, _KeptPayload] = {}
        self._links: dict[tuple[str, int], _Link] = {}
        self._open: dict[int, _Link] = {}
        self._next_link = 0
        self._answers: dict[int, tuple[int, memoryview]] = {}
        self._outcomes: dict[int, tuple[int, str]] = {}
        self._loop = asyncio.get_running_loop()

    def keeps(self, payload_bytes: int) -> bool:
        """Whether a payload is kept; not where no worker that was tried can be reached, it would be relayed anyway."""
        if payload_bytes <= self._inline_bytes or self._relay_mode == "always":
            return False
        if self._open or not self._links or self._relay_mode == "never":
            return True
        now = self._loop.time()
        return any(link.waiting is not None or link.retry_at <= now for link in self._links.values())

    def hold(self, request: int, payload: bytes | memoryview) -> None:
        self._kept[request] = _KeptPayload(payload)

    def forget(self, request: int) -> None:
        """The request has ended, or is no longer wanted."""
        self._kept.pop(request, None)
        self._answers.pop(request, None)
        self._outcomes.pop(request, None)

    def place(self, batch: int, host: str, port: int, requests: list[int]) -> None:
        """Bring the payloads of ``requests`` to the worker at ``host`` and ``port``, which has them in ``batch``."""
        if self._relay_mode == "always":  # nothing is kept, and answers are to take that way too
            return
        link = self._links.get((host, port))
        if link is None:
            link = self._links[host, port] = _Link(host, port)
            self._start(link)
        if link.connection is not None:
            self._send(link.connection, link.number, batch, requests)
        elif link.waiting is not None:
            link.waiting.append((batch, requests))
        else:
            if link.task is None and self._loop.time() >= link.retry_at:
                self._start(link)
            self._relay(batch, requests)

    def outcome(self, request: int, link: int, outcome: str) -> None:
        """RESULT says how a request ended, and that its answer left on ``link``."""
        self._kept.pop(request, None)
        number, payload = self._answers.pop(request, (-1, None))
        if payload is not None and number == link:
            self._on_answer(request, outcome, payload)
        elif link in self._open:
            self._outcomes[request] = link, outcome
        else:
            self._on_broken(request, "the connection to the worker broke")

    def close(self) -> None:
        for link in self._links.values():
            if link.task is not None:
                link.task.cancel()
            if link.connection is not None:
                link.connection.close()
        self._links.clear()
        self._open.clear()
        for entries in (self._kept, self._answers, self._outcomes):
            entries.clear()

    def _start(self, link: _Link) -> None:
        link.number = self._next_link
        self._next_link += 1
        link.task = self._loop.create_task(self._connect(link))
        self._loop.call_later(PATIENCE_S, self._give_up, link)

    async def _connect(self, link: _Link) -> None:
        number = link.number
        hello = LinkHello(token=self._token, client=self._client, link=number)

        def lost(connection: Connection[int], error: Exception | None) -> None:
            self._lost(link, number)

        try:
            if not link.port:
                raise OSError("the worker has no lane")
            link.connection, _ = await connect(
                link.host, link.port, hello, self._frame, lost, peer=number, ssl_context=self._ssl_context,
                timeout_s=CONNECT_S,
            )  # fmt: skip
        except (OSError, TimeoutError) as error:
            text = "worker at %s:%d cannot be reached, its payloads are relayed: %s"
            logger.info(text, link.host, link.port, error or type(error).__name__)
            link.retry_at = self._loop.time() + RETRY_S
            self._give_up(link)
        else:
            self._open[number] = link
            waiting, link.waiting = link.waiting or [], []
            for batch, requests in waiting:
                self._send(link.connection, number, batch, requests)
        finally:
            link.task = None

    def _give_up(self, link: _Link) -> None:
        """Relay what waits for a link, unless it has opened."""
        if link.connection is None and link.waiting is not None:
            waiting, link.waiting = link.waiting, None
            for batch, requests in waiting:
                self._relay(batch, requests)

    def _relay(self, batch: int, requests: Iterable[int]) -> None:
        self._send(self._lane, -1, batch, requests)

    def _send(
        self, connection: Connection[None] | Connection[int], link: int, batch: int, requests: Iterable[int]
    ) -> None:
        """Send payloads in frames of about ``messages.PART_BYTES``; of a request without one, that it will not
        come.
        """
        refused = link < 0 and self._relay_mode == "never"
        ids = list(requests)
        payloads: list[bytes | memoryview | None] = []
        for request in ids:
            kept = self._kept.get(request)
            if kept is None or refused:
                payloads.append(None)
            else:
                kept.batch, kept.link = batch, link
                payloads.append(kept.payload)
        sizes = [-1 if payload is None else len(payload) for payload in payloads]
        for some in in_parts(sizes):
            data = Data(batch, self._client, make_column(ids[some]), make_column(sizes[some]))
            connection.send(data, *[payload for payload in payloads[some] if payload is not None])

    @property
    def expected(self) -> dict[int, int]:
        """Requests that have ended, whose answers are under way from workers; what has been read from there so far."""
        read = {
            number: 0 if link.connection is None else link.connection.bytes_in for number, link in self._open.items()
        }
        return {request: read.get(number, 0) for request, (number, _) in self._outcomes.items()}

    def _frame(self, connection: Connection[int], op: int, fields: list[Any], blob: memoryview) -> None:
        self.take(connection.peer, WORKER_TO_CLIENT.read(op, fields, blob), blob)

    def take(self, number: int, answer: Answer, blob: memoryview) -> None:
        """Answers have come on a link, or by way of the scheduler (RELAYED)."""
        for request, payload in answer.payloads(blob):
            link, outcome = self._outcomes.get(request, (-1, ""))
            if link == number:
                del self._outcomes[request]
                self._on_answer(request, outcome, payload)
            elif request in self._pending:
                self._answers[request] = number, payload

    def _lost(self, link: _Link, number: int) -> None:
        """A link broke: relay what may not have arrived, and end what waits for an answer from it."""
        self._open.pop(number, None)
        if self._links.get((link.host, link.port)) is link:
            del self._links[link.host, link.port]
        batches: dict[int, list[int]] = {}
        for request, kept in self._kept.items():
            if kept.link == number:
                batches.setdefault(kept.batch, []).append(request)
        for batch, requests in batches.items():
            self._relay(batch, requests)
        for request in [r for r, (on, _) in self._outcomes.items() if on == number]:
            del self._outcomes[request]
            self._on_broken(request, "the connection to the worker broke")
