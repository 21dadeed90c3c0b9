"""What the plugin answers to RPCs: {"ok": value}, or {"error": [class, message]}, which clients raise as classes."""

from __future__ import annotations

from typing import Any

from symphony_dask.text import plain

Reply = dict[str, Any]


def failure(error: Exception) -> Reply:
    return {"error": [type(error).__name__, plain(error)]}
