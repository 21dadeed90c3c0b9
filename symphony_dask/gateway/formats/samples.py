"""Turns tensors of a request into samples of a model, and answers into tensors.

One request of HTTP is one or more samples, each a request of its own to the scheduler. For a model whose example is an
array of shape S, a tensor of shape S is one sample, and its answer has no batch dimension; one of shape (n, *S) is n
samples, and their answers come stacked. Without an example the first dimension is the batch, always.

A model that takes one tensor takes it under any name. A dict of arrays as the example makes one input of each entry, a
tuple or list of arrays the inputs ``input_0``, ``input_1``, ...
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import chain
from typing import Any, NamedTuple

import numpy as np

from symphony_dask.gateway.formats.tensors import ITEM_BYTES, NUMPY, OF_NUMPY, Tensor, array_of
from symphony_dask.gateway.refusal import Refusal, bad
from symphony_dask.wire import array_codec, codec

#: One request holds at most so many samples.
MAX_SAMPLES = 4096

_TORCH = {
    "bool": "BOOL", "uint8": "UINT8", "uint16": "UINT16", "uint32": "UINT32", "uint64": "UINT64", "int8": "INT8",
    "int16": "INT16", "int32": "INT32", "int64": "INT64", "float16": "FP16", "float32": "FP32", "float64": "FP64",
    "bfloat16": "BF16",
}  # fmt: skip

#: Datatypes of samples that are plain Python values.
_PLAIN = {"bytes": "BYTES", "str": "BYTES", "bool": "BOOL", "int": "INT64", "float": "FP64"}


class Port(NamedTuple):
    """One tensor of a model. shape: of one sample; any_shape: or another one of as many dimensions.

    header: how its samples begin (``codec``), empty for plain values; kind: "array", or the type of these.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    kind: str
    header: bytes = b""
    any_shape: bool = False

    @property
    def dims(self) -> list[int]:
        """The shape for metadata, where -1 is any length."""
        return [-1] * len(self.shape) if self.any_shape else list(self.shape)

    def fitted(self, shape: tuple[int, ...]) -> Port:
        """The port for a sample of ``shape``, or for some of a shape after a batch dimension; itself unless it fits."""
        left = len(shape) - len(self.shape)
        if not self.any_shape or self.kind != "array" or not self.shape or left not in (0, 1):
            return self
        kind, dtype, _, _ = array_codec.read_header(self.header)
        header = array_codec.header_of(dtype if kind == array_codec.TENSOR else dtype.str, shape[left:], kind)
        return self._replace(shape=shape[left:], header=header)

    @property
    def row_bytes(self) -> int:
        return ITEM_BYTES[self.datatype] * int(np.prod(self.shape, dtype=object))


class Interface(NamedTuple):
    """How a sample, or an answer, is made of tensors.

    layout: "one" (of the one port), "dict", "tuple" or "list" (one entry a port), "any" (not known; no ports), "none".
    obstacle: why no tensor can be it, else empty.
    """

    layout: str
    ports: tuple[Port, ...] = ()
    obstacle: str = ""


def interface_of(form: list[Any] | None, name: str, any_shape: bool = False) -> Interface:
    """Of what ``codec.form`` says; ``name`` is that of the only port, and the prefix of numbered ones."""
    interface = _interface_of(form, name)
    return interface._replace(ports=tuple(port._replace(any_shape=any_shape) for port in interface.ports))


def _interface_of(form: list[Any] | None, name: str) -> Interface:
    if form is None:
        return Interface("any")
    kind = form[0]
    try:
        if kind == "dict" and form[1]:
            return Interface("dict", tuple(_port(entry, key) for key, entry in form[1].items()))
        if kind in ("tuple", "list") and form[1] and all(entry[0] == "array" for entry in form[1]):
            return Interface(kind, tuple(_port(entry, f"{name}_{i}") for i, entry in enumerate(form[1])))
        if kind == "array" or kind in _PLAIN:
            return Interface("one", (_port(form, name),))
    except _NoDatatype as error:
        return Interface("any", obstacle=str(error))
    return Interface("none" if kind == "NoneType" else "any")


class _NoDatatype(Exception):
    pass


def _port(form: list[Any], name: str) -> Port:
    if form[0] in _PLAIN:
        return Port(name, _PLAIN[form[0]], (), form[0])
    if form[0] == "array" and (datatype := datatype_of(form[1])):
        return Port(name, datatype, array_codec.read_header(form[1]).shape, "array", bytes(form[1]))
    what = codec.describe(form[1]) if form[0] == "array" else form[0]
    raise _NoDatatype(f"{name!r} is {what}, which has no datatype in the protocol")


@lru_cache(maxsize=1024)
def datatype_of(header: bytes) -> str:
    """The datatype of arrays with this signature; empty if there is none, or not in this byte order."""
    layout = array_codec.read_header(header)
    return _TORCH.get(layout.dtype, "") if layout.kind == array_codec.TENSOR else OF_NUMPY.get(layout.dtype.str, "")


# Requests


def samples_of(interface: Interface, inputs: Sequence[Tensor]) -> tuple[list[bytes], bool]:
    """The samples of a request as payloads of the codec, and whether the tensors have a batch dimension.

    Raises ``Refusal``, which names the tensor and what is wrong with it.
    """
    if interface.obstacle:
        raise bad(f"input {interface.obstacle}")
    if interface.layout in ("any", "none"):
        return _samples_of_any(inputs)
    ports = interface.ports
    if len(ports) == 1 and len(inputs) == 1 and interface.layout == "one":
        port = ports[0].fitted(inputs[0].shape)
        rows, batched = rows_of(port, inputs[0])
        if port.kind == "array":
            header = port.header
            return [header + row for row in rows], batched
        return [codec.encode(row) for row in rows], batched
    given = _by_name(ports, inputs)
    columns: list[Sequence[Any]] = []
    shapes: set[tuple[int, bool]] = set()
    for port in (port.fitted(given[port.name].shape) for port in ports):
        rows, batched = rows_of(port, given[port.name])
        shapes.add((len(rows), batched))
        columns.append([codec.Part(port.header, row) for row in rows] if port.kind == "array" else rows)
    if len(shapes) > 1:
        counts = ", ".join(f"{t.name!r} {list(t.shape)}" for t in inputs)
        raise bad(f"inputs have not the same number of samples: {counts}")
    names = [port.name for port in ports]
    encode = codec.encode_fields if interface.layout == "dict" else _encode_sequence(interface.layout)
    return [encode(dict(zip(names, row, strict=True))) for row in zip(*columns, strict=True)], batched


def _encode_sequence(layout: str) -> Any:
    return lambda fields: codec.encode_entries(list(fields.values()), layout)


def _by_name(ports: tuple[Port, ...], inputs: Sequence[Tensor]) -> dict[str, Tensor]:
    given = {tensor.name: tensor for tensor in inputs}
    names = [port.name for port in ports]
    if len(ports) == 1 and len(inputs) == 1:
        return {names[0]: inputs[0]}
    for name in names:
        if name not in given:
            raise bad(f"input {name!r} is missing: the model takes {', '.join(map(repr, names))}")
    for name in given:
        if name not in names:
            raise bad(f"input {name!r} is unknown: the model takes {', '.join(map(repr, names))}")
    return given


def rows_of(port: Port, tensor: Tensor) -> tuple[Sequence[Any], bool]:
    """One value of ``port`` for each sample in ``tensor``, and whether it has a batch dimension.

    Values are raw bytes for arrays, else Python's own. Raises ``Refusal``.
    """
    check_datatype(port, tensor.name, tensor.datatype)
    shape = tensor.shape
    if shape == port.shape:
        n, batched = 1, False
    elif shape[1:] == port.shape or (not port.shape and len(shape) == 2 and shape[1] == 1):
        n, batched = shape[0], True
    else:
        takes = ", ".join(map(str, port.dims))
        samples = f"[{takes}] for one sample, or [n{', ' if takes else ''}{takes}] for n"
        raise bad(f"input {tensor.name!r} has shape {list(shape)}: the model takes {samples}")
    _check_count(tensor, n)
    if port.kind == "array":
        size = port.row_bytes
        data = tensor.data
        return ([data] if n == 1 else [data[i * size : (i + 1) * size] for i in range(n)]), batched
    if port.kind == "bytes":
        return tensor.data, batched
    if port.kind == "str":
        try:
            return [element.decode() for element in tensor.data], batched
        except UnicodeDecodeError:
            raise bad(f"input {tensor.name!r} has bytes that are no UTF-8 text, and the model takes text") from None
    return array_of(tensor).reshape(-1).tolist(), batched


def check_datatype(port: Port, name: str, datatype: str) -> None:
    """Raises ``Refusal`` unless they agree; BF16 also goes where 16 bits are taken, UINT16."""
    if datatype != port.datatype and not (datatype == "BF16" and port.datatype == "UINT16"):
        raise bad(f"input {name!r} has datatype {datatype}: the model takes {port.datatype}")


def _check_count(tensor: Tensor, n: int) -> None:
    if not 1 <= n <= MAX_SAMPLES:
        text = f"input {tensor.name!r} of shape {list(tensor.shape)} has {n} samples"
        raise bad(f"{text}: a request may have 1 to {MAX_SAMPLES}")


def _samples_of_any(inputs: Sequence[Tensor]) -> tuple[list[bytes], bool]:
    """Samples of a model that has no example: arrays, bytes for BYTES, dicts of these for several inputs."""
    batched = bool(inputs[0].shape)
    n = inputs[0].shape[0] if batched else 1
    columns: list[list[Any]] = []
    for tensor in inputs:
        if bool(tensor.shape) != batched or (batched and tensor.shape[0] != n):
            text = f"input {tensor.name!r} has shape {list(tensor.shape)}"
            raise bad(f"{text}: the first dimension is the batch, and must be {n} as that of {inputs[0].name!r}")
        _check_count(tensor, n)
        columns.append(_any_rows(tensor, n))
    if len(inputs) == 1:
        return [v.header + v.data if isinstance(v, codec.Part) else codec.encode(v) for v in columns[0]], batched
    names = [tensor.name for tensor in inputs]
    return [codec.encode_fields(dict(zip(names, row, strict=True))) for row in zip(*columns, strict=True)], batched


def _any_rows(tensor: Tensor, n: int) -> list[Any]:
    shape = tensor.shape[1:]
    if tensor.datatype == "BYTES":
        size = len(tensor.data) // n
        if size == 1:
            return list(tensor.data)
        return [tensor.data[i * size : (i + 1) * size] for i in range(n)]
    if tensor.datatype == "BF16":
        header = array_codec.header_of("bfloat16", shape, array_codec.TENSOR)
    else:
        header = array_codec.header_of(
            NUMPY[tensor.datatype], shape, array_codec.ARRAY if shape else array_codec.SCALAR
        )
    size = len(tensor.data) // n
    return [codec.Part(header, tensor.data[i * size : (i + 1) * size]) for i in range(n)]


def sample_of_raw(interface: Interface, data: memoryview) -> bytes:
    """The one sample that a body without JSON is. Raises ``Refusal``."""
    if interface.obstacle:
        raise bad(f"input {interface.obstacle}")
    if interface.layout in ("any", "none"):
        return codec.encode(data)
    if interface.layout != "one":
        names = ", ".join(repr(port.name) for port in interface.ports)
        raise bad(f"a body of raw bytes is for models of one input: this one takes {names}")
    port = interface.ports[0]
    if port.kind == "bytes":
        return codec.encode(data)
    if port.kind == "array" and len(data) == port.row_bytes:
        return port.header + data
    expected = f"{port.row_bytes} bytes" if port.kind == "array" else "JSON"
    raise bad(f"a body of {len(data)} raw bytes: the model takes {expected} for {port.datatype} {list(port.shape)}")


# Answers


def outputs_of(answers: Sequence[memoryview], batched: bool, names: Sequence[str] | None = None) -> list[Tensor]:
    """The answers to the samples of a request, in order, as tensors. An answer None has no tensors.

    names: what a request calls the outputs that it wants; the only output goes by any name.

    Raises ``Refusal``, 500, if they have no form in the protocol.
    """
    first = codec.parts(answers[0])
    if isinstance(first, codec.Part):
        name = names[0] if names is not None and len(names) == 1 else "output"
        return [_stacked(name, first, answers, batched)]
    values = [first, *map(codec.parts, answers[1:])]
    if all(value is None for value in values):
        return []
    if isinstance(first, dict):
        if any(not isinstance(value, dict) or value.keys() != first.keys() for value in values):
            raise _unsendable("answers in one request are dicts of different keys")
        return [_column(str(key), [value[key] for value in values], batched) for key in first]
    if isinstance(first, (tuple, list)) and first and all(isinstance(entry, codec.Part) for entry in first):
        if any(not isinstance(value, (tuple, list)) or len(value) != len(first) for value in values):
            raise _unsendable("answers in one request have different lengths")
        return [_column(f"output_{i}", [value[i] for value in values], batched) for i in range(len(first))]
    name = names[0] if names is not None and len(names) == 1 else "output"
    return [_column(name, values, batched)]


def _unsendable(text: str) -> Refusal:
    return Refusal(500, f"the model's answer cannot be sent as tensors: {text}", outcome="failed")


def _stacked(name: str, first: codec.Part, answers: Sequence[memoryview], batched: bool) -> Tensor:
    header = first.header
    start = len(header)
    size = len(answers[0])
    if any(len(a) != size or a[:start] != header for a in answers[1:]):
        shown = sorted({codec.describe(a) for a in answers})
        raise _unsendable(f"answers in one request have different shapes, {', '.join(shown[:3])}: send one at a time")
    data: Any = first.data if len(answers) == 1 else b"".join([a[start:] for a in answers])
    return _tensor(name, header, len(answers), data, batched)


def _tensor(name: str, header: bytes, n: int, data: Any, batched: bool) -> Tensor:
    shape = array_codec.read_header(header).shape
    whole = (n, *shape) if batched else shape
    if datatype := datatype_of(header):
        return Tensor(name, datatype, whole, data)
    layout = array_codec.read_header(header)
    if layout.kind != array_codec.TENSOR:
        values = np.frombuffer(data, layout.dtype)
        if layout.dtype.kind == "S":
            return Tensor(name, "BYTES", whole, values.tolist())
        if layout.dtype.kind == "U":
            return Tensor(name, "BYTES", whole, [text.encode("utf-8", "surrogatepass") for text in values.tolist()])
        turned = layout.dtype.newbyteorder("<")
        if turned.str in OF_NUMPY:
            return Tensor(name, OF_NUMPY[turned.str], whole, values.astype(turned).tobytes())
    raise _unsendable(f"{codec.describe(header)} has no datatype in the protocol")


def _column(name: str, values: list[Any], batched: bool) -> Tensor:
    """One output of all samples; values are parts, strings, numbers, or lists of these."""
    n = len(values)
    if isinstance(values[0], codec.Part):
        header = values[0].header
        if any(not isinstance(v, codec.Part) or v.header != header for v in values):
            raise _unsendable(f"{name!r} differs in shape or datatype among the answers of one request")
        return _tensor(name, header, n, b"".join([v.data for v in values]), batched)
    shape: list[int] = []
    level = values
    while all(isinstance(entry, (list, tuple)) for entry in level) and level:
        lengths = set(map(len, level))
        if len(lengths) != 1 or len(shape) > 30:
            raise _unsendable(f"{name!r} has lists of different lengths")
        shape.append(lengths.pop())
        level = list(chain.from_iterable(level))
    whole = (n, *shape) if batched else tuple(shape)
    kinds = set(map(type, level))
    if kinds <= {str, bytes}:
        return Tensor(
            name, "BYTES", whole, [e.encode("utf-8", "surrogatepass") if type(e) is str else e for e in level]
        )
    for allowed, datatype in (({bool}, "BOOL"), ({int}, "INT64"), ({int, float}, "FP64")):
        if kinds <= allowed:
            try:
                return Tensor(name, datatype, whole, np.array(level, NUMPY[datatype]).tobytes())
            except OverflowError:
                raise _unsendable(f"{name!r} has whole numbers beyond 64 bits") from None
    shown = ", ".join(sorted(kind.__name__ for kind in kinds))
    raise _unsendable(f"{name!r} holds {shown}")
