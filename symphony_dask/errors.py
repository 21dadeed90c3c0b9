"""Defines every error that a user of symphony-dask can meet, as one small tree.

``SymphonyError`` is the root. ``RequestError`` and below are what a request's future can raise; each says how the
request ended. The others are raised where the call was made. A message names what was wrong, the value, and what would
be right.
"""

from __future__ import annotations


class SymphonyError(Exception):
    """Root of all errors raised by this package."""


class BadInput(SymphonyError, ValueError):
    """An argument, a setting or a request's payload cannot be used; the message names the value and the remedy."""


class UnknownModel(SymphonyError, LookupError):
    """No model of that name is deployed."""


class DeploymentError(SymphonyError, RuntimeError):
    """A model could not be loaded or profiled on a worker; carries the worker's traceback in its message."""


class NotServing(SymphonyError, RuntimeError):
    """The Dask scheduler does not run the Symphony plugin, and it could not be installed."""


class WouldDeadlock(SymphonyError, RuntimeError):
    """A wait was begun that could never end, because only the thread or event loop that waits could end it."""


class RequestError(SymphonyError, RuntimeError):
    """A request ended without an answer."""


class DeadlineExceeded(RequestError, TimeoutError):
    """The request was dropped because it could no longer finish before its deadline (outcome ``dropped``)."""


class Overloaded(RequestError):
    """The model's queue was full when the request came (outcome ``rejected``)."""


class NoGPUWorker(RequestError):
    """No connected worker has a slot that serves the model (outcome ``rejected``)."""


class ModelError(RequestError):
    """The model raised on the worker; the message ends with the worker's traceback (outcome ``failed``)."""


class WorkerLost(RequestError):
    """The worker died with the request in flight, too late or too often to try again (outcome ``failed``)."""


class PayloadLost(RequestError):
    """The request's payload did not reach the worker in time, so it did not run (outcome ``failed``)."""


class NoAnswer(RequestError, TimeoutError):
    """No answer came until half a second after the deadline, and none is waited for any longer: the model hangs, or the
    worker or the scheduler does not respond. The request may have run (outcome ``failed``).
    """


class Undeployed(RequestError):
    """The model was undeployed while the request waited (outcome ``cancelled``)."""


class ConnectionLost(RequestError, ConnectionError):
    """The connection to the scheduler's lane broke before the reply; the request may or may not have run."""
