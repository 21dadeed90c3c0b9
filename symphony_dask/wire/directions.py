"""Says which messages come from whom: anything else is refused before it is read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Generic, Protocol, TypeVar

from symphony_dask.errors import BadInput
from symphony_dask.wire.messages import (
    Answer,
    Aside,
    Cancel,
    Data,
    Done,
    Execute,
    Gone,
    IsAside,
    Op,
    Place,
    Pong,
    Result,
    Resume,
    Submit,
)

M_co = TypeVar("M_co", covariant=True)


class Decoder(Protocol[M_co]):
    """A message's class, as what reads it."""

    def decode(self, fields: list[Any], blob: memoryview) -> M_co:
        """The message in a frame; raises ``BadInput``."""


class Direction(Generic[M_co]):
    """Which messages come from one kind of peer."""

    def __init__(self, sender: str, decoders: Mapping[int, Decoder[M_co]]) -> None:
        self._sender, self._decoders = sender, {int(op): decoder.decode for op, decoder in decoders.items()}

    def read(self, op: object, fields: list[Any], blob: memoryview) -> M_co:
        """The message in a frame; raises ``BadInput`` if it is malformed, or does not come from there."""
        decode = self._decoders.get(op) if type(op) is int else None
        if decode is None:
            raise BadInput(f"lane op {op!r:.40} does not come from {self._sender}")
        return decode(fields, blob)


CLIENT_TO_SCHEDULER: Direction[Submit | Cancel | Data | Pong] = Direction(
    "a client", {Op.SUBMIT: Submit, Op.CANCEL: Cancel, Op.DATA: Data, Op.PONG: Pong}
)
WORKER_TO_SCHEDULER: Direction[Done | Pong | Answer | IsAside] = Direction(
    "a worker", {Op.DONE: Done, Op.PONG: Pong, Op.ANSWER: Answer, Op.IS_ASIDE: IsAside}
)
SCHEDULER_TO_CLIENT: Direction[Result | Place | Answer] = Direction(
    "a scheduler to a client", {Op.RESULT: Result, Op.PLACE: Place, Op.ANSWER: Answer}
)
SCHEDULER_TO_WORKER: Direction[Execute | Data | Gone | Aside | Resume] = Direction(
    "a scheduler to a worker",
    {Op.EXECUTE: Execute, Op.DATA: Data, Op.GONE: Gone, Op.ASIDE: Aside, Op.RESUME: Resume},
)
CLIENT_TO_WORKER: Direction[Data] = Direction("a client to a worker", {Op.DATA: Data})
WORKER_TO_CLIENT: Direction[Answer] = Direction("a worker to a client", {Op.ANSWER: Answer})
