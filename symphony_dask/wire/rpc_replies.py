"""Writes and reads the plugin's answers to RPCs: {"ok": value}, or {"error": [class, message]}, raised in clients."""

from __future__ import annotations

from typing import Any

from symphony_dask.text import plain

Reply = dict[str, Any]


def failure(error: Exception) -> Reply:
    return {"error": [type(error).__name__, plain(error)]}
