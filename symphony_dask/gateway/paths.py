"""Tells what a path below /v1/models or /v2/models asks for, and of which model.

A model's name stands there percent-encoded and may hold anything, slashes too: /v2/models/team%2Fmodel/infer. Many
clients leave a slash in a name as it is, and then a path can be read in more than one way: /v2/models/a/ready asks
whether "a" is ready, or for the metadata of "a/ready". The first reading whose model is deployed holds.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple
from urllib.parse import unquote

#: What can be asked of a model by each protocol, beside what it is.
_ASKED = {"v1": ("predict",), "v2": ("infer", "ready", "config", "stats")}

#: Those that are inference.
INFERENCE = frozenset({"infer", "predict"})


class Call(NamedTuple):
    """asks: "" for the model's metadata. version: None for whichever serves."""

    model: str
    version: str | None
    protocol: str
    asks: str


@lru_cache(maxsize=1024)
def calls_of(raw_path: bytes) -> tuple[Call, ...]:
    """The ways to read a path, the usual one first; none for paths of no model."""
    parts = [unquote(part) for part in raw_path.decode("latin-1").split("/")]
    if len(parts) < 4 or parts[0] or parts[1] not in _ASKED or parts[2] != "models":
        return ()
    protocol, segments = parts[1], parts[3:]
    if not segments[-1] and len(segments) > 1:  # a slash at the end
        segments.pop()
    readings = []
    for asks in _ASKED[protocol]:
        if protocol == "v2" and len(segments) > 1 and segments[-1] == asks:
            readings.append((segments[:-1], asks))
        elif protocol == "v1" and segments[-1].endswith(f":{asks}"):
            readings.append(([*segments[:-1], segments[-1][: -len(asks) - 1]], asks))
    readings.append((segments, ""))
    calls = []
    for names, asks in readings:
        if len(names) > 2 and names[-2] == "versions" and names[-1]:
            calls.append(Call("/".join(names[:-2]), names[-1], protocol, asks))
        calls.append(Call("/".join(names), None, protocol, asks))
    return tuple(call for call in calls if call.model)


@lru_cache(maxsize=1024)
def inference_calls(raw_path: bytes) -> tuple[Call, ...]:
    """Those of ``calls_of`` that are inference."""
    return tuple(call for call in calls_of(raw_path) if call.asks in INFERENCE)
