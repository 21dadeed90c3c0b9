"""Reads ``parameters`` of requests, inputs and outputs, and the entries beside them, and refuses others by name.

What is not known is never passed over: who asks for a sequence, or misspells ``slo``, is told so. An entry of null is
as if it were not there, as clients write what they leave unset.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, NamedTuple

from symphony_dask.engine.queue_limits import MOST_PRIORITY
from symphony_dask.gateway.refusal import bad
from symphony_dask.text import shown
from symphony_dask.units import NS_PER_US, Seconds, parse_duration_ns

#: Of a request, an input and an output of v2, and of a request of ``predict``.
OF_REQUEST = frozenset({"slo", "timeout", "priority", "binary_data_output", "content_type"})
OF_INPUT = frozenset({"binary_data_size", "content_type"})
OF_OUTPUT = frozenset({"binary_data", "content_type"})
OF_PREDICT = frozenset({"slo", "timeout", "priority"})

_SEQUENCES = "sequences are not offered, each request stands by itself: leave it out"
_SHARED_MEMORY = "shared memory is not offered: send the data"

#: What other servers offer, and what to do instead.
_REMEDIES = {
    "sequence_id": _SEQUENCES,
    "sequence_start": _SEQUENCES,
    "sequence_end": _SEQUENCES,
    "shared_memory_region": _SHARED_MEMORY,
    "shared_memory_byte_size": _SHARED_MEMORY,
    "shared_memory_offset": _SHARED_MEMORY,
    "classification": "classification is not offered: ask for the output itself",
}

#: How MLServer's clients say what they send in any case: elements as the datatype says.
_CONTENT_TYPES = ("np", "str")

#: Characters of a duration and its name.
_MOST_ASKED = 60


class Terms(NamedTuple):
    """slo_ns: 0 for the model's own; what the request calls it: ``asked``, as "slo '25ms'"."""

    slo_ns: int = 0
    priority: int = 0
    asked: str = ""


def parameters_of(entry: dict[str, Any], what: str, offered: Collection[str]) -> dict[str, Any]:
    """``parameters`` of a request, an input or an output, those that are set; raises ``Refusal`` for others than
    ``offered``.
    """
    parameters = entry.get("parameters")
    if parameters is None:
        return {}
    if not isinstance(parameters, dict):
        raise bad(f"parameters of {what} must be an object, got {type(parameters).__name__}")
    given = {name: value for name, value in parameters.items() if value is not None}
    for name, value in given.items():
        if name in offered:
            continue
        if name in _REMEDIES:
            if value in (0, "", False):  # "none", as some clients say always
                continue
            raise bad(f"parameter {name!r} of {what}: {_REMEDIES[name]}")
        known = ", ".join(map(repr, sorted(offered)))
        raise bad(f"parameter {shown(name)} of {what} is unknown: leave it out; offered are {known}")
    content_type = given.get("content_type", "np")
    if content_type not in _CONTENT_TYPES:
        text = f"parameter 'content_type' {shown(content_type)} of {what} is not offered"
        raise bad(f"{text}: leave it out, as the datatype says what the data is")
    return given


def check_keys(entry: dict[str, Any], what: str, offered: Collection[str]) -> None:
    """Raises ``Refusal`` where an object of the protocol has other entries than ``offered``."""
    for name, value in entry.items():
        if name not in offered and value is not None:
            raise bad(f"{shown(name)} in {what} is unknown: leave it out; offered are {', '.join(map(repr, offered))}")


def flag(parameters: dict[str, Any], name: str, default: bool) -> bool:
    """A parameter that is true or false; raises ``Refusal``."""
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise bad(f"parameter {name!r} must be true or false, got {shown(value)}")
    return value


def terms_of(parameters: dict[str, Any]) -> Terms:
    """``slo`` ("25ms", or seconds), or else ``timeout`` (the same, but a number is us, as Triton has it), and
    ``priority``, 0 to 7. Raises ``Refusal`` or ``BadInput``.
    """
    if not parameters:
        return Terms()
    slo_ns, asked = 0, ""
    for name in ("slo", "timeout"):
        value = parameters.get(name)
        if value is None or asked or (name == "timeout" and not value):
            continue
        if not isinstance(value, (str, int, float)) or len(asked := f"{name} {shown(value)}") > _MOST_ASKED:
            raise bad(f'parameter {name!r} {shown(value)}: give a duration, such as "25ms"')
        slo_ns = _slo_ns(value) if name == "slo" else _timeout_ns(value)
    priority = parameters.get("priority", 0)
    if type(priority) is not int or not 0 <= priority <= MOST_PRIORITY:
        raise bad(f"parameter 'priority' {shown(priority)}: give a whole number between 0 and {MOST_PRIORITY}")
    return Terms(slo_ns, priority, asked)


def _slo_ns(slo: Any) -> int:
    # Seconds, by the gateway's documents: JSON has numbers only where a program would have a type.
    return parse_duration_ns(Seconds(min(slo, 2**62)) if type(slo) in (int, float) else slo, "slo")


def _timeout_ns(timeout: object) -> int:
    if type(timeout) is int and 0 < timeout < 2**62 // NS_PER_US:
        return timeout * NS_PER_US
    if isinstance(timeout, str):
        return parse_duration_ns(timeout, "timeout")
    raise bad(f"parameter 'timeout' {shown(timeout)}: give whole us, or a string as \"25ms\"")
