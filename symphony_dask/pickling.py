"""Pickles users' objects for other machines, with errors that say which object cannot go, and what to do."""

from __future__ import annotations

from distributed.protocol.pickle import dumps

from symphony_dask.errors import BadInput
from symphony_dask.text import brief


def pickled(obj: object, what: str, remedy: str) -> bytes:
    """``obj`` for Dask's channel. Raises ``BadInput``: ``what`` cannot be sent, why, and the remedy."""
    try:
        return bytes(dumps(obj))
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        raise BadInput(f"{what} cannot be sent, {brief(error)}: {remedy}") from None
