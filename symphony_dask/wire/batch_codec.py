"""Takes a batch's payloads apart and stacks them to one array, and makes payloads of what a model returned for it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import numpy.typing as npt

from symphony_dask.errors import BadInput
from symphony_dask.text import type_path
from symphony_dask.wire.array_codec import (
    ARRAY,
    SCALAR,
    TENSOR,
    array_header,
    is_tensor,
    join_rows,
    make_array,
    make_tensor,
    plain_array,
    plain_tensor,
    read_header,
    signature,
    tensor_data,
    tensor_header,
)

#: Payloads: one after the other, or a list of them, so that large ones are never joined.
Blob = bytes | memoryview | list[bytes] | list[memoryview]


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
    layout = read_header(header)
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
    layout = read_header(header)
    shape = (len(data), *layout.shape)
    if layout.kind == TENSOR:
        return make_tensor(data, layout.dtype, shape)
    return make_array(shape, layout.dtype, data)


def is_uniform(outputs: object) -> bool:
    """Whether n results are one array or tensor, which ``encode_batch`` encodes at once."""
    return (isinstance(outputs, np.ndarray) and not outputs.dtype.hasobject) or is_tensor(outputs)


def encode_batch(outputs: Any, n: int) -> tuple[memoryview, npt.NDArray[np.int64]]:
    """n results as one blob of concatenated payloads and their sizes in bytes, shape (n,); ``stack``'s counterpart.

    ``outputs`` is an array or tensor of shape (n, ...) (``is_uniform``).

    Raises ``ValueError`` if there are not n results and ``BadInput`` if they cannot be sent.
    """
    check_count(outputs, n)
    if isinstance(outputs, np.ndarray):
        kind = ARRAY if outputs.ndim > 1 else SCALAR
        return join_rows(array_header(kind, outputs.dtype, outputs.shape[1:]), plain_array(outputs), n)
    outputs = plain_tensor(outputs)
    return join_rows(tensor_header(outputs.dtype, outputs.shape[1:]), tensor_data(outputs), n)


def check_count(outputs: Any, n: int) -> None:
    """Raises ``ValueError`` unless what a model returned is n results."""
    remedy = f"return an array or tensor whose first dimension is {n}, or a list of {n} results"
    if isinstance(outputs, np.ndarray) or is_tensor(outputs):
        if outputs.ndim == 0 or outputs.shape[0] != n:
            raise ValueError(f"model returned shape {tuple(outputs.shape)} for a batch of {n}: {remedy}")
    elif isinstance(outputs, (str, bytes, bytearray, memoryview)) or not isinstance(outputs, Sequence):
        raise ValueError(f"model returned one {type_path(outputs)} for a batch of {n}: {remedy}")
    elif len(outputs) != n:
        raise ValueError(f"model returned {len(outputs)} results for a batch of {n}: {remedy}")
