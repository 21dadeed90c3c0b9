"""Reads and writes tensors of the Open Inference Protocol v2: a datatype, a shape, and elements as JSON or raw bytes.

Sizes are checked before anything is made of them: what a shape claims costs nothing until bytes or numbers have come
that fill it.
"""

from __future__ import annotations

import math
import struct
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from symphony_dask.gateway.refusal import bad
from symphony_dask.text import MOST_NAME, shown

#: numpy's dtype of each datatype; BF16 has none, BYTES is no array.
NUMPY: dict[str, str] = {
    "BOOL": "|b1",
    "UINT8": "|u1",
    "UINT16": "<u2",
    "UINT32": "<u4",
    "UINT64": "<u8",
    "INT8": "|i1",
    "INT16": "<i2",
    "INT32": "<i4",
    "INT64": "<i8",
    "FP16": "<f2",
    "FP32": "<f4",
    "FP64": "<f8",
}
OF_NUMPY = {dtype: name for name, dtype in NUMPY.items()}

ITEM_BYTES = {name: np.dtype(dtype).itemsize for name, dtype in NUMPY.items()} | {"BF16": 2}

DATATYPES = (*NUMPY, "BF16", "BYTES")

MAX_DIMS = 32

#: No tensor has more elements; far beyond what any body can hold.
_MAX_ELEMENTS = 1 << 48

_LENGTH = struct.Struct("<I")


class Tensor(NamedTuple):
    """data: the elements in C order, little endian; of BYTES, a list of them."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: Any


def check_name(name: object, what: str) -> str:
    """The name of a tensor from JSON; raises ``Refusal``. It stands in many texts, so it is short."""
    if not isinstance(name, str) or not name:
        raise bad(f"{what} must have a 'name', a string that is not empty")
    if len(name) > MOST_NAME:
        raise bad(f"{what}: name {shown(name)} has {len(name)} characters, the most is {MOST_NAME}")
    return name


def check_shape(name: str, shape: object) -> tuple[tuple[int, ...], int]:
    """A shape from JSON, and how many elements it has; raises ``Refusal``."""
    if not isinstance(shape, list) or any(type(d) is not int or d < 0 for d in shape):
        raise bad(f"tensor {name!r}: shape {shown(shape)} must be a list of whole numbers, none negative")
    if len(shape) > MAX_DIMS:
        raise bad(f"tensor {name!r}: {len(shape)} dimensions, the most is {MAX_DIMS}")
    # Dimensions of 0 count as 1, as numpy refuses empty shapes whose other dimensions overflow.
    if math.prod(max(d, 1) for d in shape) > _MAX_ELEMENTS:
        raise bad(f"tensor {name!r}: shape {shown(shape)} has too many elements")
    return tuple(shape), math.prod(shape)


def from_binary(name: str, datatype: str, shape: tuple[int, ...], elements: int, data: memoryview) -> Tensor:
    """A tensor whose elements came as raw bytes; raises ``Refusal`` if they are too few or too many."""
    if datatype == "BYTES":
        return Tensor(name, datatype, shape, _strings(name, elements, data))
    expected = elements * ITEM_BYTES[datatype]
    if len(data) != expected:
        raise bad(f"tensor {name!r}: {datatype} of shape {list(shape)} has {expected} bytes, but {len(data)} came")
    if datatype == "BOOL" and elements and np.frombuffer(data, np.uint8).max() > 1:
        raise bad(f"tensor {name!r}: bytes of BOOL must be 0 or 1")
    return Tensor(name, datatype, shape, data)


def _strings(name: str, elements: int, data: memoryview) -> list[bytes]:
    """Elements of BYTES: each is its length, u32, and its bytes."""
    if elements * 4 > len(data):
        raise bad(f"tensor {name!r}: {elements} elements of BYTES need {elements * 4} bytes or more, {len(data)} came")
    found: list[bytes] = []
    at = 0
    for _ in range(elements):
        end = at + 4
        if end > len(data):
            break
        (length,) = _LENGTH.unpack_from(data, at)
        at = end + length
        if at > len(data):
            break
        found.append(bytes(data[end:at]))
    if len(found) != elements or at != len(data):
        raise bad(f"tensor {name!r}: {len(data)} bytes are not {elements} elements of BYTES, each with its length")
    return found


def from_json(name: str, datatype: str, shape: tuple[int, ...], elements: int, data: object) -> Tensor:
    """A tensor whose elements came as JSON, flat or nested as the shape; raises ``Refusal``."""
    if not isinstance(data, list):
        raise bad(f"tensor {name!r}: data must be a list, got {shown(data)}")
    if datatype == "BYTES":
        strings = _flatten(name, data, shape)
        if len(strings) != elements:
            raise bad(f"tensor {name!r}: shape {list(shape)} has {elements} elements, but data {len(strings)}")
        return Tensor(name, datatype, shape, strings)
    values = numbers(name, datatype, data)
    if values.size != elements or (values.ndim != 1 and values.shape != shape):
        raise bad(f"tensor {name!r}: shape is {list(shape)}, but data has {list(values.shape)}")
    return Tensor(name, datatype, shape, memoryview(raw(datatype, values)))


def numbers(name: str, datatype: str, data: object) -> npt.NDArray[Any]:
    """Numbers of JSON, nested lists or one, as an array; BF16 as FP32, not rounded yet.

    Raises ``Refusal`` for what is ragged, not a number, or out of range.
    """
    shape, values, kinds = _regular(name, data)
    target = np.dtype(NUMPY.get(datatype, "<f4"))
    allowed, what = _ALLOWED[target.kind]
    if not kinds <= allowed:
        raise bad(f"tensor {name!r}: data of {datatype} must be {what}")
    if target.kind in "iu" and values:
        limits = np.iinfo(target)
        if min(values) < limits.min or max(values) > limits.max:
            raise bad(f"tensor {name!r}: data of {datatype} must be between {limits.min} and {limits.max}")
    try:
        with np.errstate(over="raise", under="ignore"):
            wide = np.array(values, "<f8" if target.kind == "f" else target)
            return wide.astype(target, copy=False).reshape(shape)
    except (FloatingPointError, OverflowError):
        raise bad(f"tensor {name!r}: data has numbers that are too large for {datatype}") from None


_ALLOWED: dict[str, tuple[set[type], str]] = {
    "b": ({bool}, "true or false"),
    "u": ({int}, "whole numbers"),
    "i": ({int}, "whole numbers"),
    "f": ({int, float}, "numbers"),
}


def _regular(name: str, data: Any) -> tuple[tuple[int, ...], list[Any], set[type]]:
    """Nested lists of one length at each level: their shape, what they hold in order, and the types of that.

    Not left to numpy, which makes one string of a megabyte among thousands of numbers thousands of megabytes.
    """
    shape: list[int] = []
    level = [data]
    while (kinds := set(map(type, level))) == {list}:
        lengths = set(map(len, level))
        if len(lengths) != 1 or len(shape) == MAX_DIMS:
            raise bad(f"tensor {name!r}: data must be flat, or nested lists of equal lengths, {MAX_DIMS} deep at most")
        shape.append(lengths.pop())
        level = list(chain.from_iterable(level))
    return tuple(shape), level, kinds


def raw(datatype: str, values: npt.NDArray[Any]) -> bytes:
    """What ``numbers`` gave, as raw bytes."""
    return (bf16_of(values) if datatype == "BF16" else values).tobytes()


def bf16_of(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """FP32 rounded to the nearest BF16, ties to even, as its bits."""
    bits = np.ascontiguousarray(values, "<f4").view("<u4")
    rounded = (bits + (0x7FFF + ((bits >> 16) & 1))) >> 16
    # Rounding up the fraction of a NaN could make an infinity of it.
    return np.where(np.isnan(values), np.uint16(0x7FC0), rounded.astype("<u2")).astype("<u2")


def _flatten(name: str, data: list[Any], shape: tuple[int, ...]) -> list[bytes]:
    """Strings of JSON, flat or nested, as UTF-8; raises ``Refusal``."""
    level: list[Any] = data
    for _ in range(max(len(shape) - 1, 0)):
        if not level or not all(isinstance(entry, list) for entry in level):
            break
        level = [entry for inner in level for entry in inner]
    if not all(isinstance(entry, str) for entry in level):
        raise bad(f"tensor {name!r}: data of BYTES must be strings, flat or nested as the shape {list(shape)}")
    return [entry.encode() for entry in level]


def to_binary(tensor: Tensor) -> Any:
    """The elements as raw bytes."""
    if tensor.datatype != "BYTES":
        return tensor.data
    return b"".join(part for element in tensor.data for part in (_LENGTH.pack(len(element)), element))


def to_json(tensor: Tensor) -> list[Any]:
    """The elements as a flat list; raises ``Refusal`` where bytes are no text."""
    if tensor.datatype == "BYTES":
        try:
            return [element.decode() for element in tensor.data]
        except UnicodeDecodeError:
            raise bad(f"output {tensor.name!r} has bytes that are no UTF-8 text: ask for it with binary_data") from None
    return list(array_of(tensor).reshape(-1).tolist())


def array_of(tensor: Tensor) -> npt.NDArray[Any]:
    """The elements of any datatype but BYTES as a numpy array; BF16 as FP32."""
    if tensor.datatype == "BF16":
        wide = np.frombuffer(tensor.data, "<u2").astype("<u4") << 16
        return wide.view("<f4").reshape(tensor.shape)
    return np.frombuffer(tensor.data, NUMPY[tensor.datatype]).reshape(tensor.shape)
