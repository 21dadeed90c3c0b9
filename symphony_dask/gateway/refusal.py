"""Chooses status code and text for a request that gets no answer."""

from __future__ import annotations

from symphony_dask import errors
from symphony_dask.text import plain

#: After how many seconds a client should try again where the queue was full or nothing could serve it.
RETRY_AFTER_S = 1


class Refusal(Exception):
    """A request ends with this status and ``{"error": text}``.

    outcome: under which metrics count it.
    """

    def __init__(self, status: int, text: str, *, outcome: str = "invalid", headers: dict[str, str] | None = None):
        super().__init__(text)
        self.status = status
        self.text = plain(text)
        self.outcome = outcome
        self.headers = headers or {}


def bad(text: str) -> Refusal:
    """400: the request cannot be understood."""
    return Refusal(400, text)


def later(status: int, text: str, outcome: str = "rejected") -> Refusal:
    """The request may well succeed a little later."""
    return Refusal(status, text, outcome=outcome, headers={"retry-after": str(RETRY_AFTER_S)})


#: What each ``errors.RequestError`` is over HTTP: status, outcome, whether it should be tried again.
_STATUS: dict[type[BaseException], tuple[int, str, bool]] = {
    errors.DeadlineExceeded: (504, "dropped", False),
    errors.Overloaded: (429, "rejected", True),
    errors.NoGPUWorker: (503, "rejected", True),
    errors.WorkerLost: (503, "failed", True),
    errors.PayloadLost: (503, "failed", True),
    errors.NoAnswer: (504, "failed", False),
    errors.ConnectionLost: (502, "failed", True),
    errors.ModelError: (500, "failed", False),
    errors.UnknownModel: (404, "invalid", False),
    errors.Undeployed: (404, "cancelled", False),
    errors.BadInput: (400, "invalid", False),
}


def of_error(error: BaseException, asked: str = "") -> Refusal:
    """The refusal that an error of this package stands for; 502 for one that has no status of its own.

    asked: the time that the request gave itself, as "slo '25ms'"; empty: its model's. What is late is late by that.
    """
    status, outcome, again = _STATUS.get(type(error), (502, "failed", False))
    text = str(error) or type(error).__name__
    if asked and isinstance(error, TimeoutError):
        text = f"the request came with {asked}: {text}"
    return later(status, text, outcome) if again else Refusal(status, text, outcome=outcome)
