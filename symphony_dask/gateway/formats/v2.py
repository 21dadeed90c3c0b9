"""Reads an inference request of the Open Inference Protocol v2, and writes its response.

The body is JSON, or with ``Inference-Header-Content-Length: L`` L bytes of JSON and after it the elements of those
tensors that have a ``binary_data_size``, in their order. L = 0: the body is the data of the one input, one sample.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from symphony_dask.gateway.formats.parameters import (
    OF_INPUT,
    OF_OUTPUT,
    OF_REQUEST,
    Terms,
    check_keys,
    flag,
    parameters_of,
    terms_of,
)
from symphony_dask.gateway.formats.tensors import (
    DATATYPES,
    Tensor,
    check_name,
    check_shape,
    from_binary,
    from_json,
    to_binary,
    to_json,
)
from symphony_dask.gateway.refusal import bad
from symphony_dask.text import brief, shown

#: Entries of a request, an input and an output. kserve's client says the model's name in the body too.
_REQUEST = ("id", "inputs", "outputs", "parameters", "model_name", "model_version")
_INPUT = ("name", "shape", "datatype", "data", "parameters")
_OUTPUT = ("name", "parameters")

#: An escape of half a surrogate pair, perhaps beside its other half.
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


class InferRequest(NamedTuple):
    """outputs: (name, binary) of those wanted, None: all of them, as ``binary`` says. raw: of a body without JSON."""

    inputs: Sequence[Tensor] = ()
    terms: Terms = Terms()
    id: str | None = None
    outputs: list[tuple[str, bool]] | None = None
    binary: bool = False
    raw: memoryview | None = None


def read_json(data: bytes | memoryview) -> dict[str, Any]:
    """A JSON object whose strings are all valid Unicode, which JSON itself does not ask for; raises ``Refusal``."""
    try:
        text = str(data, "utf-8-sig")
        found = json.loads(text)
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
        reason = "it is nested too deep" if isinstance(error, RecursionError) else brief(error)
        raise bad(f"body of {len(data)} bytes is no JSON: {reason}") from None
    if not isinstance(found, dict):
        raise bad(f"body must be a JSON object, got {type(found).__name__}")
    if _SURROGATE.search(text):
        _check_strings(found)
    return found


def _check_strings(found: dict[str, Any]) -> None:
    """Raises ``Refusal`` where half a surrogate pair stands alone."""
    level: list[Any] = [found]
    while level:
        entry = level.pop()
        if isinstance(entry, dict):
            level += [*entry.keys(), *entry.values()]
        elif isinstance(entry, list):
            level += entry
        elif isinstance(entry, str) and not entry.isascii():
            try:
                entry.encode()
            except UnicodeEncodeError:
                text = f"body has a string that is no valid Unicode, {shown(entry)}"
                raise bad(
                    f"{text}: send bytes that are no text as binary data, or as b64 where predict takes it"
                ) from None


def read_header_length(text: bytes | None, body_bytes: int) -> int | None:
    """``Inference-Header-Content-Length``; raises ``Refusal`` unless it is within the body."""
    if text is None:
        return None
    if not text.isdigit() or len(text) > 12 or int(text) > body_bytes:
        shown = text[:40].decode("latin-1")
        raise bad(f"Inference-Header-Content-Length {shown!r} must be a number between 0 and the body's {body_bytes}")
    return int(text)


def read_infer(body: bytes, header_bytes: int | None) -> InferRequest:
    """The request in ``body``, whose first ``header_bytes`` are JSON (None: all); raises ``Refusal``."""
    view = memoryview(body)
    if header_bytes == 0:
        return InferRequest(raw=view, binary=True)
    head = read_json(body if header_bytes is None else view[:header_bytes])
    binary = view[len(body) if header_bytes is None else header_bytes :]
    check_keys(head, "the request", _REQUEST)
    given = head.get("inputs")
    if not isinstance(given, list) or not given:
        raise bad("'inputs' must be a list of one tensor or more")
    inputs: list[Tensor] = []
    for entry in given:
        tensor, binary = _read_input(entry, binary)
        inputs.append(tensor)
    if len(binary):
        raise bad(f"body has {len(binary)} bytes more than the binary_data_size of its inputs say")
    if len({tensor.name for tensor in inputs}) != len(inputs):
        raise bad(f"inputs have the same name: {shown([tensor.name for tensor in inputs])}")
    identity = head.get("id")
    if identity is not None and not isinstance(identity, str):
        raise bad(f"'id' must be a string, got {type(identity).__name__}")
    parameters = parameters_of(head, "the request", OF_REQUEST)
    every = flag(parameters, "binary_data_output", False)
    return InferRequest(inputs, terms_of(parameters), identity, _read_outputs(head.get("outputs"), every), every)


def _read_input(entry: object, binary: memoryview) -> tuple[Tensor, memoryview]:
    """A tensor of a request, and what it leaves of the binary data."""
    if not isinstance(entry, dict):
        raise bad(f"each of 'inputs' must be an object, got {type(entry).__name__}")
    name, datatype = check_name(entry.get("name"), "each of 'inputs'"), entry.get("datatype")
    check_keys(entry, f"tensor {name!r}", _INPUT)
    if datatype not in DATATYPES:
        raise bad(f"tensor {name!r}: datatype {shown(datatype)} is none of {', '.join(DATATYPES)}")
    shape, elements = check_shape(name, entry.get("shape"))
    parameters = parameters_of(entry, f"tensor {name!r}", OF_INPUT)
    size = parameters.get("binary_data_size")
    if size is None:
        if "data" not in entry:
            raise bad(f"tensor {name!r} has neither data nor binary_data_size")
        return from_json(name, datatype, shape, elements, entry["data"]), binary
    if "data" in entry:
        raise bad(f"tensor {name!r} has both data and binary_data_size")
    if type(size) is not int or not 0 <= size <= len(binary):
        text = f"tensor {name!r}: binary_data_size {shown(size)} must be a number of bytes"
        raise bad(f"{text}, and {len(binary)} are left of the body")
    return from_binary(name, datatype, shape, elements, binary[:size]), binary[size:]


def _read_outputs(given: object, every: bool) -> list[tuple[str, bool]] | None:
    if given is None or given == []:
        return None
    if not isinstance(given, list):
        raise bad(f"'outputs' must be a list, got {type(given).__name__}")
    wanted: list[tuple[str, bool]] = []
    for entry in given:
        if not isinstance(entry, dict):
            raise bad(f"each of 'outputs' must be an object, got {type(entry).__name__}")
        name = check_name(entry.get("name"), "each of 'outputs'")
        check_keys(entry, f"output {name!r}", _OUTPUT)
        parameters = parameters_of(entry, f"output {name!r}", OF_OUTPUT)
        wanted.append((name, flag(parameters, "binary_data", every)))
    return wanted


def write_infer(
    model: str, version: str, request: InferRequest, tensors: Sequence[Tensor]
) -> tuple[list[Any], int | None]:
    """The body of the response, in pieces, and how many bytes of it are JSON if not all; raises ``Refusal``."""
    head: dict[str, Any] = {"model_name": model, "model_version": version}
    if request.id is not None:
        head["id"] = request.id
    outputs: list[dict[str, Any]] = []
    binary: list[Any] = []
    for tensor, as_binary in _chosen(tensors, request):
        output: dict[str, Any] = {"name": tensor.name, "datatype": tensor.datatype, "shape": tensor.shape}
        if as_binary:
            data = to_binary(tensor)
            output["parameters"] = {"binary_data_size": len(data)}
            binary.append(data)
        else:
            output["data"] = to_json(tensor)
        outputs.append(output)
    head["outputs"] = outputs
    text = json.dumps(head, separators=(",", ":")).encode()
    return ([text, *binary], len(text)) if binary or request.raw is not None else ([text], None)


def _chosen(tensors: Sequence[Tensor], request: InferRequest) -> list[tuple[Tensor, bool]]:
    if request.outputs is None:
        return [(tensor, request.binary) for tensor in tensors]
    if len(request.outputs) == 1 and len(tensors) == 1:
        return [(tensors[0]._replace(name=request.outputs[0][0]), request.outputs[0][1])]
    found = {tensor.name: tensor for tensor in tensors}
    for name, _ in request.outputs:
        if name not in found:
            has = ", ".join(map(repr, found)) or "none"
            raise bad(f"output {name!r} is unknown: the model has {has}")
    return [(found[name], as_binary) for name, as_binary in request.outputs]
