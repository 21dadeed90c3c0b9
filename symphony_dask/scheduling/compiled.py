"""How the engine's functions are compiled: natively, cached on disk, and without reference counting.

Numba counts references to each array of a tuple at each call, two atomic operations an array: 240 ns a call for this
engine's state, fifteen times the work of the call itself (0.38 against 5.6 million requests a second). The functions
allocate nothing, so the counting is switched off (``_nrt``, as numba does for its own internals).

Numba's disk cache looks only at the file that a function is written in. The engine's functions call across files, so
each entry is stamped with the contents of this package and of the function's own folder.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from numba import njit

F = TypeVar("F", bound=Callable[..., Any])


@lru_cache
def _sources(folder: Path) -> str:
    return hashlib.sha256(b"".join(p.read_bytes() for p in sorted(folder.glob("*.py")))).hexdigest()


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
    options: dict[str, Any] = {"cache": True, "_nrt": False, "nogil": nogil, "forceinline": inline}
    dispatcher: Any = njit(**options)(function)
    folders = (Path(__file__).parent, Path(function.__code__.co_filename).parent)
    try:
        cache_file = dispatcher._cache._cache_file
        cache_file._source_stamp = (cache_file._source_stamp, *(_sources(folder) for folder in folders))
    except AttributeError:  # the compiler is switched off, or keeps its cache elsewhere
        pass
    return dispatcher


@inlined
def wide(x: Any) -> int:
    """``x`` as int64: numba compiles a function once more for each width of integer that it is called with."""
    return x + 0  # type: ignore[no-any-return]
