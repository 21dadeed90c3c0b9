"""Reads names as users give them: one, or several; strings, or the numbers that some things are called by."""

from __future__ import annotations

import numbers
from collections.abc import Collection, Iterable
from difflib import get_close_matches
from typing import Any

from symphony_dask.errors import BadInput
from symphony_dask.text import check_name, shown

#: So many names are listed in an error.
_MOST_LISTED = 8


def name_list(given: Any, what: str) -> list[str]:
    """Each name once, as a string: of a list of names, or of one name alone, which is no list of its characters.

    Workers of a ``LocalCluster`` are called by numbers, so 2 is "2". what: "worker", for errors. Raises ``BadInput``.
    """
    alone = isinstance(given, str) or _is_number(given)
    if not alone and (isinstance(given, (bytes, bytearray, dict)) or not isinstance(given, Iterable)):
        raise BadInput(f"{what} names {shown(given)}: give one name, or a list of names")
    names = [str(name) if _is_number(name) else name for name in ([given] if alone else given)]
    return list(dict.fromkeys(check_name(f"{what} name", name) for name in names))


def not_there(name: str, known: Collection[str], what: str) -> BadInput:
    """The error that says a name is nobody's, and which ones there are."""
    near = get_close_matches(name, known, 1)
    listed = ", ".join(sorted(known)[:_MOST_LISTED]) + (", ..." if len(known) > _MOST_LISTED else "")
    there = f"there are {listed}" if known else f"there is no {what}"
    hint = f"did you mean {near[0]!r}? " if near else ""
    return BadInput(f"{what} {shown(name)} is not there: {hint}{there}")


def _is_number(value: object) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)
