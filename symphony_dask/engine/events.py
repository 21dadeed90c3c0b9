"""Writes down the calls that change an engine, as packed records: noting one costs a fraction of a microsecond."""

from __future__ import annotations

import struct

import numpy as np

#: The calls; ``engine/journal.py`` says what their numbers are.
OPS = (
    "state", "policy", "slack", "control", "add_model", "update_profile", "remove_model", "add_gpu", "drain_gpu",
    "remove_gpu", "able", "wire", "admit", "cancel", "completed", "step", "batching", "in_hand",
)  # fmt: skip

#: A call: ``op`` indexes ``OPS``, ``data`` is how many bytes of data it has; times are ns, 0 where it has none.
EVENT = np.dtype([(name, "<i8") for name in ("op", "time", "a", "b", "c", "d", "data")])

_CODES = {op: code for code, op in enumerate(OPS)}

_pack = struct.Struct("<7q").pack


class Journal:
    """What an engine was told, since the journal was last emptied."""

    def __init__(self) -> None:
        #: An ``EVENT`` for each call, and the data of those that have any.
        self.rows: list[bytes] = []
        self.data: list[bytes] = []

    def note(self, op: str, now: int, a: int = 0, b: int = 0, c: int = 0, d: int = 0, data: bytes = b"") -> None:
        """Write down a call."""
        self.rows.append(_pack(_CODES[op], now, a, b, c, d, len(data)))
        if data:
            self.data.append(data)

    def take(self) -> tuple[bytes, bytes]:
        """All events and all data, and begin anew."""
        taken = b"".join(self.rows), b"".join(self.data)
        self.rows.clear()
        self.data.clear()
        return taken
