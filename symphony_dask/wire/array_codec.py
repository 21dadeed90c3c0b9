"""Says how an array or a tensor lies in a payload: its header, and its data as the memory of numpy and torch has it.

A payload's first byte is its kind. Arrays, scalars and tensors have a header, padded so that the data starts at a
multiple of 8 bytes:

    kind u8 | ndim u8 | length of dtype u8 | dtype, ASCII | zeros to a multiple of 8 | ndim x int64 LE | data, C order

Two samples of one dtype and shape have the same header byte for byte (their *signature*), so that a batch of them is
stacked with one comparison and one copy.
"""

from __future__ import annotations

import math
import re
import struct
import sys
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple, TypeGuard

import numpy as np
import numpy.typing as npt

from symphony_dask.errors import BadInput

if TYPE_CHECKING:
    import torch

#: The first byte of a payload.
BYTES, PLAIN, ARRAY, SCALAR, TENSOR = range(1, 6)

_PLAIN_DTYPE = re.compile(r"[<>|](?:[biufcSUV]\d{1,9}|[mM]8(?:\[\d{0,9}[A-Za-z]{1,2}\])?)")
_TENSOR_ITEM_BYTES = {
    "bool": 1, "uint8": 1, "int8": 1, "uint16": 2, "int16": 2, "uint32": 4, "int32": 4, "uint64": 8, "int64": 8,
    "float8_e4m3fn": 1, "float8_e5m2": 1, "float16": 2, "bfloat16": 2, "float32": 4, "float64": 8,
    "complex64": 8, "complex128": 16,
}  # fmt: skip

_MAX_DIMS = 32
# Of one sample, as if its dimensions of 0 were 1: numpy and torch count so, and a batch of 65,536 still fits 63 bits.
_MAX_BYTES = 2**46


class Layout(NamedTuple):
    """What a header says: ``dtype`` is a numpy dtype, or for tensors the name of the torch dtype."""

    kind: int
    dtype: Any
    shape: tuple[int, ...]
    data_bytes: int


@lru_cache(maxsize=1024)
def header_of(dtype: str, shape: tuple[int, ...], kind: int = ARRAY) -> bytes:
    """The signature of arrays of a numpy dtype as ``dtype.str`` has it ("<f4"), or of tensors ("bfloat16")."""
    return _make_header(kind, dtype, shape)


@lru_cache(maxsize=1024)
def array_header(kind: int, dtype: np.dtype[Any], shape: tuple[int, ...]) -> bytes:
    if not _PLAIN_DTYPE.fullmatch(dtype.str) or np.dtype(dtype.str) != dtype or dtype.itemsize == 0:
        raise BadInput(
            f"cannot send a numpy array of dtype {dtype}: convert it with .astype to a numeric, bool, "
            "fixed-width string or datetime dtype, or send the fields of a structured array as a dict"
        )
    return _make_header(kind, dtype.str, shape)


@lru_cache(maxsize=1024)
def tensor_header(dtype: object, shape: tuple[int, ...]) -> bytes:
    return _make_header(TENSOR, str(dtype).removeprefix("torch."), tuple(shape))


def _make_header(kind: int, dtype: str, shape: tuple[int, ...]) -> bytes:
    if len(shape) > _MAX_DIMS:
        raise BadInput(f"cannot send {len(shape)} dimensions: reshape to at most {_MAX_DIMS}")
    start = bytes([kind, len(shape), len(dtype)]) + dtype.encode("ascii")
    return start + bytes(-len(start) % 8) + struct.pack(f"<{len(shape)}q", *shape)


def header_in(view: memoryview) -> bytes:
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
def read_header(header: bytes) -> Layout:
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


def signature(buf: bytes | bytearray | memoryview) -> bytes | None:
    """The header of an array, scalar or tensor: equal for samples that stack. None for other kinds and if malformed."""
    try:
        header = header_in(memoryview(buf).cast("B"))
        read_header(header)
    except BadInput:
        return None
    return header


def is_tensor(obj: object) -> TypeGuard[torch.Tensor]:
    # A tensor cannot exist before torch is imported, so there is no need to import it here.
    tensor = getattr(sys.modules.get("torch"), "Tensor", None)
    return tensor is not None and isinstance(obj, tensor)


def plain_array(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """``array`` in C order and with at least one dimension; raises ``BadInput`` if more than its elements matters."""
    if isinstance(array, np.ma.MaskedArray):
        raise BadInput(
            "cannot send a MaskedArray, its mask would be lost: send .filled(...), or data and mask as a tuple"
        )
    return np.ascontiguousarray(array)


def plain_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """``tensor`` on the CPU, contiguous, out of autograd; raises ``BadInput`` if its elements are not plain memory."""
    name = str(tensor.dtype).removeprefix("torch.")
    if name not in _TENSOR_ITEM_BYTES or str(tensor.layout) != "torch.strided" or tensor.device.type == "meta":
        raise BadInput(
            f"cannot send a {tensor.layout} tensor of {tensor.dtype} on {tensor.device}: "
            "make it dense with .to_dense(), or convert it with .to(torch.float32)"
        )
    return tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()


def tensor_data(tensor: torch.Tensor) -> Any:
    """The memory of a plain tensor as a uint8 array; by way of uint8 because numpy has no bfloat16."""
    return tensor.reshape(-1).view(sys.modules["torch"].uint8).numpy()


def make_array(shape: tuple[int, ...], dtype: npt.DTypeLike, data: npt.NDArray[np.uint8]) -> npt.NDArray[Any]:
    array: npt.NDArray[Any] = np.ndarray(shape, dtype, data)
    if array.dtype.kind == "U":
        # Python ends with a SystemError where it reads a character beyond these.
        codes = np.ndarray(data.nbytes // 4, np.dtype("u4").newbyteorder(array.dtype.byteorder), data)
        if codes.size and codes.max() > sys.maxunicode:
            raise BadInput(f"payload of text has the character {codes.max():#x}: the last one is {sys.maxunicode:#x}")
    return array


def make_tensor(data: npt.NDArray[np.uint8], dtype: str, shape: tuple[int, ...]) -> torch.Tensor:
    try:
        import torch
    except ImportError:
        raise BadInput(f"payload is a torch tensor, {dtype} {shape}, and torch is not installed here") from None
    flat = torch.from_numpy(np.frombuffer(data, np.uint8))
    return flat.view(getattr(torch, dtype)).reshape(shape)


def join_rows(header: bytes, data: npt.NDArray[Any], n: int) -> tuple[memoryview, npt.NDArray[np.int64]]:
    """Payloads of n equal rows; ``data`` is contiguous and holds all of them in order."""
    row_bytes = data.nbytes // n if n else 0
    size = len(header) + row_bytes
    blob = np.empty(n * size, np.uint8)
    out = blob.reshape(n, size)
    out[:, : len(header)] = np.frombuffer(header, np.uint8)
    out[:, len(header) :] = np.ndarray((n, row_bytes), np.uint8, data)
    return blob.data, np.full(n, size, np.int64)
