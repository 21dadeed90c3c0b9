"""Writes and reads the plugin's answers to RPCs: {"ok": value}, or {"error": [code, message]}, raised in clients."""

from __future__ import annotations

from typing import Any

from symphony_dask.wire.error_codes import Failure, failure_of

Reply = dict[str, Any]


def failure(error: Exception) -> Reply:
    """The reply that has callers raise ``error``."""
    return {"error": [*failure_of(error)]}


def checked(reply: Reply) -> Reply:
    """``reply``, unless it is an error, which is raised."""
    if "error" in reply:
        code, text = reply["error"]
        raise Failure(code, text).error()
    return reply


def value_of(reply: Reply) -> Any:
    """What a reply says; raises the error that it is instead."""
    return checked(reply)["ok"]
