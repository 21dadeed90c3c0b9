"""Gathers batches on the worker: serves clients that send payloads directly, and waits for those payloads.

EXECUTE says which payloads of a batch are held by clients. They come as DATA, from a client itself or by way of the
scheduler, before or after EXECUTE, in any number of frames. The batch starts when all are there, so that it is fetched
while the one before runs; batches of a slot start in the order in which they became complete. What has not come after
``wait_ns`` and is not on its way either, what a client says will not come, and what a client held that is gone (GONE),
is *lost*: the batch starts without it, and DONE names it.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from symphony_dask.backends import BatchResult
from symphony_dask.clock import now_ns
from symphony_dask.errors import BadInput
from symphony_dask.timeouts import ConnectionTimeouts
from symphony_dask.wire import batch_codec
from symphony_dask.wire.connection import MAX_FRAME_BYTES, Connection
from symphony_dask.wire.directions import CLIENT_TO_WORKER
from symphony_dask.wire.handshake import accept
from symphony_dask.wire.hello import LinkHello, Welcome
from symphony_dask.wire.listener import Listener
from symphony_dask.wire.messages import PART_BYTES, RELAYED, Answer, Data, Execute, in_parts
from symphony_dask.wire.records import DONE_ROW, Records, make_records

logger = logging.getLogger(__name__)

Sizes = npt.NDArray[np.int64]

#: What a client may send for batches that are not here yet: bytes, frames. Their EXECUTE left before it was told.
MOST_EARLY_BYTES, MOST_EARLY = 1 << 28, 1024

#: Payloads are waited for beyond ``wait_ns`` while so many bytes/s come from where they are, but so many s at most.
LEAST_BYTES_PER_S, LONGEST_S = 1 << 20, 60.0

#: What an id and a size in a list take, about, bytes.
_ID_BYTES = 64


@dataclass
class Batch:
    """A batch of n requests at the worker, from EXECUTE on.

    sizes, clients, ids: (n,) columns.
    blob: the payloads of ``present`` requests, one after the other or a list.
    tasks: name of each request that is a graph task (``task_rendezvous``), by its index; empty if it does not come.
    lost: indices of requests whose payload did not come.
    """

    number: int
    slot: int
    model_id: int
    sizes: Sizes
    clients: npt.NDArray[np.int32]
    ids: npt.NDArray[np.int64]
    blob: batch_codec.Blob
    received_ns: int
    tasks: Mapping[int, str] = field(default_factory=dict)
    lost: set[int] = field(default_factory=set)

    def present(self) -> list[int]:
        """Indices of the requests that can run."""
        return [i for i in range(len(self.sizes)) if i not in self.lost]

    def present_sizes(self) -> Sizes:
        """The sizes of the payloads in ``blob``."""
        return self.sizes[self.present()] if self.lost else self.sizes


@dataclass
class _Waiting:
    """A batch with payloads to come: ``missing`` has the index of each by (client, request id)."""

    batch: Batch
    payloads: list[memoryview]
    missing: dict[tuple[int, int], int]
    timer: asyncio.TimerHandle | None = None
    ends_s: float = 0.0  #: when to wait no longer, whatever comes
    read: int = 0  #: bytes that had come when the timer was set
    whole: memoryview | None = None


@dataclass(frozen=True)
class LinkPeer:
    """A client at the other end of a connection, and the number that it gave the connection."""

    client: int
    link: int


class BatchInbox:
    """Gathers payloads, and hands each batch to ``on_complete`` when they are there."""

    def __init__(self, on_complete: Callable[[Batch], None], timeouts: ConnectionTimeouts | None = None) -> None:
        #: The cluster's, known once the scheduler was reached.
        self.token: str | None = None
        #: Answers above so many bytes leave on links, where there are any.
        self.inline_bytes = MAX_FRAME_BYTES
        self._on_complete = on_complete
        self._waiting: dict[int, _Waiting] = {}
        self._early: dict[int, list[tuple[int, list[int], list[int], memoryview]]] = {}
        self._newest = -1
        self._listener: Listener[LinkPeer] = Listener(self._frame, self._lost, timeouts=timeouts, bounded=True)
        #: The newest batch for each slot.
        self.newest: dict[int, int] = {}
        self._links: dict[int, Connection[LinkPeer]] = {}
        #: What payloads that are relayed come on.
        self.scheduler: Connection[None] | None = None

    async def listen(self, host: str, ports: Iterable[int], ssl_context: ssl.SSLContext | None) -> int:
        """Listen on the first of ``ports`` that is free (0: any) and return it; raises ``OSError``."""
        failure = OSError("no port was given")
        for port in ports:
            try:
                await self._listener.listen(host, port, ssl_context)
            except OSError as error:
                failure = error
            else:
                return self._listener.port
        raise failure

    def close(self) -> None:
        self._listener.close()
        self.clear()

    def clear(self) -> None:
        """The scheduler is gone, or has given this worker up: forget its batches, and hang up on clients."""
        for waiting in self._waiting.values():
            if waiting.timer is not None:
                waiting.timer.cancel()
        self._waiting.clear()
        self._early.clear()
        self._newest = -1
        self.newest.clear()
        self._listener.hang_up()

    # Batches

    def execute(self, message: Execute, blob: memoryview) -> None:
        """EXECUTE: a batch to run when its payloads are there."""
        number, slot, model_id, requests, wait_ns, tasks = message
        sizes, clients, ids = requests["bytes"], requests["client"], requests["id"]
        batch = Batch(number, slot, model_id, sizes, clients, ids, blob, now_ns(), tasks)
        self._newest = self.newest[slot] = number
        if not wait_ns:
            self._on_complete(batch)
            return
        held = requests["held"] != 0
        owners = zip(clients.tolist(), ids.tolist(), strict=True)
        missing: dict[tuple[int, int], int] = {}
        for i, (key, is_held) in enumerate(zip(owners, held.tolist(), strict=True)):
            if is_held and missing.setdefault(key, i) != i:
                batch.lost.add(i)  # a client that gives two requests one number sends one payload for it
        waiting = _Waiting(batch, batch_codec.split(blob, np.where(held, 0, sizes)), missing)
        self._waiting[number] = waiting
        loop = asyncio.get_running_loop()
        waiting.ends_s = loop.time() + wait_ns / 1e9 + LONGEST_S
        self._set_timer(loop, waiting, wait_ns / 1e9)
        for data in self._early.pop(number, ()):
            self._take(number, *data)
        # Batches come in the order of their numbers, so older ones will not come any more.
        for old in [n for n in self._early if n < number]:
            del self._early[old]

    def data(self, data: Data, blob: memoryview) -> None:
        """DATA: payloads for a batch."""
        self._take(data.batch, data.client, data.ids.tolist(), data.sizes.tolist(), blob)

    def gone(self, client: int) -> None:
        """GONE: a client is lost, and what it held."""
        for waiting in list(self._waiting.values()):
            self._give_up(waiting, client)
        connection = self._links.get(client)
        if connection is not None:
            connection.close()

    def forget(self, slot: int) -> None:
        """Batches of a slot that wait for payloads are not to run any more."""
        for waiting in [w for w in self._waiting.values() if w.batch.slot == slot]:
            del self._waiting[waiting.batch.number]
            if waiting.timer is not None:
                waiting.timer.cancel()

    def _take(self, number: int, client: int, ids: list[int], sizes: list[int], blob: memoryview) -> None:
        waiting = self._waiting.get(number)
        if waiting is None:
            if number > self._newest:
                self._check_early(client, len(ids), len(blob))
                self._early.setdefault(number, []).append((client, ids, sizes, blob))
            return  # otherwise its batch has started
        batch = waiting.batch
        at, taken, expected = 0, 0, batch.sizes
        for request, size in zip(ids, sizes, strict=True):
            i = waiting.missing.pop((client, request), None)
            if i is not None and size == expected[i]:
                waiting.payloads[i] = blob[at : at + size]
                taken += 1
            elif i is not None:
                batch.lost.add(i)
            at += max(size, 0)
        if taken == len(expected) and ids == batch.ids.tolist():
            waiting.whole = blob
        if not waiting.missing:
            self._complete(waiting)

    def _check_early(self, client: int, more_ids: int, more_bytes: int) -> None:
        """Raise ``BadInput`` if a client has sent too much ahead."""
        early = [
            len(blob) + _ID_BYTES * len(ids)
            for parts in self._early.values()
            for other, ids, _, blob in parts
            if other == client
        ]
        if len(early) >= MOST_EARLY or sum(early) + more_bytes + _ID_BYTES * more_ids > MOST_EARLY_BYTES:
            text = f"client {client} has sent {len(early)} frames of {sum(early)} bytes for batches that are not here"
            raise BadInput(f"{text}: the most is {MOST_EARLY} of {MOST_EARLY_BYTES}")

    def _set_timer(self, loop: asyncio.AbstractEventLoop, waiting: _Waiting, wait_s: float) -> None:
        waiting.read = self._read_for(waiting)
        waiting.timer = loop.call_later(wait_s, self._time_up, loop, waiting, wait_s)

    def _time_up(self, loop: asyncio.AbstractEventLoop, waiting: _Waiting, wait_s: float) -> None:
        """Wait on for what is coming, or no longer."""
        come = self._read_for(waiting) - waiting.read
        if come > wait_s * LEAST_BYTES_PER_S and loop.time() < waiting.ends_s:
            self._set_timer(loop, waiting, min(wait_s, 1.0))
        else:
            self._give_up(waiting, None)

    def _read_for(self, waiting: _Waiting) -> int:
        """What has been read so far on the connections that a batch's payloads are to come on."""
        links = {self._links[client] for client, _ in waiting.missing if client in self._links}
        if not links:
            return self.scheduler.bytes_in if self.scheduler is not None else 0
        return sum(link.bytes_in for link in links)

    def _give_up(self, waiting: _Waiting, client: int | None) -> None:
        """Wait no longer for the payloads of a client, or of all."""
        for key in [key for key in waiting.missing if client is None or key[0] == client]:
            waiting.batch.lost.add(waiting.missing.pop(key))
        if not waiting.missing:
            self._complete(waiting)

    def _complete(self, waiting: _Waiting) -> None:
        if self._waiting.pop(waiting.batch.number, None) is None:
            return
        if waiting.timer is not None:
            waiting.timer.cancel()
        if waiting.whole is not None:
            waiting.batch.blob = waiting.whole
        else:
            # Not joined: that takes seconds for large ones, in which this loop would answer nobody.
            waiting.batch.blob = [waiting.payloads[i] for i in waiting.batch.present()]
        self._on_complete(waiting.batch)

    # Answers

    def answer(self, batch: Batch, result: BatchResult, scheduler: Connection[None]) -> tuple[Records, list[Any]]:
        """Send large answers to their clients; returns the rows of DONE, and the answers left for it."""
        total = batch_codec.blob_bytes(result.blob)
        has_large = total > self.inline_bytes and bool((result.sizes > self.inline_bytes).any())
        if total <= PART_BYTES and not has_large:
            done = make_records(DONE_ROW, len(result.sizes), bytes=result.sizes, link=-1)
            return done, [*result.blob] if isinstance(result.blob, list) else [result.blob]
        large = result.sizes > self.inline_bytes
        links = np.full(len(result.sizes), -1, np.int32)
        if int(result.sizes[~large].sum()) > PART_BYTES:
            large = result.sizes > 0
        parts = batch_codec.split(result.blob, result.sizes)
        for client in np.unique(batch.clients[large]).tolist():
            link = self._links.get(client)
            if link is not None and link.closed:
                link = None
            at = np.flatnonzero(large & (batch.clients == client))
            for some in in_parts(result.sizes[at].tolist()):
                mine = at[some]
                answer = Answer(client, batch.ids[mine], result.sizes[mine])
                (link or scheduler).send(answer, *[parts[i] for i in mine])
            links[at] = RELAYED if link is None else link.peer.link
        done = make_records(DONE_ROW, len(links), bytes=result.sizes, link=links)
        return done, [parts[i] for i in np.flatnonzero(links < 0)]

    # Connections

    def _frame(self, connection: Connection[LinkPeer | None], op: int, fields: list[Any], blob: memoryview) -> None:
        peer = connection.peer
        if peer is not None:
            self.data(CLIENT_TO_WORKER.read(op, fields, blob)._replace(client=peer.client), blob)
            return
        hello, version = accept(connection, op, fields, self.token)
        if not isinstance(hello, LinkHello):
            raise BadInput("lane HELLO to a scheduler came to a worker: connect to the scheduler's lane")
        self._listener.welcome(connection)
        connection.peer = LinkPeer(hello.client, hello.link)
        self._links[hello.client] = cast("Connection[LinkPeer]", connection)
        connection.send(Welcome(version))

    def _lost(self, connection: Connection[LinkPeer | None], error: Exception | None) -> None:
        peer = connection.peer
        if peer is not None and self._links.get(peer.client) is connection:
            del self._links[peer.client]
            self._early = {
                number: kept
                for number, parts in self._early.items()
                if (kept := [part for part in parts if part[0] != peer.client])
            }
