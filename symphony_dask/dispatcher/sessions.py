"""Keeps what the dispatcher knows about the processes at the other ends of the lane."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from symphony_dask.dispatcher.delay import Latency, RecentDelay
from symphony_dask.wire.connection import Buffer, Message
from symphony_dask.wire.hello import WorkerHello

#: Until a worker was heard, a batch is taken to need this long on the way there and back, ns.
FIRST_ROUND_TRIP_NS = 1_000_000

#: A ping goes behind a client's answers no more often than this, ns: one batch in so long tells of all.
FOLLOW_NS = 50_000_000

#: However long a ping takes, or a client lets it seem to, it counts as this at most, ns.
MOST_ROUND_TRIP_NS = 60_000_000_000


@dataclass
class Client:
    """What is kept about a client's connection.

    A client answers a ping after what came before it. So one behind answers comes back later than one alone, by what
    the client took until it had them in hand: it read them, ended their futures and called their callbacks. The least
    round trip of late is what the network takes: a client that is busy, or gets too little of a CPU, answers pings
    late, too, but not all of them.
    """

    index: int
    round_trip: RecentDelay = field(default_factory=RecentDelay)  #: of pings alone
    in_hand: RecentDelay = field(default_factory=RecentDelay)  #: by how much those behind answers take longer
    pinged: bool = False  #: whether the answer to a ping is under way
    behind: bool = False  #: and that ping went behind answers
    followed_ns: int = 0  #: when one last did

    def ponged(self, took_ns: int, now_ns: int) -> None:
        """The answer to a ping has come, so long after it: by what the client says, who may say anything."""
        took_ns = min(took_ns, MOST_ROUND_TRIP_NS)
        if self.behind:
            self.in_hand.add(took_ns - self.round_trip.least_ns, now_ns)
        # One behind answers that is back sooner shows that those alone were held up.
        if not self.behind or took_ns < self.round_trip.least_ns:
            self.round_trip.add(took_ns, now_ns)

    def one_way_ns(self) -> int:
        """What to judge by: half of what the network takes."""
        return self.round_trip.least_ns // 2

    def one_way_bound_ns(self) -> int:
        """What to plan with."""
        return self.round_trip.bound_ns // 2


@dataclass
class Worker:
    """What is kept about a worker's connection. ``gpus`` are its slots' numbers in the engine, once it serves."""

    address: str
    host: str
    slots: int
    gpu_class: str
    lane: tuple[str, int]  #: host and port where clients reach it; ("", 0): they cannot
    memory: int | None = None  #: bytes for models in each slot; None: no limit
    control: Latency = field(default_factory=lambda: Latency(FIRST_ROUND_TRIP_NS // 2))  #: dispatch to start
    #: from the predicted end to the answer at the scheduler
    reply: Latency = field(default_factory=lambda: Latency(FIRST_ROUND_TRIP_NS // 2))
    pinged_ns: int = 0  #: since when it answers no ping; 0: it does, or was not asked
    moved: tuple[int, int] = (0, 0)  #: bytes that came, and how often it took what had to wait, when last looked at
    moved_ns: int = 0  #: when that changed
    heard: int = 0  #: samples of ``reply`` at the last look
    gpus: list[int] = field(default_factory=list)
    draining: bool = False  #: takes nothing new
    closing: bool = False  #: draining, but takes what is queued, since no other worker is left for it


class ClientEnd(Protocol):
    """What a client is answered on: its connection, or itself where it is in this process."""

    peer: Client

    def send(self, message: Message, *blobs: Buffer) -> None:
        """Take a message, as a connection does; does not raise."""


#: What a server keeps about the peer of a connection, once it has said HELLO.
Session = Client | Worker


def worker_of(hello: WorkerHello) -> Worker:
    """What a worker says of itself."""
    return Worker(hello.worker, hello.host, hello.slots, hello.gpu_class, hello.lane, hello.memory)
