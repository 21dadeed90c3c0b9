"""Keeps compiled code from one process to the next: on disk, if there is a folder for it.

Numba keeps it in the folder that NUMBA_CACHE_DIR names, else beside the source, else in a cache folder of the user's,
whichever can be written first, and refuses to compile where none can. A hardened container has none: its package is
read-only, and its user has no home. There code is read from beside the source, where whoever built the image may have
left it, and what is missing is compiled by each process anew. Whatever is wrong with a file (its rights, a full disk,
damage) costs its compilation, never an error.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from numba.core import caching

#: Numba's classes have no types.
_numba: Any = caching

logger = logging.getLogger(__name__)

_warned: set[str] = set()


class _BesideSource:
    """The last of numba's *locators*: for functions whose code can be written nowhere."""

    def __init__(self, file: str, line: int) -> None:
        self._folder, self._line = _beside(file), line

    @classmethod
    def from_function(cls, function: Callable[..., Any], file: str) -> _BesideSource:
        return cls(file, function.__code__.co_firstlineno)

    def get_cache_path(self) -> str:
        return self._folder

    def get_source_stamp(self) -> str:
        return ""

    def get_disambiguator(self) -> str:
        return str(self._line)

    def ensure_cache_path(self) -> None:
        raise PermissionError(f"{self._folder} cannot be written")


class _Places(_numba.CompileResultCacheImpl):
    _locator_classes = (*_numba.CompileResultCacheImpl._locator_classes, _BesideSource)


class DiskCache(_numba.FunctionCache):
    """The code of one function.

    stamp: what the code was made of; code of another stamp is compiled anew. suffix: of its files' names, for code that
    is to be kept beside other code of the same function.
    """

    _impl_class = _Places

    def __init__(self, function: Callable[..., Any], stamp: tuple[str, ...], suffix: str = "") -> None:
        super().__init__(function)
        name, shipped = self._impl.filename_base + suffix, _beside(function.__code__.co_filename)
        folders = dict.fromkeys((self._cache_path, shipped))
        self._cache_file, *others = (_numba.IndexDataCacheFile(folder, name, stamp) for folder in folders)
        self._readable = [self._cache_file, *others]
        if isinstance(self._impl.locator, _BesideSource) and not any(Path(shipped).glob("*.nbi")):
            _warn_once(f"{shipped} cannot be written, nor can a cache folder of this user")

    def load_overload(self, sig: object, target_context: Any) -> object:
        target_context.refresh()
        for file in self._readable:
            try:
                data = file.load(self._index_key(sig, target_context.codegen()))
                if data is not None:
                    return self._impl.rebuild(target_context, data)
            except Exception as error:
                logger.info("compiled code in %s cannot be read: %r", self._cache_path, error)
        return None

    def save_overload(self, sig: object, data: object) -> None:
        try:
            super().save_overload(sig, data)
        except OSError as error:
            _warn_once(str(error))


def _beside(file: str) -> str:
    """Where Python keeps what it compiles of a source file; numba does as well."""
    return str(Path(file).parent / "__pycache__")


def _warn_once(why: str) -> None:
    """Say once in each process that compiled code is not kept."""
    if not _warned:
        _warned.add(why)
        cost = "each process that schedules requests compiles the engine when it starts, which takes about a minute"
        remedy = "set NUMBA_CACHE_DIR to a folder that can be written, or compile once where the package is installed"
        logger.warning("Symphony's compiled code cannot be kept (%s): %s; %s", why, cost, remedy)
