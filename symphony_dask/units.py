"""Converts durations between what people write ("25ms") and what the code keeps (integer nanoseconds)."""

from __future__ import annotations

import re
from numbers import Real

from symphony_dask.errors import BadInput
from symphony_dask.text import plain, shown

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
#: Characters of a number that an error repeats.
_MOST_DIGITS = 40

_DURATION = re.compile(r"\s*([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*([a-zµ]+)\s*", re.IGNORECASE)


class Seconds(float):
    """A number of seconds that says so: how this package's own code passes durations to what users write "25ms" for."""


def parse_duration_ns(value: str | float, what: str = "duration") -> int:
    """Nanoseconds in ``value``: a string with a unit, "25ms", "1.5s", "2m", "1h".

    Raises ``BadInput`` when it cannot be read, or is not positive and finite; and for a plain number, of which nobody
    can tell whether it means seconds or milliseconds.
    """
    remedy = f'write {what} with a unit, such as "25ms" or "1.5s"'
    if isinstance(value, Seconds):
        ns = value * NS_PER_S
    elif isinstance(value, str):
        match = _DURATION.fullmatch(value)
        if match is None or match[2].lower() not in _UNITS:
            number = value.strip()
            if re.fullmatch(r"[0-9.]{1,20}", number):
                raise BadInput(_no_unit(what, repr(value), number))
            raise BadInput(f"{what} {shown(value)} cannot be read: {remedy}")
        ns = float(match[1]) * _UNITS[match[2].lower()]
    elif isinstance(value, Real) and not isinstance(value, bool):
        number = plain(value, _MOST_DIGITS)
        raise BadInput(_no_unit(what, number, number))
    else:
        raise BadInput(f"{what} {shown(value)} is a {type(value).__name__}: {remedy}")
    if not 1 <= ns < 2**62:
        raise BadInput(f"{what} {shown(value)} is out of range: it must be above zero and below a century")
    return round(ns)


def _no_unit(what: str, written: str, number: str) -> str:
    return (
        f'{what}={written} has no unit: write {what} with a unit, such as "{number}ms" if that is milliseconds, or '
        f'"{number}s" if it is seconds'
    )


def format_duration(ns: int | float) -> str:
    """``ns`` for a person, with three significant digits: 25000000 gives "25ms"."""
    for unit, size in (("s", NS_PER_S), ("ms", NS_PER_MS), ("us", NS_PER_US)):
        if abs(ns) >= size:
            return f"{ns / size:.3g}{unit}" if abs(ns) / size < 999.5 else f"{ns / size:.0f}{unit}"
    return f"{ns:.0f}ns"
