"""Makes a wall clock jump, as when its host is set: in one process, and for what may decide by it."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

_TRUE_S, _TRUE_NS = time.time, time.time_ns

#: What modules here hold instead of ``time.time`` and ``time.time_ns``, when they do not hold those.
_clocks: tuple[Callable[[], float], Callable[[], int]] = (_TRUE_S, _TRUE_NS)

#: Whose modules read the clock for what they do; a test runner's go on as they were.
_WHOSE = ("symphony_dask", "distributed", "dask", "tornado", "asyncio", "uvicorn", "time")


def shift(seconds: float) -> None:
    """Have the wall clock of this process be so far ahead of the true one, below 0 behind it; 0 sets it right."""
    global _clocks
    ahead_ns = round(seconds * 10**9)
    new: tuple[Callable[[], float], Callable[[], int]] = (
        (lambda: _TRUE_S() + seconds, lambda: _TRUE_NS() + ahead_ns) if seconds else (_TRUE_S, _TRUE_NS)
    )
    replaced = dict(zip(_clocks, new, strict=True))
    for module in list(sys.modules.values()):
        if getattr(module, "__name__", "").split(".")[0] in _WHOSE:
            for name, value in list(vars(module).items()):
                if callable(value) and any(value is old for old in replaced):
                    setattr(module, name, replaced[value])
    _clocks = new
