"""Allocates the engine's arrays: zeros between guards that nobody may write to.

Compiled code writes through raw addresses. What it writes beside an array hits a guard first, and ``is_damaged`` finds
it, instead of a crash somewhere else and later.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

#: Bytes of a cache line.
LINE = 64

#: What every byte of a guard is. As an index, four of them are far out of any range.
_GUARD = 0xA5


def aligned(n: int) -> npt.NDArray[np.uint8]:
    """``n`` bytes of zeros that begin with a cache line, at least one line of guard before and behind them."""
    space = np.zeros(n + 3 * LINE, np.uint8)
    begin = _begin(space)
    space[:begin] = space[begin + n :] = _GUARD
    return space[begin : begin + n]


def array(shape: int | tuple[int, ...], dtype: Any, fill: int = 0) -> npt.NDArray[Any]:
    """An array in such memory, all of whose entries are ``fill``."""
    kind = np.dtype(dtype)
    made: npt.NDArray[Any] = aligned(int(np.prod(shape, dtype=np.int64)) * kind.itemsize).view(kind).reshape(shape)
    if fill:
        made[...] = fill
    return made


def is_damaged(view: npt.NDArray[Any]) -> bool:
    """Whether somebody wrote beside the memory, made by ``aligned``, that this is a view of."""
    space: Any = view
    while space.base is not None:
        space = space.base
    begin = _begin(space)
    n = len(space) - 3 * LINE
    return bool((space[:begin] != _GUARD).any() or (space[begin + n :] != _GUARD).any())


def _begin(space: npt.NDArray[np.uint8]) -> int:
    """Where a cache line begins behind a whole line of guard."""
    return LINE + -space.ctypes.data % LINE
