"""Numbers the errors that cross a wire: what is sent is a code and a text, and each end knows the table.

A code says what happened, a class what a user catches; several codes may share a class. Numbers are never used again
for something else, and one that a later release adds is read as the root of its kind.
"""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

from symphony_dask import errors
from symphony_dask.errors import SymphonyError
from symphony_dask.text import plain


class ErrorCode(IntEnum):
    """Below 32: how a request ended without an answer. From 32 on: what a call raised."""

    REQUEST_ERROR = 1
    DEADLINE_EXCEEDED = 2
    OVERLOADED = 3
    NO_GPU_WORKER = 4
    MODEL_ERROR = 5
    WORKER_LOST = 6
    PAYLOAD_LOST = 7
    NO_ANSWER = 8
    UNDEPLOYED = 9
    CONNECTION_LOST = 10
    TASK_LATE = 11  #: the Dask task that the request stands for did not reach the worker in time for its batch
    CANCELLED = 12  #: by whoever asked, who hears of it no more

    SYMPHONY_ERROR = 32
    BAD_INPUT = 33
    UNKNOWN_MODEL = 34
    DEPLOYMENT_ERROR = 35
    NOT_SERVING = 36
    WOULD_DEADLOCK = 37


_CLASSES: dict[int, type[SymphonyError]] = {
    ErrorCode.REQUEST_ERROR: errors.RequestError,
    ErrorCode.DEADLINE_EXCEEDED: errors.DeadlineExceeded,
    ErrorCode.OVERLOADED: errors.Overloaded,
    ErrorCode.NO_GPU_WORKER: errors.NoGPUWorker,
    ErrorCode.MODEL_ERROR: errors.ModelError,
    ErrorCode.WORKER_LOST: errors.WorkerLost,
    ErrorCode.PAYLOAD_LOST: errors.PayloadLost,
    ErrorCode.NO_ANSWER: errors.NoAnswer,
    ErrorCode.UNDEPLOYED: errors.Undeployed,
    ErrorCode.CONNECTION_LOST: errors.ConnectionLost,
    ErrorCode.TASK_LATE: errors.ModelError,
    ErrorCode.CANCELLED: errors.RequestError,
    ErrorCode.SYMPHONY_ERROR: errors.SymphonyError,
    ErrorCode.BAD_INPUT: errors.BadInput,
    ErrorCode.UNKNOWN_MODEL: errors.UnknownModel,
    ErrorCode.DEPLOYMENT_ERROR: errors.DeploymentError,
    ErrorCode.NOT_SERVING: errors.NotServing,
    ErrorCode.WOULD_DEADLOCK: errors.WouldDeadlock,
}

#: The first code of each class is the one that it is sent as.
_CODES = {error: ErrorCode(code) for code, error in reversed(_CLASSES.items())}

_FIRST_OF_CALLS = ErrorCode.SYMPHONY_ERROR


class Failure(NamedTuple):
    """An error as it is sent."""

    code: int
    text: str

    def error(self) -> SymphonyError:
        """The error to raise."""
        root = errors.RequestError if self.code < _FIRST_OF_CALLS else SymphonyError
        return _CLASSES.get(self.code, root)(self.text)


def failure_of(error: BaseException) -> Failure:
    """An error to be sent; one that is none of this package's goes as ``SymphonyError``."""
    for kind in type(error).__mro__:
        if kind in _CODES:
            return Failure(_CODES[kind], plain(error))
    return Failure(ErrorCode.SYMPHONY_ERROR, plain(error))
