"""Says how many requests a queue takes and which priorities there are, also to clients, which load no compiled code."""

from __future__ import annotations

#: The highest priority; the lowest and usual one is 0.
MOST_PRIORITY = 7

#: Queued requests of one model beyond which ``Engine.submit`` answers QUEUE_FULL.
DEFAULT_QUEUE_LIMIT = 10_000
