"""Writes what is deployed into a file, from which a scheduler that starts again serves the same models.

The file holds the models themselves, as their clients sent them, pickled; so it is trusted as the scheduler's own disk
is, and readable by its user only. It is replaced whole, so that a crash leaves the one before or the one after.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgpack

from symphony_dask.control.deployment import Deployment, State
from symphony_dask.control.deployments import Versions
from symphony_dask.engine.batching import Batching
from symphony_dask.engine.latency_profile import LatencyProfile
from symphony_dask.errors import BadInput

_FORMAT = 1

_PLAIN = (
    "model_id", "name", "spec", "slo_ns", "max_batch", "queue_limit", "example", "version", "memory", "pinned",
    "signature", "declared", "load_ns", "batching",
)  # fmt: skip


def pack(names: Iterable[Versions], next_model_id: int, pipelines: dict[str, Any]) -> bytes:
    """What serves, as bytes. A version that is loading or draining is left out."""
    served = [_name(v) for v in names if v.current]
    packed: bytes = msgpack.packb(
        {"format": _FORMAT, "next_model_id": next_model_id, "names": served, "pipelines": pipelines}
    )
    return packed


def unpack(data: bytes) -> tuple[list[Versions], int, dict[str, Any]]:
    """The names of ``pack``, the first model id that is free, and the pipelines.

    Raises ``ValueError`` or what msgpack raises.
    """
    state = msgpack.unpackb(data)
    if state["format"] != _FORMAT:
        raise ValueError(f"its format is {state['format']}, and this version reads {_FORMAT}")
    return [_versions(name) for name in state["names"]], int(state["next_model_id"]), state.get("pipelines", {})


def write(path: str, data: bytes) -> None:
    """Replace the file; it is on disk when this returns."""
    folder = Path(path).parent
    folder.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f".{Path(path).name}-", dir=folder)  # readable by this user only
    try:
        with os.fdopen(handle, "wb") as out:
            out.write(data)
            out.flush()
            os.fsync(out.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    directory = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def read(path: str) -> tuple[list[Versions], int, dict[str, Any]]:
    """What ``write`` left there, nothing if there is no file yet. Raises ``BadInput`` if it cannot be read."""
    try:
        return unpack(Path(path).read_bytes())
    except FileNotFoundError:
        return [], 0, {}
    except Exception as error:
        text = f"symphony.state {path!r} cannot be read ({type(error).__name__}: {error})"
        raise BadInput(f"{text}: move it away to start without deployments") from error


def _name(versions: Versions) -> dict[str, Any]:
    return {
        "name": versions.name,
        "number": versions.number,
        "share": versions.share,
        "current": _deployment(versions.current),
        "canary": _deployment(versions.canary),
        "earlier": [_deployment(d) for d in versions.earlier],
    }


def _deployment(deployment: Deployment | None) -> dict[str, Any] | None:
    if deployment is None:
        return None
    given = deployment.given.to_dict() if deployment.given is not None else None
    profiles = {c: p.to_dict() for c, p in deployment.profiles.items()}
    return {name: getattr(deployment, name) for name in _PLAIN} | {"given": given, "profiles": profiles}


def _versions(stored: dict[str, Any]) -> Versions:
    return Versions(
        stored["name"],
        stored["number"],
        _restored(stored["current"], "serving"),
        _restored(stored["canary"], "canary"),
        stored["share"],
        earlier=[d for d in (_restored(e, "retired") for e in stored["earlier"]) if d is not None],
    )


def _restored(stored: dict[str, Any] | None, state: State) -> Deployment | None:
    if stored is None:
        return None
    given = LatencyProfile.from_dict(stored["given"]) if stored["given"] is not None else None
    profiles = {c: LatencyProfile.from_dict(p) for c, p in stored["profiles"].items()}
    plain = {name: stored[name] for name in _PLAIN if name != "batching"}
    batching = Batching(*stored.get("batching", ()))  # files of earlier versions have none
    return Deployment(**plain, batching=batching, given=given, profiles=profiles, state=state)
