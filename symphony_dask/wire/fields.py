"""Checks the fields of a message, which may be anything that msgpack can hold.

Each raises ``BadInput`` that names the message, the field, the value and what would be right.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from symphony_dask.errors import BadInput
from symphony_dask.text import shown
from symphony_dask.wire.error_codes import Failure
from symphony_dask.wire.records import Column

#: The largest of numbers that are counted up for ever, of those of 31 bits, and of times.
MOST, MOST_31, MOST_NS = 1 << 62, (1 << 31) - 1, (1 << 60) - 1

#: Characters of a value that an error shows.
_MOST_SHOWN = 80


def bad_field(op: str, what: str, value: object, remedy: str) -> BadInput:
    """The error to raise."""
    return BadInput(f"lane {op} has {what} {_shown(value)}: {remedy}")


def fields_of(op: str, fields: list[Any], n: int) -> list[Any]:
    """The fields of a message, n of them."""
    if len(fields) != n:
        raise BadInput(f"lane {op} has {len(fields)} fields: it must have {n}")
    return fields


def whole(op: str, what: str, value: object, least: int = 0, most: int = MOST) -> int:
    """A whole number of a message."""
    if type(value) is not int or not least <= value <= most:
        raise bad_field(op, what, value, f"give a whole number from {least} to {most}")
    return value


def check_texts(op: str, texts: object, n: int) -> None:
    """A text for some of n requests."""
    if type(texts) is not dict or not all(
        type(i) is int and 0 <= i < n and type(text) is str for i, text in texts.items()
    ):
        raise bad_field(op, "texts", texts, f"give a map of places below {n} to texts")


def read_failures(op: str, failures: object, n: int) -> Mapping[int, Failure]:
    """Errors of some of n requests."""
    if type(failures) is dict:
        read = {i: Failure(*f) for i, f in failures.items() if type(f) is list and len(f) == 2}
        if len(read) == len(failures) and all(
            type(i) is int and 0 <= i < n and type(f.code) is int and type(f.text) is str for i, f in read.items()
        ):
            return read
    raise bad_field(op, "errors", failures, f"give a map of places below {n} to [code, text]")


def exact_sum(sizes: Column) -> int:
    """Exact where numbers of 64 bits are not."""
    return sum(sizes.tolist()) if len(sizes) and sizes.max() > MOST >> 32 else int(sizes.sum())


def _shown(value: object) -> str:
    """As ``text.shown``; not all of a gigabyte is written to be cut."""
    if isinstance(value, (bytes, list, dict)):
        return f"{type(value).__name__} of {len(value)}"
    return shown(value[:_MOST_SHOWN] if isinstance(value, str) else value, _MOST_SHOWN)
