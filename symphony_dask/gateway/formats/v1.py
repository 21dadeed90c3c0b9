"""Reads and writes TensorFlow Serving's ``predict``: JSON in rows (``instances``) or columns (``inputs``), and so the
answer.

Each row is one sample. Bytes are {"b64": "..."}. Numbers take the datatype of the model's example; without one, whole
numbers are INT64 and others FP32.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from symphony_dask.gateway.formats.parameters import OF_PREDICT, Terms, check_keys, parameters_of, terms_of
from symphony_dask.gateway.formats.samples import MAX_SAMPLES, Interface, Port
from symphony_dask.gateway.formats.tensors import Tensor, array_of, check_name, numbers, raw
from symphony_dask.gateway.formats.v2 import read_json
from symphony_dask.gateway.refusal import bad
from symphony_dask.text import shown
from symphony_dask.wire import array_codec, codec

_REQUEST = ("instances", "inputs", "signature_name", "parameters")


def read_predict(body: bytes, interface: Interface) -> tuple[list[bytes], Terms, bool]:
    """The samples of a request as payloads, its terms, and whether it is in rows; raises ``Refusal``."""
    head = read_json(body)
    check_keys(head, "the request", _REQUEST)
    terms = terms_of(parameters_of(head, "the request", OF_PREDICT))
    if head.get("signature_name") not in (None, "", "serving_default"):
        text = f"'signature_name' {shown(head['signature_name'])} is not offered: leave it out"
        raise bad(f"{text}, a model has one signature, 'serving_default'")
    if ("instances" in head) == ("inputs" in head):
        raise bad("body must have either 'instances' (rows) or 'inputs' (columns)")
    in_rows = "instances" in head
    rows = head["instances"] if in_rows else _rows(head["inputs"])
    if not isinstance(rows, list) or not 1 <= len(rows) <= MAX_SAMPLES:
        raise bad(f"{'instances' if in_rows else 'inputs'} must be a list of 1 to {MAX_SAMPLES} samples")
    if interface.obstacle:
        raise bad(f"input {interface.obstacle}")
    return [_sample(row, interface) for row in rows], terms, in_rows


def _rows(columns: object) -> Any:
    if not isinstance(columns, dict) or columns.keys() == {"b64"}:
        return columns
    if not columns or not all(isinstance(column, list) for column in columns.values()):
        raise bad("each of 'inputs' must be a list, one entry a sample")
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) != 1:
        raise bad(f"inputs have different numbers of samples: {shown(lengths)}")
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _sample(row: Any, interface: Interface) -> bytes:
    """One sample as a payload."""
    named = isinstance(row, dict) and row.keys() != {"b64"}
    if interface.layout in ("any", "none"):
        if named:
            names = [check_name(name, "each input") for name in row]
            return codec.encode_fields({name: _guess(name, row[name]) for name in names})
        return _encode(_guess("input", row))
    ports = interface.ports
    if interface.layout == "one":
        if named:
            if len(row) != 1:
                raise bad(f"sample has inputs {shown(sorted(row))}: the model takes one")
            (row,) = row.values()
        return _encode(_value(ports[0], row))
    names = [port.name for port in ports]
    if not named or row.keys() != set(names):
        raise bad(f"each sample must be an object of {', '.join(map(repr, names))}")
    fields = {port.name: _value(port, row[port.name]) for port in ports}
    if interface.layout == "dict":
        return codec.encode_fields(fields)
    return codec.encode_entries(list(fields.values()), interface.layout)


def _encode(value: object) -> bytes:
    return value.header + value.data if isinstance(value, codec.Part) else codec.encode(value)


def _value(port: Port, value: object) -> Any:
    """``value`` of JSON as what ``port`` takes: a part of arrays, else a Python value."""
    if port.datatype == "BYTES":
        data = _bytes(port.name, value)
        if port.kind == "bytes":
            return data
        try:
            return data.decode()
        except UnicodeDecodeError:
            raise bad(f"input {port.name!r} has bytes that are no UTF-8 text, and the model takes text") from None
    values = numbers(port.name, port.datatype, value)
    port = port.fitted(values.shape)
    if values.shape != port.shape:
        raise bad(f"input {port.name!r} has shape {list(values.shape)}: the model takes {port.dims}")
    if port.kind != "array":
        return values.item()
    return codec.Part(port.header, memoryview(raw(port.datatype, values)))


def _bytes(name: str, value: object) -> bytes:
    if isinstance(value, dict) and value.keys() == {"b64"} and isinstance(value["b64"], str):
        try:
            return base64.b64decode(value["b64"], validate=True)
        except (binascii.Error, ValueError):
            raise bad(f"input {name!r}: b64 is no base64") from None
    if isinstance(value, str):
        return value.encode()
    raise bad(f'input {name!r} must be a string, or {{"b64": "..."}}')


def _guess(name: str, value: object) -> Any:
    """A sample, or a part of one, of a model without an example."""
    if isinstance(value, (str, dict)):
        return _bytes(name, value)
    flat = value
    while isinstance(flat, list) and flat:
        flat = flat[0]
    if isinstance(flat, bool):
        datatype = "BOOL"
    else:
        datatype = "INT64" if isinstance(flat, int) and not _has_fraction(value) else "FP32"
    values = numbers(name, datatype, value)
    header = array_codec.header_of(
        values.dtype.str, values.shape, array_codec.ARRAY if values.shape else array_codec.SCALAR
    )
    return codec.Part(header, memoryview(values.tobytes()))


def _has_fraction(value: Any) -> bool:
    level = [value]
    while level and all(isinstance(entry, list) for entry in level):
        level = [entry for inner in level for entry in inner]
    return any(isinstance(entry, float) for entry in level)


def write_predict(answers: Sequence[list[Tensor]], in_rows: bool) -> bytes:
    """The body of the response to samples whose answers are tensors, without a batch dimension."""
    rows = [_row(tensors) for tensors in answers]
    if in_rows:
        return json.dumps({"predictions": rows}, separators=(",", ":")).encode()
    columns: Any = rows
    if rows and isinstance(rows[0], dict) and rows[0].keys() != {"b64"}:
        columns = {name: [row[name] for row in rows] for name in rows[0]}
    return json.dumps({"outputs": columns}, separators=(",", ":")).encode()


def _row(tensors: list[Tensor]) -> Any:
    if not tensors:
        return None
    values = {tensor.name: _json(tensor) for tensor in tensors}
    return next(iter(values.values())) if len(values) == 1 else values


def _json(tensor: Tensor) -> Any:
    if tensor.datatype != "BYTES":
        return array_of(tensor).tolist()
    texts = np.empty(len(tensor.data), object)
    texts[:] = [_text(element) for element in tensor.data]
    return texts.reshape(tensor.shape).tolist()


def _text(element: bytes) -> str | dict[str, str]:
    try:
        return element.decode()
    except UnicodeDecodeError:
        return {"b64": base64.b64encode(element).decode()}
