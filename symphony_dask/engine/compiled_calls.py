"""Calls the engine as a host does: with one number in place of the state's arrays.

Numba looks at each array of a tuple whenever the tuple comes from Python, 6 to 12 us for a ``State``; the work of most
calls takes one. So a table says where the arrays are, compiled functions get the table's address, and put the tuple
together again, at the cost of some loads.

Rule 1. A table is only made of arrays that are what the compiled functions take them for.
Rule 2. Callers pass an ``ArrayTable``, which holds the arrays and their table, so that neither goes while a call runs.
        Its address is seen by this module alone.
Rule 3. An engine that grows makes new arrays and a new table, the next generation, and retires the one before. Where
        code is compiled with checks (``compiled.CHECKED``) a retired one is refused, and each call looks whether the
        arrays are where the table says.

Where the compiler is switched off, the tuple itself is passed.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar, cast

import numpy as np
from llvmlite import ir
from numba import typeof, types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np.arrayobj import make_array, populate_array

from symphony_dask.engine import kernels, request_kernels
from symphony_dask.engine.native.arrays import Int32s, Int64s, Records
from symphony_dask.engine.native.code_generation import Emit, Signature, Target, Typing, Values
from symphony_dask.engine.native.compiled import CHECKED, compiled
from symphony_dask.engine.state import Profiles, State, is_plain, make_profiles, make_state

F = TypeVar("F", bound=Callable[..., Any])
Arrays = TypeVar("Arrays", State, Profiles)

# Of two each: numpy calls an array of one row contiguous whatever its strides are.
_STATE, _PROFILES = make_state(2, 2, 2, 2, 2), make_profiles(2, 2, 2)


def _words(arrays: State | Profiles) -> list[int]:
    words = [(a.__array_interface__["data"][0], *a.shape, *a.strides) for a in arrays]
    return [word for group in words for word in group]


class ArrayTable:
    """The arrays of an engine, and the table of where they are: for each its address, its shape and its strides.

    Raises ``ValueError`` unless each array is of the type that the functions here are compiled for (rule 1).
    """

    __slots__ = ("_at", "_retired", "_table", "arrays")

    def __init__(self, arrays: State | Profiles) -> None:
        example = _STATE if isinstance(arrays, State) else _PROFILES
        for name in arrays._fields:
            array, like = getattr(arrays, name), getattr(example, name)
            same = (
                array.dtype == like.dtype and array.ndim == like.ndim and array.flags.writeable and array.flags.aligned
            )
            if not same or (like.flags.c_contiguous and not array.flags.c_contiguous):
                raise ValueError(f"array {name!r} of an engine is {array.dtype} {array.shape}: make it with make_state")
        self.arrays = arrays
        self._table = np.array(_words(arrays), np.int64)
        #: Where the table is, as compiled code takes it; nothing outside this module looks at it.
        self._at = cast(int, arrays) if is_plain() else int(self._table.ctypes.data)
        self._retired = False

    def retire(self) -> None:
        """The engine has others from now on (rule 3)."""
        self._retired = True

    def _look(self) -> None:
        if self._retired or self._table.tolist() != _words(self.arrays):
            raise ValueError("the engine has grown, or its arrays have moved: take its table anew for each call")


def _checked(call: F) -> F:
    """``call``, where code is compiled with checks after a look at its tables (rule 3)."""
    if not CHECKED or is_plain():
        return call

    @wraps(call)
    def look(*args: object) -> Any:
        for table in args[:2]:
            if isinstance(table, ArrayTable):
                table._look()
        return call(*args)

    return look  # type: ignore[return-value]


def _reader(example: Arrays) -> Callable[[int], Arrays]:
    """A function from an address to tuples like ``example``, to be called in compiled code."""
    if is_plain():
        return lambda arrays: cast(Arrays, arrays)
    kind = typeof(example)

    @intrinsic
    def read(typing: Typing, address: types.Type) -> tuple[Signature, Emit]:
        def generate(context: Target, builder: ir.IRBuilder, signature: Signature, args: Values) -> ir.Value:
            words = builder.inttoptr(args[0], ir.IntType(64).as_pointer())
            at = 0

            def word() -> ir.Value:
                nonlocal at
                at += 1
                return builder.load(builder.gep(words, [ir.Constant(ir.IntType(64), at - 1)]))

            arrays = []
            for member in kind.types:
                array = make_array(member)(context, builder)
                data = builder.inttoptr(word(), context.get_data_type(member.dtype).as_pointer())
                shape = [word() for _ in range(member.ndim)]
                strides = [word() for _ in range(member.ndim)]
                itemsize = context.get_constant(types.intp, context.get_abi_sizeof(context.get_data_type(member.dtype)))
                populate_array(
                    array,
                    data=data,
                    shape=cgutils.pack_array(builder, shape),
                    strides=cgutils.pack_array(builder, strides),
                    itemsize=itemsize,
                    meminfo=None,
                )
                arrays.append(array._getvalue())
            return context.make_tuple(builder, kind, arrays)

        return kind(types.int64), generate

    return cast(Callable[[int], Arrays], read)


_state_at = _reader(_STATE)
_profiles_at = _reader(_PROFILES)


@compiled
def _step(state: int, now: int) -> tuple[int, int, int, int]:
    s = _state_at(state)
    at = kernels.step(s, now)
    out = s.g[0]
    return at, int(out.n_batches), int(out.n_members), int(out.n_drops)


@compiled
def _completed(state: int, profiles: int, now: int, gpu: int, batch: int, start: int, end: int) -> bool:
    return kernels.completed(_state_at(state), _profiles_at(profiles), now, gpu, batch, start, end)


@compiled
def _cancel(state: int, now: int, slot: int) -> bool:
    return kernels.cancel(_state_at(state), now, slot)


@compiled
def _set_control(state: int, now: int, gpu: int, control: int) -> None:
    kernels.set_control(_state_at(state), now, gpu, control)


@compiled
def _admit(
    state: int,
    table: Records,
    index_of: Int32s,
    slo_of: Int64s,
    rows: Records,
    blob_bytes: int,
    client: int,
    now: int,
    one_way: int,
    margin: int,
    care: int,
    in_hand: int,
    serving: bool,
    slots: Int32s,
    evicted: Records,
) -> tuple[int, int]:
    return request_kernels.admit(
        _state_at(state), table, index_of, slo_of, rows, blob_bytes, client, now, one_way, margin, care, in_hand,
        serving, slots, evicted,
    )  # fmt: skip


@_checked
def step(state: ArrayTable, now: int) -> tuple[int, int, int, int]:
    """``kernels.step``, and how many batches, members of batches and drops it decided."""
    return _step(state._at, now)


@_checked
def completed(state: ArrayTable, profiles: ArrayTable, now: int, gpu: int, batch: int, start: int, end: int) -> bool:
    """``kernels.completed``."""
    return _completed(state._at, profiles._at, now, gpu, batch, start, end)


@_checked
def cancel(state: ArrayTable, now: int, slot: int) -> bool:
    """``kernels.cancel``."""
    return _cancel(state._at, now, slot)


@_checked
def set_control(state: ArrayTable, now: int, gpu: int, control: int) -> None:
    """``kernels.set_control``."""
    _set_control(state._at, now, gpu, control)


@_checked
def admit(
    state: ArrayTable,
    table: Records,
    index_of: Int32s,
    slo_of: Int64s,
    rows: Records,
    blob_bytes: int,
    client: int,
    now: int,
    one_way: int,
    margin: int,
    care: int,
    in_hand: int,
    serving: bool,
    slots: Int32s,
    evicted: Records,
) -> tuple[int, int]:
    """``request_kernels.admit``."""
    return _admit(
        state._at, table, index_of, slo_of, rows, blob_bytes, client, now, one_way, margin, care, in_hand, serving,
        slots, evicted,
    )  # fmt: skip
