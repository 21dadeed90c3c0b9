"""Learns the shape that a model takes from an example, so that a wrong request is refused before it is sent."""

from __future__ import annotations

from symphony_dask.errors import BadInput
from symphony_dask.wire import array_codec, codec, composite

#: The signature where the example tells what samples are made of, and not their shape: it lets everything pass.
ANY_SHAPE = b""


def sample_signature(example: object) -> bytes | None:
    """The signature that requests must have: of an array or tensor, or of several in a dict, tuple or list.

    None for any other ``example``. Raises ``BadInput``.
    """
    payload = codec.encode(example)
    return array_codec.signature(payload) or composite.signature(payload)


def check_sample(model: str, expected: bytes | None, payload: bytes | memoryview) -> None:
    """Raises ``BadInput`` if the encoded ``payload`` differs from ``expected`` in its entries, or in dtype or shape.

    Arrays and tensors of one dtype and shape pass for each other, a list for a tuple, and names come in any order.
    ``expected`` None or ``ANY_SHAPE`` lets everything pass.
    """
    if expected is None or expected == ANY_SHAPE:
        return
    if expected[0] == array_codec.PLAIN:
        if wrong := composite.mismatch(expected, payload):
            raise BadInput(f"model {model!r} takes {composite.read(expected)}; {wrong}")
        return
    if payload[: len(expected)] == expected:
        return
    takes, got = codec.describe(expected), composite.describe(payload)
    if takes != got:
        raise BadInput(f"model {model!r} takes {takes}; got {got}")
