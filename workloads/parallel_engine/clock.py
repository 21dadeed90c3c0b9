"""Reads the monotonic clock in compiled code: libc's ``clock_gettime``, 25 to 60 ns where the kernel maps it (vDSO)."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import cast

import numba
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from symphony_dask.engine.native.code_generation import Emit, Signature, Target, Typing, Values
from symphony_dask.engine.native.compiled import compiled

_NS_PER_S = 1_000_000_000


def _read(typing: Typing) -> tuple[Signature, Emit]:
    def emit(context: Target, builder: ir.IRBuilder, signature: Signature, args: Values) -> ir.Value:
        i32, i64 = ir.IntType(32), ir.IntType(64)
        timespec = ir.ArrayType(i64, 2)
        at = cgutils.alloca_once(builder, timespec)
        kind = ir.FunctionType(i32, [i32, timespec.as_pointer()])
        function = cgutils.get_or_insert_function(builder.module, kind, "clock_gettime")
        builder.call(function, [i32(time.CLOCK_MONOTONIC), at])
        read = builder.load(at)
        seconds = builder.mul(builder.extract_value(read, 0), i64(_NS_PER_S))
        return builder.add(seconds, builder.extract_value(read, 1))

    return types.int64(), emit


_clock_gettime = cast(Callable[[], int], intrinsic(_read))


if numba.config.DISABLE_JIT:  # type: ignore[attr-defined]

    def clock_ns() -> int:
        """The time of ``time.monotonic_ns``."""
        return time.monotonic_ns()

else:

    @compiled
    def clock_ns() -> int:
        """The time of ``time.monotonic_ns``."""
        return _clock_gettime()
