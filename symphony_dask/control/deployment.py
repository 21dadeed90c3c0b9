"""Describes one deployed version of a model: what was asked for, and what was measured of it since."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from symphony_dask.dispatcher.run_log import label
from symphony_dask.engine.batching import AS_ALL, Batching
from symphony_dask.engine.latency_profile import LatencyProfile
from symphony_dask.wire import codec

State = Literal["loading", "serving", "canary", "draining", "retired"]


@dataclass
class Deployment:
    """One version of a model. ``profiles`` are by GPU class; a given one holds for every class.

    memory: bytes that it needs in a slot, as given or measured; None as long as it is not known.
    declared: what a declaration file says of it (``symphony apply``), None if no file does.
    """

    model_id: int
    name: str
    spec: bytes
    slo_ns: int
    max_batch: int
    queue_limit: int
    example: bytes | None
    given: LatencyProfile | None
    version: str = "1"
    memory: int | None = None
    pinned: bool = False
    signature: bytes | None = None
    declared: dict[str, Any] | None = None
    batching: Batching = AS_ALL
    profiles: dict[str, LatencyProfile] = field(default_factory=dict)
    answer: list[Any] | None = None  #: the form of an answer (``codec.form``), once the example has had one
    load_ns: int = 0  #: of the last load, with all that it took
    warning: str = ""  #: what whoever deployed it should know, though it serves
    state: State = "loading"
    profiling: asyncio.Lock = field(default_factory=asyncio.Lock, repr=False)
    # What the loader last saw of its requests (``placement`` rule 3).
    seen: int = 0
    asked_ns: int = -(2**62)
    dropped: int = 0
    missed: bool = False
    waiting_ns: int = 0

    @property
    def label(self) -> str:
        return label(self.name, self.version)

    @cached_property
    def form(self) -> list[Any] | None:
        """What a sample is made of (``codec.form``); None without an example."""
        return codec.form(self.example) if self.example is not None else None
