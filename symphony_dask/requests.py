"""The requests that the dispatcher holds, as columns indexed by the slot that the engine gave each."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Slots = npt.NDArray[np.int32]


class Rows(NamedTuple):
    """Columns of some requests, all of one length; times in ns."""

    ids: npt.NDArray[Any]
    clients: npt.NDArray[Any]
    arrivals: npt.NDArray[Any]
    deadlines: npt.NDArray[Any]
    bytes: npt.NDArray[Any]


class RequestTable:
    """Columns of ``size`` slots. A slot without a request, or whose client is gone, has client -1.

    Times are ns on the host's clock; ``deadline`` is the client's, ``retries`` counts lost workers, ``held`` says whose
    payload the client keeps until it knows the worker.
    """

    def __init__(self, size: int) -> None:
        self.client = np.full(size, -1, np.int32)
        self.id = np.zeros(size, np.int64)
        self.arrival = np.zeros(size, np.int64)
        self.deadline = np.zeros(size, np.int64)
        self.bytes = np.zeros(size, np.int64)
        self.retries = np.zeros(size, np.int8)
        self.held = np.zeros(size, np.bool_)
        self._payload: list[memoryview] = [memoryview(b"")] * size

    def put(self, slots: Slots, rows: Rows, held: npt.NDArray[np.bool_], blob: memoryview) -> None:
        """Keep requests, but those with a negative slot; payloads not held follow each other in ``blob``."""
        kept = slots >= 0
        mine = slots[kept]
        columns: tuple[npt.NDArray[Any], ...] = (self.id, self.client, self.arrival, self.deadline, self.bytes)
        for column, values in zip(columns, rows, strict=True):
            column[mine] = values[kept]
        self.retries[mine] = 0
        self.held[mine] = held[kept]
        payload, at = self._payload, 0
        for slot, size in zip(slots.tolist(), np.where(held, 0, rows.bytes).tolist(), strict=True):
            if slot >= 0:
                payload[slot] = blob[at : at + size]
            at += size

    def payloads(self, slots: Slots) -> list[memoryview]:
        """The payloads of some requests in their order, empty for those that are held."""
        payload = self._payload
        return [payload[slot] for slot in slots.tolist()]

    def rows(self, slots: Slots) -> Rows:
        return Rows(self.id[slots], self.client[slots], self.arrival[slots], self.deadline[slots], self.bytes[slots])

    def forget(self, slots: Slots) -> None:
        self.client[slots] = -1
        for slot in slots.tolist():
            self._payload[slot] = memoryview(b"")

    def of_client(self, client: int, ids: Any = None) -> npt.NDArray[np.int64]:
        """Slots of a client's requests, of those with the given ids if there are any."""
        mine = np.flatnonzero(self.client == client)
        return mine if ids is None else mine[np.isin(self.id[mine], ids)]
