"""The engine's calls as a host makes them: with one number in place of the state's arrays.

Numba looks at each array of a tuple whenever the tuple comes from Python, 6 to 12 us for a ``State``; the work of most
calls takes one. So an engine keeps a table of where its arrays are (``table_of``), hosts pass the table's address, and
the compiled function puts the tuple together again, at the cost of some loads.

Rule 1. A table is only made of arrays that are what the compiled functions take them for.
Rule 2. A handle is good as long as its table and the arrays are there, thus until the engine grows. Where code is
        compiled with checks (``compiled.CHECKED``) each call looks whether they are, and where the table says.

Where the compiler is switched off, a handle is the tuple itself.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import typeof, types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np.arrayobj import make_array, populate_array

from symphony_dask.engine import kernels, request_kernels
from symphony_dask.engine.native.compiled import CHECKED, compiled
from symphony_dask.engine.state import Profiles, State, is_plain, make_profiles, make_state

#: A ``State`` or ``Profiles``: the address of its table, or itself.
Handle = Any

F = TypeVar("F", bound=Callable[..., Any])

#: By handle, the table and the arrays that it stands for; only where calls look (rule 2).
_known: dict[int, tuple[weakref.ref[Any], list[weakref.ref[Any]]]] = {}


# Of two each: numpy calls an array of one row contiguous whatever its strides are.
_STATE, _PROFILES = make_state(2, 2, 2, 2, 2), make_profiles(2, 2, 2)


def _words(arrays: Any) -> list[int]:
    words = [(a.__array_interface__["data"][0], *a.shape, *a.strides) for a in arrays]
    return [word for group in words for word in group]


def table_of(arrays: State | Profiles) -> npt.NDArray[np.int64]:
    """For each array its address, its shape and its strides; holds while the arrays are there.

    Raises ``ValueError`` unless each array is of the type that the functions here are compiled for (rule 1).
    """
    example = _STATE if isinstance(arrays, State) else _PROFILES
    for name, array, like in zip(arrays._fields, arrays, example, strict=True):
        same = array.dtype == like.dtype and array.ndim == like.ndim and array.flags.writeable and array.flags.aligned
        if not same or (like.flags.c_contiguous and not array.flags.c_contiguous):
            raise ValueError(f"array {name!r} of an engine is {array.dtype} {array.shape}: make it with make_state")
    return np.array(_words(arrays), np.int64)


def of(arrays: State | Profiles, table: npt.NDArray[np.int64]) -> Handle:
    """The handle of a tuple, which holds while the table and the arrays are there."""
    if is_plain():
        return arrays
    handle = int(table.ctypes.data)
    if CHECKED:
        _known[handle] = weakref.ref(table), [weakref.ref(array) for array in arrays]
    return handle


def _looking(function: F) -> F:
    """``function``, where code is compiled with checks after a look at its handles (rule 2)."""
    if not CHECKED or is_plain():
        return function
    handles = ("state", "profiles")
    names: Any = function
    which = [i for i, name in enumerate(names.py_func.__code__.co_varnames[:2]) if name in handles]

    @wraps(names.py_func)
    def look(*args: Any) -> Any:
        for i in which:
            table, arrays = _known.get(args[i], (None, []))
            found = None if table is None else table()
            there = [array() for array in arrays]
            if found is None or any(array is None for array in there) or found.tolist() != _words(there):
                raise ValueError("the engine has grown, or its arrays have moved: take its handle anew for each call")
        return function(*args)

    return look  # type: ignore[return-value]


def _reader(example: State | Profiles) -> Any:
    """A function from a handle to tuples like ``example``, to be called in compiled code."""
    kind = typeof(example)

    @intrinsic
    def read(typing_context: Any, address: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            words = builder.inttoptr(args[0], ir.IntType(64).as_pointer())
            at = 0

            def word() -> Any:
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

    return read


def _itself(handle: Any) -> Any:
    return handle


state_at = _itself if is_plain() else _reader(_STATE)
profiles_at = _itself if is_plain() else _reader(_PROFILES)


@_looking
@compiled
def step(state: Handle, now: int) -> tuple[int, int, int, int]:
    """``kernels.step``, and how many batches, members of batches and drops it decided."""
    s = state_at(state)
    at = kernels.step(s, now)
    out = s.g[0]
    return at, int(out.n_batches), int(out.n_members), int(out.n_drops)


@_looking
@compiled
def completed(state: Handle, profiles: Handle, now: int, gpu: int, batch: int, start: int, end: int) -> bool:
    """``kernels.completed``."""
    return kernels.completed(state_at(state), profiles_at(profiles), now, gpu, batch, start, end)


@_looking
@compiled
def cancel(state: Handle, now: int, slot: int) -> bool:
    """``kernels.cancel``."""
    return kernels.cancel(state_at(state), now, slot)


@_looking
@compiled
def set_control(state: Handle, now: int, gpu: int, control: int) -> None:
    """``kernels.set_control``."""
    kernels.set_control(state_at(state), now, gpu, control)


@_looking
@compiled
def admit(
    state: Handle,
    table: Any,
    index_of: Any,
    slo_of: Any,
    rows: Any,
    blob_bytes: int,
    client: int,
    now: int,
    one_way: int,
    margin: int,
    care: int,
    serving: bool,
    slots: Any,
    evicted: Any,
) -> tuple[int, int]:
    """``request_kernels.admit``."""
    return request_kernels.admit(
        state_at(state), table, index_of, slo_of, rows, blob_bytes, client, now, one_way, margin, care, serving,
        slots, evicted,
    )  # fmt: skip
