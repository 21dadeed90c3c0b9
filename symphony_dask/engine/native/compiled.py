"""Compiles the engine's functions: natively, cached on disk, and without reference counting.

Numba counts references to each array of a tuple at each call, two atomic operations an array: 240 ns a call for this
engine's state, fifteen times the work of the call itself (0.38 against 5.6 million requests a second). The functions
allocate nothing, so the counting is switched off (``_nrt``, as numba does for its own internals).

Numba's disk cache looks only at the file that a function is written in. The engine's functions call across files, so
each entry is stamped with the sources that its module reaches (``_sources_of``). Numba does not look at the settings
that change the code either: these are part of the stamp, and code that checks bounds is kept in files of its
own, so that neither kind is ever taken for the other, or written over by it (``disk_cache``).
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from numba import config, njit

from symphony_dask.engine.native.disk_cache import DiskCache

F = TypeVar("F", bound=Callable[..., Any])

_settings: Any = config


def _is_checked() -> bool:
    if _settings.BOUNDSCHECK is not None:  # NUMBA_BOUNDSCHECK has the last word: numba follows it whatever is asked for
        return bool(_settings.BOUNDSCHECK)
    return os.environ.get("SYMPHONY_CHECKED", "0") not in ("", "0")


#: Whether compiled code checks each index, and the engine the table of its arrays at each call (``compiled_calls``):
#: with SYMPHONY_CHECKED=1, or NUMBA_BOUNDSCHECK=1. An index out of bounds is then an IndexError, and else damage.
CHECKED = _is_checked()


#: Imports at the top of a module: "from PACKAGE import NAMES" or "import MODULE".
_IMPORT = re.compile(r"^from ([\w.]+) import (?:\(([^)]*)\)|(.*))|^import ([\w.]+)", re.MULTILINE)


@lru_cache
def _read(module: str) -> tuple[str, frozenset[str]]:
    """The hash of a module's source, and the modules that it imports at its top."""
    source = Path(str(sys.modules[module].__file__)).read_text("utf-8")
    imported = set()
    for package, several, line, whole in _IMPORT.findall(source):
        names = re.findall(r"(\w+)(?: as \w+)?", several or line)
        imported |= {package, whole, *(f"{package}.{name}" for name in names)}
    return hashlib.sha256(source.encode()).hexdigest(), frozenset(imported)


def _sources_of(module: str) -> str:
    """One hash of the source of a module and of the modules of this project that it imports, as compiled code holds
    the code and the constants of others. Those with compiled functions are followed further.
    """
    ours = {__name__.split(".")[0], module.split(".")[0]}
    reached, left = dict[str, str](), [module]
    while left:
        name = left.pop()
        if name not in reached and name.split(".")[0] in ours and name in sys.modules:
            reached[name], imported = _read(name)
            if name == module or __name__ in imported:
                left += imported
    return hashlib.sha256("".join(reached[name] for name in sorted(reached)).encode()).hexdigest()


def compiled(function: F) -> F:
    """``function`` compiled on first call. It may not allocate arrays, and may call other compiled functions."""
    return _compile(function, nogil=False)


def inlined(function: F) -> F:
    """As ``compiled``, and made part of every compiled function that calls it.

    For what is called per request: otherwise each call passes each array of the state in seven words and more.
    """
    return _compile(function, nogil=False, inline=True)


def compiled_nogil(function: F) -> F:
    """As ``compiled``, for a loop that threads run side by side: a call from Python lets go of the interpreter."""
    return _compile(function, nogil=True)


def _compile(function: F, nogil: bool, inline: bool = False) -> F:
    options: dict[str, Any] = {"_nrt": False, "nogil": nogil, "forceinline": inline, "boundscheck": CHECKED}
    dispatcher: Any = njit(**options)(function)
    if dispatcher is not function:  # else the compiler is switched off
        stamp = (_sources_of(function.__module__), *_code_settings())
        dispatcher._cache = DiskCache(function, stamp, "-checked" if CHECKED else "")
    return dispatcher  # type: ignore[no-any-return]


def _code_settings() -> tuple[str, ...]:
    """What changes the code that numba makes and is no part of its cache's keys."""
    names = ("OPT", "DEBUGINFO_DEFAULT", "LOOP_VECTORIZE", "SLP_VECTORIZE")
    return (f"checked {CHECKED}", *(f"{name} {getattr(_settings, name, None)}" for name in names))


@inlined
def wide(x: Any) -> int:
    """``x`` as int64: numba compiles a function once more for each width of integer that it is called with."""
    return x + 0  # type: ignore[no-any-return]
