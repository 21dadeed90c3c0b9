"""An inference request and its response as the Open Inference Protocol v2 puts them into HTTP.

The body is JSON, or with ``Inference-Header-Content-Length: L`` L bytes of JSON and after it the elements of those
tensors that have a ``binary_data_size``, in their order. L = 0: the body is the data of the one input, one sample.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from symphony_dask.gateway.refusal import bad
from symphony_dask.gateway.tensors import (
    DATATYPES,
    Tensor,
    check_shape,
    from_binary,
    from_json,
    to_binary,
    to_json,
)
from symphony_dask.scheduling.engine import MOST_PRIORITY
from symphony_dask.units import NS_PER_US, parse_duration_ns


class Terms(NamedTuple):
    """slo_ns: 0 for the model's own."""

    slo_ns: int = 0
    priority: int = 0


class InferRequest(NamedTuple):
    """outputs: (name, binary) of those wanted, None: all of them, as ``binary`` says. raw: of a body without JSON."""

    inputs: Sequence[Tensor] = ()
    terms: Terms = Terms()
    id: str | None = None
    outputs: list[tuple[str, bool]] | None = None
    binary: bool = False
    raw: memoryview | None = None


def read_json(data: bytes | memoryview) -> dict[str, Any]:
    """A JSON object; raises ``Refusal``."""
    try:
        found = json.loads(bytes(data))
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
        reason = "it is nested too deep" if isinstance(error, RecursionError) else error
        raise bad(f"body of {len(data)} bytes is no JSON: {reason}") from None
    if not isinstance(found, dict):
        raise bad(f"body must be a JSON object, got {type(found).__name__}")
    return found


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
        raise bad(f"inputs have the same name: {[tensor.name for tensor in inputs]}")
    identity = head.get("id")
    if identity is not None and not isinstance(identity, str):
        raise bad(f"'id' must be a string, got {type(identity).__name__}")
    parameters = parameters_of(head, "the request")
    every = _flag(parameters, "binary_data_output", False)
    return InferRequest(inputs, terms_of(parameters), identity, _read_outputs(head.get("outputs"), every), every)


def _read_input(entry: Any, binary: memoryview) -> tuple[Tensor, memoryview]:
    """A tensor of a request, and what it leaves of the binary data."""
    if not isinstance(entry, dict):
        raise bad(f"each of 'inputs' must be an object, got {type(entry).__name__}")
    name, datatype = entry.get("name"), entry.get("datatype")
    if not isinstance(name, str) or not name:
        raise bad("each of 'inputs' must have a 'name', a string that is not empty")
    if datatype not in DATATYPES:
        raise bad(f"tensor {name!r}: datatype {str(datatype)[:40]!r} is none of {', '.join(DATATYPES)}")
    shape, elements = check_shape(name, entry.get("shape"))
    parameters = parameters_of(entry, f"tensor {name!r}")
    if "shared_memory_region" in parameters:
        raise bad(f"tensor {name!r}: shared memory is not offered: send the data")
    size = parameters.get("binary_data_size")
    if size is None:
        if "data" not in entry:
            raise bad(f"tensor {name!r} has neither data nor binary_data_size")
        return from_json(name, datatype, shape, elements, entry["data"]), binary
    if "data" in entry:
        raise bad(f"tensor {name!r} has both data and binary_data_size")
    if type(size) is not int or not 0 <= size <= len(binary):
        text = f"tensor {name!r}: binary_data_size {str(size)[:40]} must be a number of bytes"
        raise bad(f"{text}, and {len(binary)} are left of the body")
    return from_binary(name, datatype, shape, elements, binary[:size]), binary[size:]


def _read_outputs(given: Any, every: bool) -> list[tuple[str, bool]] | None:
    if given is None or given == []:
        return None
    if not isinstance(given, list):
        raise bad(f"'outputs' must be a list, got {type(given).__name__}")
    wanted: list[tuple[str, bool]] = []
    for entry in given:
        name = entry.get("name") if isinstance(entry, dict) else None
        if not isinstance(name, str) or not name:
            raise bad("each of 'outputs' must be an object with a 'name'")
        parameters = parameters_of(entry, f"output {name!r}")
        for offered_not in ("classification", "shared_memory_region"):
            if parameters.get(offered_not):
                raise bad(f"output {name!r}: {offered_not} is not offered")
        wanted.append((name, _flag(parameters, "binary_data", every)))
    return wanted


def parameters_of(entry: dict[str, Any], what: str) -> dict[str, Any]:
    """``parameters`` of a request or tensor; raises ``Refusal``."""
    parameters = entry.get("parameters")
    if parameters is None:
        return {}
    if not isinstance(parameters, dict):
        raise bad(f"parameters of {what} must be an object, got {type(parameters).__name__}")
    return parameters


def _flag(parameters: dict[str, Any], name: str, default: bool) -> bool:
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise bad(f"parameter {name!r} must be true or false, got {str(value)[:40]!r}")
    return value


def terms_of(parameters: dict[str, Any]) -> Terms:
    """``slo`` ("25ms", or seconds), or else ``timeout`` (the same, but a number is us, as Triton has it), and
    ``priority``, 0 to 7. Raises ``Refusal`` or ``BadInput``.
    """
    if not parameters:
        return Terms()
    slo_ns = 0
    if (slo := parameters.get("slo")) is not None:
        slo_ns = parse_duration_ns(slo, "slo")
    elif timeout := parameters.get("timeout"):
        if type(timeout) is int and 0 < timeout < 2**62 // NS_PER_US:
            slo_ns = timeout * NS_PER_US
        elif isinstance(timeout, str):
            slo_ns = parse_duration_ns(timeout, "timeout")
        else:
            raise bad(f"parameter 'timeout' {str(timeout)[:40]!r}: give whole us, or a string as \"25ms\"")
    priority = parameters.get("priority", 0)
    if type(priority) is not int or not 0 <= priority <= MOST_PRIORITY:
        raise bad(f"parameter 'priority' {str(priority)[:40]!r}: give a whole number between 0 and {MOST_PRIORITY}")
    return Terms(slo_ns, priority)


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
