"""Keeps what the dispatcher knows about the processes at the other ends of the lane."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from symphony_dask.dispatcher.delay import Latency
from symphony_dask.errors import BadInput

#: Until a worker was heard, a batch is taken to need this long on the way there and back, ns.
FIRST_ROUND_TRIP_NS = 1_000_000


#: No worker has more slots.
MOST_SLOTS = 4096


@dataclass
class Client:
    """What is kept about a client's connection."""

    index: int
    round_trip: Latency = field(default_factory=Latency)
    pinged: bool = False  #: whether the answer to a ping is under way

    def one_way_ns(self) -> int:
        """What to judge by: the mean."""
        return int(self.round_trip.mean_ns) // 2

    def one_way_bound_ns(self) -> int:
        """What to plan with."""
        return self.round_trip.bound_ns() // 2


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


def worker_of(hello: dict[str, Any]) -> Worker:
    """What a worker says of itself in HELLO; raises ``BadInput`` unless it can be used."""
    host, port = hello.get("lane") or ("", 0)
    texts = (hello["worker"], hello["host"], hello["gpu_class"], host)
    slots, memory = hello["slots"], hello.get("memory")
    if not all(isinstance(text, str) for text in texts):
        raise BadInput(f"lane HELLO of a worker has {texts}: address, host, GPU class and lane must be text")
    if type(slots) is not int or not 1 <= slots <= MOST_SLOTS:
        raise BadInput(f"lane HELLO of worker {texts[0]} has {slots!r} slots: give 1 to {MOST_SLOTS}")
    if (
        type(port) is not int
        or not 0 <= port <= 65_535
        or not (memory is None or (type(memory) is int and memory >= 0))
    ):
        raise BadInput(f"lane HELLO of worker {texts[0]} has port {port!r} and memory {memory!r}")
    return Worker(texts[0], texts[1], slots, texts[2], (host, port), memory)
