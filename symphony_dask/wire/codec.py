"""Encodes payloads between client and worker: bytes, arrays, tensors, and plain data that holds them. Never pickle.

The first byte of a payload is its kind. Bytes and plain data (msgpack) follow it as they are; how arrays and tensors
follow it is in ``array_codec``, and what is done with a whole batch of payloads in ``batch_codec``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import msgpack
import numpy as np
import numpy.typing as npt

from symphony_dask.errors import BadInput
from symphony_dask.text import type_path
from symphony_dask.wire.array_codec import (
    ARRAY,
    BYTES,
    PLAIN,
    SCALAR,
    TENSOR,
    array_header,
    header_in,
    is_tensor,
    join_rows,
    make_array,
    make_tensor,
    plain_array,
    plain_tensor,
    read_header,
    tensor_data,
    tensor_header,
)

if TYPE_CHECKING:
    import torch

_BYTES_PREFIX, _PLAIN_PREFIX = bytes([BYTES]), bytes([PLAIN])
_EXT_ARRAY, _EXT_TUPLE = 1, 2

#: Each level of tuples inside tuples is an unpacker inside an unpacker, of about 40 kB of C stack each.
_MAX_TUPLE_DEPTH = 32

#: What a form tells of: it is sent to every gateway, twice a second.
_FORM_DEPTH, _MOST_ENTRIES, _MOST_KEY = 2, 256, 256

#: Arrays of more bytes are copied without the interpreter's lock.
_LARGE_BYTES = 1 << 20

_REMEDY = (
    "send bytes, a numpy array, a torch tensor, or None, bool, int, float, str, list, tuple and dict of these "
    "(most other things become one with numpy.asarray)"
)


def encode(obj: object) -> bytes:
    """``obj`` as a payload.

    Takes bytes-like objects, numpy arrays and scalars, torch tensors (moved to the CPU, detached), and None, bool, int,
    float, str, list, tuple and dict that nest any of these. Bytes-like objects come back as bytes, and subclasses of
    list, tuple, dict and ndarray as their plain base.

    Raises ``BadInput``, naming the type, for anything else.
    """
    if isinstance(obj, np.ndarray):
        return _encode_array(ARRAY, obj)
    # Before bytes, because numpy.bytes_ is both.
    if isinstance(obj, np.generic):
        return _encode_array(SCALAR, np.asarray(obj))
    if isinstance(obj, (bytes, bytearray, memoryview)):
        return b"".join((_BYTES_PREFIX, bytes(obj)))
    if is_tensor(obj):
        return _encode_tensor(obj)
    try:
        return b"".join((_PLAIN_PREFIX, _pack(obj)))
    except BadInput:
        raise
    except (ValueError, RecursionError) as error:
        raise BadInput(
            f"cannot send this {type_path(obj)}: {error}; strings must be valid Unicode, and nesting must be shallow"
        ) from None


def encode_payload(obj: object) -> bytes | memoryview:
    """As ``encode``; a large array or tensor is copied without the interpreter's lock, so that other threads go on."""
    if isinstance(obj, np.ndarray) and obj.nbytes > _LARGE_BYTES:
        return join_rows(array_header(ARRAY, obj.dtype, obj.shape), plain_array(obj), 1)[0]
    if is_tensor(obj) and obj.numel() * obj.element_size() > _LARGE_BYTES:
        tensor = plain_tensor(obj)
        return join_rows(tensor_header(tensor.dtype, tensor.shape), tensor_data(tensor), 1)[0]
    return encode(obj)


def decode(buf: bytes | bytearray | memoryview) -> Any:
    """The object in a payload. Arrays and tensors own their memory and can be written to.

    Raises ``BadInput`` for a payload that ``encode`` could not have written, or that holds a tensor where torch is not
    installed. A hostile payload of n bytes can make it reserve some thousand times n bytes for a moment.
    """
    view = memoryview(buf).cast("B")
    kind = view[0] if len(view) else 0
    if kind == BYTES:
        return bytes(view[1:])
    if kind == PLAIN:
        return _unpack(view[1:], decode)
    header = header_in(view)
    layout = read_header(header)
    data = np.frombuffer(view, np.uint8)[len(header) :].copy()  # without the interpreter's lock
    if len(data) != layout.data_bytes:
        raise BadInput(f"payload of {describe(header)} has {len(data)} data bytes: it must have {layout.data_bytes}")
    if kind == TENSOR:
        return make_tensor(data, layout.dtype, layout.shape)
    try:
        array = make_array(layout.shape, layout.dtype, data)
        return array if kind == ARRAY else array[()]
    except BadInput:
        raise
    except ValueError as error:
        raise BadInput(f"payload of {describe(header)} cannot be read: {error}") from None


class Part(NamedTuple):
    """An array, scalar or tensor in a payload, left as it is: its signature and its data, in C order."""

    header: bytes
    data: memoryview


def parts(buf: bytes | bytearray | memoryview) -> Any:
    """The object in a payload, its arrays, scalars and tensors as ``Part``: nothing is copied, torch is not needed.

    Raises ``BadInput`` for a payload that ``encode`` could not have written.
    """
    view = memoryview(buf).cast("B")
    kind = view[0] if len(view) else 0
    if kind == BYTES:
        return bytes(view[1:])
    return _unpack(view[1:], _part) if kind == PLAIN else _part(view)


def _part(buf: bytes | bytearray | memoryview) -> Part:
    view = memoryview(buf).cast("B")
    header = header_in(view)
    expected = read_header(header).data_bytes
    if len(view) - len(header) != expected:
        got = len(view) - len(header)
        raise BadInput(f"payload of {describe(header)} has {got} data bytes: it must have {expected}")
    return Part(header, view[len(header) :])


def form(buf: bytes | bytearray | memoryview) -> list[Any]:
    """What a payload is made of, without its data, as plain values.

    ["array", signature] for arrays, scalars and tensors; ["dict", {name: form}]; ["tuple" or "list", [form, ...]]; the
    name of its type alone for None, bytes, str, bool, int and float (["bytes"]). A dict, tuple or list of more than
    ``_MOST_ENTRIES``, with longer names than ``_MOST_KEY``, or deep inside others, is as an empty one. Raises
    ``BadInput``.
    """
    return _form(parts(buf), _FORM_DEPTH)


def _form(value: object, depth: int) -> list[Any]:
    if isinstance(value, Part):
        return ["array", value.header]
    if not isinstance(value, (dict, tuple, list)):
        return [type_path(value)]
    known = depth > 0 and len(value) <= _MOST_ENTRIES
    if isinstance(value, dict):
        names = [str(key) for key in value] if known else []
        if any(len(name) > _MOST_KEY for name in names):
            names = []
        return ["dict", {name: _form(entry, depth - 1) for name, entry in zip(names, value.values(), strict=False)}]
    return [type_path(value), [_form(entry, depth - 1) for entry in value] if known else []]


def encode_fields(fields: dict[str, Any]) -> bytes:
    """The payload of a dict of samples, each a ``Part`` (header and data as ``header_of`` describes) or plain data."""
    return _PLAIN_PREFIX + _pack({name: _as_extension(value) for name, value in fields.items()})


def encode_entries(entries: list[Any], kind: str) -> bytes:
    """As ``encode_fields``, of a "list" or "tuple" of samples."""
    items = [_as_extension(value) for value in entries]
    return _PLAIN_PREFIX + _pack(msgpack.ExtType(_EXT_TUPLE, _pack(items)) if kind == "tuple" else items)


def _as_extension(value: object) -> Any:
    return msgpack.ExtType(_EXT_ARRAY, value.header + value.data) if isinstance(value, Part) else value


def describe(buf: bytes | bytearray | memoryview) -> str:
    """dtype and shape of a payload or signature for people, as in "float32 (3, 224, 224)"; else "bytes", "plain data".

    Raises ``BadInput`` if the header is malformed.
    """
    view = memoryview(buf).cast("B")
    if len(view) and view[0] in (BYTES, PLAIN):
        return "bytes" if view[0] == BYTES else "plain data"
    layout = read_header(header_in(view))
    return f"{layout.dtype} {layout.shape}"


def _encode_array(kind: int, array: npt.NDArray[Any]) -> bytes:
    data: Any = plain_array(array)
    return b"".join((array_header(kind, array.dtype, array.shape), data))


def _encode_tensor(tensor: torch.Tensor) -> bytes:
    tensor = plain_tensor(tensor)
    return b"".join((tensor_header(tensor.dtype, tensor.shape), tensor_data(tensor)))


def _pack(obj: object, tuple_depth: int = 0) -> bytes:
    packed: bytes = msgpack.packb(obj, default=partial(_pack_other, tuple_depth), strict_types=True)
    return packed


def _pack_other(tuple_depth: int, obj: object) -> Any:
    """What msgpack should pack in place of an object that is not exactly one of its own types."""
    if isinstance(obj, (np.ndarray, np.generic)) or is_tensor(obj):
        return msgpack.ExtType(_EXT_ARRAY, encode(obj))
    # Read as what they are made of, by the base's own methods: those of a user may do anything, for ever.
    if isinstance(obj, tuple):
        if tuple_depth == _MAX_TUPLE_DEPTH:
            raise BadInput(f"cannot send tuples nested deeper than {_MAX_TUPLE_DEPTH}: use lists")
        return msgpack.ExtType(_EXT_TUPLE, _pack(list(tuple.__iter__(obj)), tuple_depth + 1))
    if isinstance(obj, dict):
        return dict(dict.items(obj))
    if isinstance(obj, list):
        return list(list.__iter__(obj))
    if type(obj) is int:
        raise BadInput(f"cannot send an int of {obj.bit_length()} bits: it must fit 64 bits; send it as a str")
    raise BadInput(f"cannot send a {type_path(obj)}: {_REMEDY}")


def _unpack(view: memoryview, array: Callable[[bytes], Any], tuple_depth: int = 0) -> Any:
    """Plain data; ``array`` reads each payload of an array, scalar or tensor in it."""
    try:
        return msgpack.unpackb(view, ext_hook=partial(_unpack_other, array, tuple_depth), strict_map_key=False)
    except BadInput:
        raise
    # TypeError: a map key that cannot be hashed.
    except (ValueError, TypeError, msgpack.UnpackException, RecursionError, MemoryError, OverflowError) as error:
        raise BadInput(f"payload of {len(view)} bytes is not msgpack that encode() wrote: {error!r}") from None


def _unpack_other(array: Callable[[bytes], Any], tuple_depth: int, code: int, data: bytes) -> Any:
    if code == _EXT_ARRAY and data[:1] not in (_BYTES_PREFIX, _PLAIN_PREFIX):
        return array(data)
    if code == _EXT_TUPLE and tuple_depth < _MAX_TUPLE_DEPTH:
        items = _unpack(memoryview(data), array, tuple_depth + 1)
        if isinstance(items, list):
            return tuple(items)
    raise BadInput(f"payload holds an extension of type {code} nested {tuple_depth} deep that encode() does not write")
