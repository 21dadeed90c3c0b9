"""The engine's calls as a host makes them: with one number in place of the state's arrays.

Numba looks at each array of a tuple whenever the tuple comes from Python, 6 to 12 us for a ``State``; the work of most
calls takes one. So an engine keeps a table of where its arrays are (``table_of``), hosts pass the table's address, and
the compiled function puts the tuple together again, at the cost of some loads.

Where the compiler is switched off, a handle is the tuple itself.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import typeof, types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np.arrayobj import make_array, populate_array

from symphony_dask.scheduling import intake, kernels
from symphony_dask.scheduling.compiled import compiled
from symphony_dask.scheduling.state import Profiles, State, is_plain, make_profiles, make_state

#: A ``State`` or ``Profiles``: the address of its table, or itself.
Handle = Any


def table_of(arrays: State | Profiles) -> npt.NDArray[np.int64]:
    """For each array its address, its shape and its strides; holds while the arrays are there."""
    words = [(a.__array_interface__["data"][0], *a.shape, *a.strides) for a in arrays]
    return np.array([word for group in words for word in group], np.int64)


def of(arrays: State | Profiles, table: npt.NDArray[np.int64]) -> Handle:
    """The handle of a tuple, which holds while the table is there."""
    return arrays if is_plain() else int(table.ctypes.data)


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


# Of two each: numpy calls an array of one row contiguous whatever its strides are.
state_at = _itself if is_plain() else _reader(make_state(2, 2, 2, 2, 2))
profiles_at = _itself if is_plain() else _reader(make_profiles(2, 2, 2))


@compiled
def step(state: Handle, now: int) -> tuple[int, int, int, int]:
    """``kernels.step``, and how many batches, members of batches and drops it decided."""
    s = state_at(state)
    at = kernels.step(s, now)
    out = s.g[0]
    return at, int(out.n_batches), int(out.n_members), int(out.n_drops)


@compiled
def completed(state: Handle, profiles: Handle, now: int, gpu: int, batch: int, start: int, end: int) -> bool:
    """``kernels.completed``."""
    return kernels.completed(state_at(state), profiles_at(profiles), now, gpu, batch, start, end)


@compiled
def cancel(state: Handle, now: int, slot: int) -> bool:
    """``kernels.cancel``."""
    return kernels.cancel(state_at(state), now, slot)


@compiled
def set_control(state: Handle, now: int, gpu: int, control: int) -> None:
    """``kernels.set_control``."""
    kernels.set_control(state_at(state), now, gpu, control)


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
    """``intake.admit``."""
    return intake.admit(
        state_at(state), table, index_of, slo_of, rows, blob_bytes, client, now, one_way, margin, care, serving,
        slots, evicted,
    )  # fmt: skip
