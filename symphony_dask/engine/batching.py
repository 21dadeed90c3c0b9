"""Says how a model's batches are formed, where that differs from all others'. Clients import it: it needs nothing."""

from __future__ import annotations

from typing import NamedTuple

#: What a model prefers: to start at once while few GPUs are at work, or to wait for its window, which saves GPU time.
PREFER = ("latency", "gpus")


class Batching(NamedTuple):
    """policy: a policy of the model's own, None for that of all.

    prefer: of ``PREFER``; it matters under policy adaptive only.
    max_delay_ns: how long a request waits at most for its window to open; None for no such limit.
    """

    policy: str | None = None
    prefer: str = "latency"
    max_delay_ns: int | None = None


#: As all other models.
AS_ALL = Batching()
