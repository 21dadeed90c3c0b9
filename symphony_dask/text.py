"""Makes what users and their models say safe to send: error texts, names, hostnames. Everything goes through here.

Such a text may be a gigabyte, may hold what is no Unicode (a lone surrogate, as in the name of an undecodable file),
and to write an exception runs code of whoever made its class, which may raise. What comes out of here is short, valid
and printable, and nothing raises.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any

from symphony_dask.errors import BadInput

#: Characters of one text; what is longer loses its middle, as a traceback says most at its end.
MOST_CHARS = 1 << 14

#: Characters of all texts of one frame together, and of each at least.
MOST_TOGETHER, LEAST_CHARS = 1 << 21, 1 << 8

#: Characters of a name that a user gives.
MOST_NAME = 256

#: Names that an error lists.
MOST_LISTED = 20

_CONTROLS = {c: f"\\x{c:02x}" for c in (*range(32), *range(127, 160)) if chr(c) not in "\n\t"}


def plain(value: object, most: int = MOST_CHARS) -> str:
    """``value`` as a text of at most ``most`` characters, valid Unicode, control characters written as escapes.

    Lines and tabs stay. What cannot be written as a text is named by its type.
    """
    try:
        text = _cut(value if isinstance(value, str) else str(value), most)
        return _cut(text.encode("utf-8", "backslashreplace").decode().translate(_CONTROLS), most)
    except BaseException:  # whatever a user's __str__ raises, SystemExit included
        return f"<{_type_name(value)} that cannot be written>"[:most]


def shown(value: object, most: int = MOST_NAME) -> str:
    """``repr(value)`` in one line, as ``plain`` has it."""
    try:
        return plain(repr(value), most).replace("\n", "\\n")
    except BaseException:
        return f"<{_type_name(value)} that cannot be shown>"


def error_text(error: BaseException) -> str:
    """The traceback of an exception, as ``plain`` has it."""
    try:
        found = traceback.TracebackException.from_exception(error)
        # Cut before they are joined: copies of a gigabyte hold up every thread.
        parts: list[Any] = [found]
        for part in parts:
            part._str = _cut(str(part._str), MOST_CHARS)
            parts += [p for p in (part.__cause__, part.__context__, *(part.exceptions or ())) if p is not None]
        return plain("".join(found.format()))
    except BaseException:
        return f"{_type_name(error)}: {plain(error)} (its traceback cannot be written)"


def brief(error: BaseException) -> str:
    """Class and message of an exception in one line, as ``plain`` has them."""
    name, text = _type_name(error), plain(error)
    return f"{name}: {text}" if text else name


def bounded(errors: dict[int, str]) -> dict[int, str]:
    """Error texts by index, each as ``plain`` has it and all together of a size that a frame can bear."""
    most = max(LEAST_CHARS, min(MOST_CHARS, MOST_TOGETHER // max(1, len(errors))))
    made: dict[int, str] = {}  # most batches fail with one text
    for text in errors.values():
        if id(text) not in made:
            made[id(text)] = plain(text, most)
    return {int(i): made[id(text)] for i, text in errors.items()}


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """How to end an error about a name that is not known: with the known one that is near, or with nothing."""
    near = get_close_matches(plain(name, MOST_NAME), known, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def listed(names: Iterable[str]) -> str:
    """Names in their order, as a list of no great length."""
    found = sorted(names)
    return (
        f"{found}"
        if len(found) <= MOST_LISTED
        else f"{str(found[:MOST_LISTED])[:-1]}, and {len(found) - MOST_LISTED} more]"
    )


def last_line(text: str) -> str:
    """What a traceback says at its end; the class and message of the exception, where that has one line."""
    lines = text.strip().splitlines()
    return lines[-1].strip() if lines else ""


def check_name(what: str, name: object) -> str:
    """A name as a user may give it to a model or pipeline; raises ``BadInput``."""
    if not isinstance(name, str) or not name:
        raise BadInput(f"{what} {shown(name)}: give a non-empty string")
    if len(name) > MOST_NAME:
        raise BadInput(f"{what} {name[:40]!r}... has {len(name)} characters: the most is {MOST_NAME}")
    if not name.isprintable():  # lone surrogates and controls are not
        raise BadInput(f"{what} {name!r}: it has characters that cannot be printed; leave them out")
    return name


def _cut(text: str, most: int) -> str:
    if len(text) <= most:
        return text
    mark = f" ... {len(text)} characters in all ... "
    kept = max(0, most - len(mark))
    return text[: kept // 2] + mark[:most] + text[len(text) - (kept - kept // 2) :]


def type_path(obj: object) -> str:
    """The name of the type of ``obj``, with its module unless it is a builtin."""
    cls = type(obj)
    return cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"


def _type_name(value: object) -> str:
    try:
        return str(type(value).__name__)[:MOST_NAME].encode("ascii", "backslashreplace").decode()
    except BaseException:  # a metaclass may do anything
        return "object"
