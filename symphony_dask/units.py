"""Durations as people write them ("25ms") and as the code keeps them (integer nanoseconds)."""

from __future__ import annotations

import re

from symphony_dask.errors import BadInput

NS_PER_US = 1_000
NS_PER_MS = 1_000_000
NS_PER_S = 1_000_000_000

_UNITS = {
    "ns": 1,
    "us": NS_PER_US,
    "µs": NS_PER_US,
    "ms": NS_PER_MS,
    "s": NS_PER_S,
    "m": 60 * NS_PER_S,
    "min": 60 * NS_PER_S,
    "h": 3600 * NS_PER_S,
}
_DURATION = re.compile(r"\s*([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*([a-zµ]+)\s*", re.IGNORECASE)


def parse_duration_ns(value: str | int | float, what: str = "duration") -> int:
    """Nanoseconds in ``value``: a string with a unit ("25ms", "1.5s", "2m", "1h") or a number of seconds.

    Raises ``BadInput`` when it cannot be read, or is not positive and finite.
    """
    remedy = f'write {what} with a unit, such as "25ms" or "1.5s", or as a number of seconds'
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise BadInput(f"{what} {value!r} is a {type(value).__name__}: {remedy}")
    if isinstance(value, str):
        match = _DURATION.fullmatch(value)
        if match is None or match[2].lower() not in _UNITS:
            raise BadInput(f"{what} {value!r} cannot be read: {remedy}")
        ns = float(match[1]) * _UNITS[match[2].lower()]
    else:
        ns = value * NS_PER_S
    if not 1 <= ns < 2**62:
        raise BadInput(f"{what} {value!r} is out of range: it must be above zero and below a century")
    return round(ns)


def format_duration(ns: int | float) -> str:
    """``ns`` for a person, with three significant digits: 25000000 gives "25ms"."""
    for unit, size in (("s", NS_PER_S), ("ms", NS_PER_MS), ("us", NS_PER_US)):
        if abs(ns) >= size:
            return f"{ns / size:.3g}{unit}" if abs(ns) / size < 999.5 else f"{ns / size:.0f}{unit}"
    return f"{ns:.0f}ns"
