"""The shape that a model takes, learned from an example, so that a wrong request is refused before it is sent."""

from __future__ import annotations

from typing import Any

from symphony_dask import codec
from symphony_dask.errors import BadInput


def sample_signature(example: Any) -> bytes | None:
    """The signature that requests must have; None if ``example`` is no array or tensor. Raises ``BadInput``."""
    return codec.signature(codec.encode(example))


def check_sample(model: str, expected: bytes | None, payload: bytes) -> None:
    """Raises ``BadInput`` if the encoded ``payload`` differs from ``expected`` in dtype or shape.

    Arrays and tensors of one dtype and shape pass for each other. ``expected`` None lets everything pass.
    """
    if expected is None or payload.startswith(expected):
        return
    takes, got = codec.describe(expected), codec.describe(payload)
    if takes != got:
        raise BadInput(f"model {model!r} takes {takes}; got {got}")
