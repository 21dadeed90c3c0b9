"""Reads the clock that every time in a process is measured by."""

from __future__ import annotations

import time


def now_ns() -> int:
    """Nanoseconds on the monotonic clock, the one that ``loop.call_at`` runs by. Comparable within one host only."""
    return time.monotonic_ns()
