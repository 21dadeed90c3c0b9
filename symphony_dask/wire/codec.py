"""Encodes payloads between client and worker: bytes, arrays, tensors, and plain data that holds them. Never pickle.

The first byte of a payload is its kind. Bytes and plain data (msgpack) follow it as they are. Arrays and tensors have
a header, padded so that the data starts at a multiple of 8 bytes:

    kind u8 | ndim u8 | length of dtype u8 | dtype, ASCII | zeros to a multiple of 8 | ndim x int64 LE | data, C order

Two samples of one dtype and shape have the same header byte for byte (their *signature*), so that a batch of them is
stacked with one comparison and one copy.
"""

from __future__ import annotations

import math
import re
import struct
import sys
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from itertools import accumulate
from typing import TYPE_CHECKING, Any, NamedTuple, TypeGuard

import msgpack
import numpy as np
import numpy.typing as npt

from symphony_dask.errors import BadInput

if TYPE_CHECKING:
    import torch

#: Payloads: one after the other, or a list of them, so that large ones are never joined.
Blob = bytes | memoryview | list[bytes] | list[memoryview]

BYTES, PLAIN, ARRAY, SCALAR, TENSOR = range(1, 6)

_BYTES_PREFIX, _PLAIN_PREFIX = bytes([BYTES]), bytes([PLAIN])
_EXT_ARRAY, _EXT_TUPLE = 1, 2

_PLAIN_DTYPE = re.compile(r"[<>|](?:[biufcSUV]\d{1,9}|[mM]8(?:\[\d{0,9}[A-Za-z]{1,2}\])?)")
_TENSOR_ITEM_BYTES = {
    "bool": 1, "uint8": 1, "int8": 1, "uint16": 2, "int16": 2, "uint32": 4, "int32": 4, "uint64": 8, "int64": 8,
    "float8_e4m3fn": 1, "float8_e5m2": 1, "float16": 2, "bfloat16": 2, "float32": 4, "float64": 8,
    "complex64": 8, "complex128": 16,
}  # fmt: skip

#: Each level of tuples inside tuples is an unpacker inside an unpacker, of about 40 kB of C stack each.
_MAX_TUPLE_DEPTH = 32
_MAX_DIMS = 32

#: What a form tells of: it is sent to every gateway, twice a second.
_FORM_DEPTH, _MOST_ENTRIES, _MOST_KEY = 2, 256, 256

_MAX_BYTES = 2**62

#: Arrays of more bytes are copied without the interpreter's lock.
_LARGE_BYTES = 1 << 20

_REMEDY = (
    "send bytes, a numpy array, a torch tensor, or None, bool, int, float, str, list, tuple and dict of these "
    "(most other things become one with numpy.asarray)"
)


class Layout(NamedTuple):
    """What a header says: ``dtype`` is a numpy dtype, or for tensors the name of the torch dtype."""

    kind: int
    dtype: Any
    shape: tuple[int, ...]
    data_bytes: int


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
    if _is_tensor(obj):
        return _encode_tensor(obj)
    try:
        return b"".join((_PLAIN_PREFIX, _pack(obj)))
    except BadInput:
        raise
    except (ValueError, RecursionError) as error:
        raise BadInput(
            f"cannot send this {_type_name(obj)}: {error}; strings must be valid Unicode, and nesting must be shallow"
        ) from None


def encode_payload(obj: object) -> bytes | memoryview:
    """As ``encode``; a large array or tensor is copied without the interpreter's lock, so that other threads go on."""
    if isinstance(obj, np.ndarray) and obj.nbytes > _LARGE_BYTES:
        return _join_rows(_array_header(ARRAY, obj.dtype, obj.shape), _plain_array(obj), 1)[0]
    if _is_tensor(obj) and obj.numel() * obj.element_size() > _LARGE_BYTES:
        tensor = _plain_tensor(obj)
        return _join_rows(_tensor_header(tensor.dtype, tensor.shape), _tensor_data(tensor), 1)[0]
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
    header = _header_of(view)
    layout = _layout(header)
    data = np.frombuffer(view, np.uint8)[len(header) :].copy()  # without the interpreter's lock
    if len(data) != layout.data_bytes:
        raise BadInput(f"payload of {describe(header)} has {len(data)} data bytes: it must have {layout.data_bytes}")
    if kind == TENSOR:
        return _tensor(data, layout.dtype, layout.shape)
    try:
        array = _as_array(layout.shape, layout.dtype, data)
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
    header = _header_of(view)
    expected = _layout(header).data_bytes
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
        return [_type_name(value)]
    known = depth > 0 and len(value) <= _MOST_ENTRIES
    if isinstance(value, dict):
        names = [str(key) for key in value] if known else []
        if any(len(name) > _MOST_KEY for name in names):
            names = []
        return ["dict", {name: _form(entry, depth - 1) for name, entry in zip(names, value.values(), strict=False)}]
    return [_type_name(value), [_form(entry, depth - 1) for entry in value] if known else []]


def header_of(dtype: str, shape: tuple[int, ...], kind: int = ARRAY) -> bytes:
    """The signature of arrays of a numpy dtype as ``dtype.str`` has it ("<f4"), or of tensors ("bfloat16")."""
    return _cached_header(kind, dtype, shape)


def read_header(header: bytes) -> Layout:
    """What a signature says; raises ``BadInput`` if it is none."""
    return _layout(header)


def encode_fields(fields: dict[str, Any]) -> bytes:
    """The payload of a dict of samples, each a ``Part`` (header and data as ``header_of`` describes) or plain data."""
    return _PLAIN_PREFIX + _pack({name: _as_extension(value) for name, value in fields.items()})


def encode_entries(entries: list[Any], kind: str) -> bytes:
    """As ``encode_fields``, of a "list" or "tuple" of samples."""
    items = [_as_extension(value) for value in entries]
    return _PLAIN_PREFIX + _pack(msgpack.ExtType(_EXT_TUPLE, _pack(items)) if kind == "tuple" else items)


def _as_extension(value: object) -> Any:
    return msgpack.ExtType(_EXT_ARRAY, value.header + value.data) if isinstance(value, Part) else value


def signature(buf: bytes | bytearray | memoryview) -> bytes | None:
    """The header of an array, scalar or tensor: equal for samples that stack. None for other kinds and if malformed."""
    try:
        header = _header_of(memoryview(buf).cast("B"))
        _layout(header)
    except BadInput:
        return None
    return header


def describe(buf: bytes | bytearray | memoryview) -> str:
    """dtype and shape of a payload or signature for people, as in "float32 (3, 224, 224)"; else "bytes", "plain data".

    Raises ``BadInput`` if the header is malformed.
    """
    view = memoryview(buf).cast("B")
    if len(view) and view[0] in (BYTES, PLAIN):
        return "bytes" if view[0] == BYTES else "plain data"
    layout = _layout(_header_of(view))
    return f"{layout.dtype} {layout.shape}"


def split(blob: Blob, sizes: npt.NDArray[np.int64]) -> list[memoryview]:
    """The payloads of a batch, ``sizes`` (n,) their lengths in bytes. Copies nothing.

    Raises ``BadInput`` if the sizes do not add up to the blob.
    """
    lengths = sizes.tolist()
    if isinstance(blob, list):
        if lengths != [len(payload) for payload in blob]:
            raise BadInput(f"batch has {len(blob)} payloads: they have not its {len(lengths)} sizes")
        return [memoryview(payload) for payload in blob]
    view = memoryview(blob).cast("B")
    if min(lengths, default=0) < 0 or sum(lengths) != len(view):
        raise BadInput(f"batch has {len(view)} bytes: its sizes {lengths} must be at least 0 and add up to that")
    return [view[end - length : end] for length, end in zip(lengths, accumulate(lengths), strict=True)]


def blob_bytes(blob: Blob) -> int:
    return sum(map(len, blob)) if isinstance(blob, list) else len(blob)


def stack(blob: Blob, sizes: npt.NDArray[np.int64]) -> Any | None:
    """The samples of a batch as one array or CPU tensor of shape (n, *sample shape), which owns its memory.

    None unless all n >= 1 samples are well-formed arrays (or all tensors) of one dtype and shape. Copies without the
    interpreter's lock, so that other threads go on meanwhile.
    """
    try:
        return _stack(blob, sizes)
    except BadInput:  # of one of them; whoever decodes each finds out which
        return None


def _stack(blob: Blob, sizes: npt.NDArray[np.int64]) -> Any | None:
    n = len(sizes)
    if n == 0 or sizes[0] < 1 or not np.all(sizes == sizes[0]):
        return None
    size = int(sizes[0])
    if blob_bytes(blob) != n * size or (isinstance(blob, list) and len(blob) != n):
        return None
    header = signature(blob[0] if isinstance(blob, list) else memoryview(blob).cast("B")[:size])
    if header is None:
        return None
    start = len(header)
    layout = _layout(header)
    if layout.data_bytes != size - start:
        return None
    if isinstance(blob, list):
        payloads: list[Any] = blob
        if any(bytes(payload[:start]) != header for payload in payloads):
            return None
        data = np.empty((n, size - start), np.uint8)
        for row, payload in zip(data, payloads, strict=True):
            row[:] = np.frombuffer(payload, np.uint8)[start:]
        return stacked(header, data)
    rows: npt.NDArray[np.uint8] = np.frombuffer(memoryview(blob).cast("B"), np.uint8).reshape(n, size)
    return stacked(header, rows[:, start:].copy()) if (rows[:, :start] == rows[0, :start]).all() else None


def stacked(header: bytes, data: npt.NDArray[np.uint8]) -> Any:
    """An array or CPU tensor of shape (n, *sample shape) in the memory of ``data``, n rows of one signature's bytes.

    Raises ``BadInput`` for text with characters that there are not.
    """
    layout = _layout(header)
    shape = (len(data), *layout.shape)
    if layout.kind == TENSOR:
        return _tensor(data, layout.dtype, shape)
    return _as_array(shape, layout.dtype, data)


def _as_array(shape: tuple[int, ...], dtype: npt.DTypeLike, data: npt.NDArray[np.uint8]) -> npt.NDArray[Any]:
    array: npt.NDArray[Any] = np.ndarray(shape, dtype, data)
    if array.dtype.kind == "U":
        # Python ends with a SystemError where it reads a character beyond these.
        codes = np.ndarray(data.nbytes // 4, np.dtype("u4").newbyteorder(array.dtype.byteorder), data)
        if codes.size and codes.max() > sys.maxunicode:
            raise BadInput(f"payload of text has the character {codes.max():#x}: the last one is {sys.maxunicode:#x}")
    return array


def is_uniform(outputs: object) -> bool:
    """Whether n results are one array or tensor, which ``encode_batch`` encodes at once."""
    return (isinstance(outputs, np.ndarray) and not outputs.dtype.hasobject) or _is_tensor(outputs)


def encode_batch(outputs: Any, n: int) -> tuple[memoryview, npt.NDArray[np.int64]]:
    """n results as one blob of concatenated payloads and their sizes in bytes, shape (n,); ``stack``'s counterpart.

    ``outputs`` is an array or tensor of shape (n, ...) (``is_uniform``).

    Raises ``ValueError`` if there are not n results and ``BadInput`` if they cannot be sent.
    """
    check_count(outputs, n)
    if isinstance(outputs, np.ndarray):
        kind = ARRAY if outputs.ndim > 1 else SCALAR
        return _join_rows(_array_header(kind, outputs.dtype, outputs.shape[1:]), _plain_array(outputs), n)
    outputs = _plain_tensor(outputs)
    return _join_rows(_tensor_header(outputs.dtype, outputs.shape[1:]), _tensor_data(outputs), n)


def check_count(outputs: Any, n: int) -> None:
    """Raises ``ValueError`` unless what a model returned is n results."""
    remedy = f"return an array or tensor whose first dimension is {n}, or a list of {n} results"
    if isinstance(outputs, np.ndarray) or _is_tensor(outputs):
        if outputs.ndim == 0 or outputs.shape[0] != n:
            raise ValueError(f"model returned shape {tuple(outputs.shape)} for a batch of {n}: {remedy}")
    elif isinstance(outputs, (str, bytes, bytearray, memoryview)) or not isinstance(outputs, Sequence):
        raise ValueError(f"model returned one {_type_name(outputs)} for a batch of {n}: {remedy}")
    elif len(outputs) != n:
        raise ValueError(f"model returned {len(outputs)} results for a batch of {n}: {remedy}")


def _join_rows(header: bytes, data: npt.NDArray[Any], n: int) -> tuple[memoryview, npt.NDArray[np.int64]]:
    """Payloads of n equal rows; ``data`` is contiguous and holds all of them in order."""
    row_bytes = data.nbytes // n if n else 0
    size = len(header) + row_bytes
    blob = np.empty(n * size, np.uint8)
    out = blob.reshape(n, size)
    out[:, : len(header)] = np.frombuffer(header, np.uint8)
    out[:, len(header) :] = np.ndarray((n, row_bytes), np.uint8, data)
    return blob.data, np.full(n, size, np.int64)


def _encode_array(kind: int, array: npt.NDArray[Any]) -> bytes:
    data: Any = _plain_array(array)
    return b"".join((_array_header(kind, array.dtype, array.shape), data))


def _plain_array(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """``array`` in C order and with at least one dimension; raises ``BadInput`` if more than its elements matters."""
    if isinstance(array, np.ma.MaskedArray):
        raise BadInput(
            "cannot send a MaskedArray, its mask would be lost: send .filled(...), or data and mask as a tuple"
        )
    return np.ascontiguousarray(array)


@lru_cache(maxsize=1024)
def _array_header(kind: int, dtype: np.dtype[Any], shape: tuple[int, ...]) -> bytes:
    if not _PLAIN_DTYPE.fullmatch(dtype.str) or np.dtype(dtype.str) != dtype or dtype.itemsize == 0:
        raise BadInput(
            f"cannot send a numpy array of dtype {dtype}: convert it with .astype to a numeric, bool, "
            "fixed-width string or datetime dtype, or send the fields of a structured array as a dict"
        )
    return _make_header(kind, dtype.str, shape)


@lru_cache(maxsize=1024)
def _tensor_header(dtype: object, shape: tuple[int, ...]) -> bytes:
    return _make_header(TENSOR, str(dtype).removeprefix("torch."), tuple(shape))


@lru_cache(maxsize=1024)
def _cached_header(kind: int, dtype: str, shape: tuple[int, ...]) -> bytes:
    return _make_header(kind, dtype, shape)


def _make_header(kind: int, dtype: str, shape: tuple[int, ...]) -> bytes:
    if len(shape) > _MAX_DIMS:
        raise BadInput(f"cannot send {len(shape)} dimensions: reshape to at most {_MAX_DIMS}")
    start = bytes([kind, len(shape), len(dtype)]) + dtype.encode("ascii")
    return start + bytes(-len(start) % 8) + struct.pack(f"<{len(shape)}q", *shape)


def _header_of(view: memoryview) -> bytes:
    """The first bytes of an array, scalar or tensor payload, as long as its header says; raises ``BadInput``."""
    if len(view) < 3 or view[0] not in (ARRAY, SCALAR, TENSOR):
        raise BadInput(
            f"payload of {len(view)} bytes starts with {bytes(view[:3])!r}: it is not one that encode() wrote"
        )
    length = 3 + view[2]
    length += -length % 8 + 8 * view[1]
    if len(view) < length:
        raise BadInput(f"payload of {len(view)} bytes is cut short: its header alone has {length}")
    return bytes(view[:length])


@lru_cache(maxsize=1024)
def _layout(header: bytes) -> Layout:
    """``header`` read and checked; raises ``BadInput``."""
    kind, ndim, length = header[:3]
    name = header[3 : 3 + length].decode("latin-1")
    shape = struct.unpack(f"<{ndim}q", header[len(header) - 8 * ndim :])
    if ndim > _MAX_DIMS or min(shape, default=0) < 0 or (kind == SCALAR and ndim):
        raise BadInput(f"payload has shape {shape}: it must have at most {_MAX_DIMS} dimensions, none negative")
    dtype: Any = name
    if kind == TENSOR:
        item_bytes = _TENSOR_ITEM_BYTES.get(name, 0)
    else:
        dtype = _numpy_dtype(name)
        item_bytes = dtype.itemsize
    if item_bytes == 0 or header != _make_header(kind, name, shape):
        raise BadInput(f"payload has dtype {name!r}: it is not one that encode() writes")
    # Dimensions of 0 count as 1 here, because numpy and torch refuse an empty shape whose other dimensions overflow.
    if item_bytes * math.prod(max(d, 1) for d in shape) > _MAX_BYTES:
        raise BadInput(f"payload has shape {shape}: that is more than {_MAX_BYTES} bytes")
    return Layout(kind, dtype, shape, item_bytes * math.prod(shape))


def _numpy_dtype(name: str) -> np.dtype[Any]:
    if _PLAIN_DTYPE.fullmatch(name):
        try:
            return np.dtype(name)
        except (TypeError, ValueError, OverflowError):
            pass
    raise BadInput(f"payload has dtype {name!r}: it is not one that encode() writes")


def _is_tensor(obj: object) -> TypeGuard[torch.Tensor]:
    # A tensor cannot exist before torch is imported, so there is no need to import it here.
    tensor = getattr(sys.modules.get("torch"), "Tensor", None)
    return tensor is not None and isinstance(obj, tensor)


def _plain_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """``tensor`` on the CPU, contiguous, out of autograd; raises ``BadInput`` if its elements are not plain memory."""
    name = str(tensor.dtype).removeprefix("torch.")
    if name not in _TENSOR_ITEM_BYTES or str(tensor.layout) != "torch.strided" or tensor.device.type == "meta":
        raise BadInput(
            f"cannot send a {tensor.layout} tensor of {tensor.dtype} on {tensor.device}: "
            "make it dense with .to_dense(), or convert it with .to(torch.float32)"
        )
    return tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()


def _tensor_data(tensor: torch.Tensor) -> Any:
    """The memory of a plain tensor as a uint8 array; by way of uint8 because numpy has no bfloat16."""
    return tensor.reshape(-1).view(sys.modules["torch"].uint8).numpy()


def _encode_tensor(tensor: torch.Tensor) -> bytes:
    tensor = _plain_tensor(tensor)
    return b"".join((_tensor_header(tensor.dtype, tensor.shape), _tensor_data(tensor)))


def _tensor(data: npt.NDArray[np.uint8], dtype: str, shape: tuple[int, ...]) -> torch.Tensor:
    try:
        import torch
    except ImportError:
        raise BadInput(f"payload is a torch tensor, {dtype} {shape}, and torch is not installed here") from None
    flat = torch.from_numpy(np.frombuffer(data, np.uint8))
    return flat.view(getattr(torch, dtype)).reshape(shape)


def _pack(obj: object, tuple_depth: int = 0) -> bytes:
    packed: bytes = msgpack.packb(obj, default=partial(_pack_other, tuple_depth), strict_types=True)
    return packed


def _pack_other(tuple_depth: int, obj: object) -> Any:
    """What msgpack should pack in place of an object that is not exactly one of its own types."""
    if isinstance(obj, (np.ndarray, np.generic)) or _is_tensor(obj):
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
    raise BadInput(f"cannot send a {_type_name(obj)}: {_REMEDY}")


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


def _type_name(obj: object) -> str:
    cls = type(obj)
    return cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"
