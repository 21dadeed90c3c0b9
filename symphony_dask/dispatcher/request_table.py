"""Holds the dispatcher's requests, as records indexed by the slot that the engine gave each."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from symphony_dask.engine import compiled_calls, request_kernels
from symphony_dask.engine.engine import Engine
from symphony_dask.engine.events import Journal
from symphony_dask.engine.state import EVICTED, fielded, records
from symphony_dask.wire.records import EXECUTE_ROW, RESULT_ROW

Slots = npt.NDArray[np.int32]

_NONE_FAILED = np.zeros(0, np.int8)
_NO_ENTRIES = np.empty(0, request_kernels.ENTRY)


class Rows(NamedTuple):
    """Columns of some requests, all of one length; times in ns."""

    ids: npt.NDArray[Any]
    clients: npt.NDArray[Any]
    arrivals: npt.NDArray[Any]
    deadlines: npt.NDArray[Any]
    bytes: npt.NDArray[Any]


class Intake(NamedTuple):
    """A frame of requests taken in: their slots, negative where refused, how many those are, records of the evicted."""

    slots: Slots
    refused: int
    evicted: npt.NDArray[Any]


class Settled(NamedTuple):
    """How a batch ended: the one client of all its requests (or ``request_kernels.MIXED``, ``NOBODY``), how many were
    answered and how long that took here, all together, the rows of RESULT, the client of each, -1 where it is gone, and
    their entries, if they were asked for.
    """

    owner: int
    answered: int
    answer_ns: int
    results: npt.NDArray[Any]
    owners: npt.NDArray[np.int32]
    entries: npt.NDArray[Any]


class RequestTable:
    """An entry (``request_kernels.ENTRY``) and a payload for each of ``size`` slots; without a request, the client is
    -1.

    Times are ns on the host's clock.
    """

    def __init__(self, size: int) -> None:
        self._entries = records(size, request_kernels.ENTRY)
        #: Views of the entries' fields.
        self.client: npt.NDArray[np.int32] = np.asarray(self._entries["client"])
        self.id: npt.NDArray[np.int64] = np.asarray(self._entries["id"])
        self.arrival: npt.NDArray[np.int64] = np.asarray(self._entries["arrival"])
        self.deadline: npt.NDArray[np.int64] = np.asarray(self._entries["deadline"])
        self.retries: npt.NDArray[np.int8] = np.asarray(self._entries["retries"])
        self.client[:] = -1
        self._payload: list[memoryview] = [memoryview(b"")] * size
        self._evicted = records(1, EVICTED)
        # How long an answer takes to get to each client, and then to be in its hands, ns.
        self._one_way = np.zeros(64, np.int64)
        self._in_hand = np.zeros(64, np.int64)
        # The journal that was told last what clients take with answers, and what that was.
        self._noted: tuple[Journal | None, int] = None, 0

    def set_one_way(self, client: int, one_way_ns: int, in_hand_ns: int = 0) -> None:
        """An answer takes so long to get to a client, and then so long to be in its hands."""
        if client >= len(self._one_way):
            more = np.zeros(max(client, len(self._one_way)), np.int64)
            self._one_way, self._in_hand = np.append(self._one_way, more), np.append(self._in_hand, more)
        self._one_way[client], self._in_hand[client] = one_way_ns, in_hand_ns

    def back_ns(self, clients: npt.NDArray[np.int32], entries: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
        """How long answers take until they are in clients' hands, by the client and the entry of each; 0 for clients
        that are gone.
        """
        most = np.maximum(entries["deadline"] - entries["arrival"], 0) // request_kernels.IN_HAND_PARTS
        return np.where(clients < 0, 0, self._one_way[clients] + np.minimum(self._in_hand[clients], most))

    def admit(
        self,
        engine: Engine,
        rows: npt.NDArray[Any],
        blob: memoryview,
        *,
        client: int,
        now: int,
        margin_ns: int,
        care_ns: int,
        in_hand_ns: int = 0,
        index_of: npt.NDArray[np.int32],
        slo_of: npt.NDArray[np.int64],
        serving: bool,
    ) -> Intake | None:
        """Queue the requests of a SUBMIT (``records.SUBMIT_ROW``), see ``request_kernels.admit``; None if it does
        not add up.

        Where some are evicted, ``keep`` must follow once they have been told.
        """
        n = len(rows)
        slots = np.empty(n, np.int32)
        if n > len(self._evicted):
            self._evicted = records(2 * n, EVICTED)
        one_way = int(self._one_way[client])
        found, refused = compiled_calls.admit(
            engine.table, self._entries, index_of, slo_of, fielded(rows), len(blob), client, now, one_way, margin_ns,
            care_ns, in_hand_ns, serving, slots, self._evicted,
        )  # fmt: skip
        if found < 0:
            return None
        if engine.journal is not None:
            if (engine.journal, in_hand_ns) != self._noted:
                self._noted = engine.journal, in_hand_ns
                engine.journal.note("in_hand", now, in_hand_ns)
            served = 1 + care_ns if serving else 0
            engine.journal.note("admit", now, one_way, margin_ns, served, len(blob), rows.tobytes())
        if found == 0:
            self._keep_payloads(slots, rows, blob)
        return Intake(slots, refused, self._evicted[:found])

    def keep(
        self,
        slots: Slots,
        rows: npt.NDArray[Any],
        blob: memoryview,
        *,
        client: int,
        now: int,
        slo_of: npt.NDArray[np.int64],
    ) -> None:
        """Keep requests that ``admit`` could not, for those it evicted."""
        request_kernels.keep(self._entries, slo_of, fielded(rows), client, now, int(self._one_way[client]), slots)
        self._keep_payloads(slots, rows, blob)

    def _keep_payloads(self, slots: Slots, rows: npt.NDArray[Any], blob: memoryview) -> None:
        payload, at = self._payload, 0
        for slot, size, held in zip(slots.tolist(), rows["bytes"].tolist(), rows["held"].tolist(), strict=True):
            end = at if held else at + size
            if slot >= 0:
                payload[slot] = blob[at:end]
            at = end

    def refused(self, rows: npt.NDArray[Any], *, client: int, now: int, slo_of: npt.NDArray[np.int64]) -> Rows:
        """What to record of requests that were not kept."""
        arrivals = now - np.clip(rows["age"], 0, now) - int(self._one_way[client])
        known = (rows["model"] >= 0) & (rows["model"] < len(slo_of))
        slos = np.where(rows["slo"] > 0, rows["slo"], np.where(known, slo_of[np.where(known, rows["model"], 0)], 0))
        deadlines = arrivals + np.minimum(slos, request_kernels.MOST_SLO_NS)
        return Rows(rows["id"], np.full(len(rows), client), arrivals, deadlines, rows["bytes"])

    def lay_out(self, slots: Slots, local: int) -> tuple[npt.NDArray[Any], tuple[int, int, int, int]]:
        """The rows of EXECUTE for a batch, and what ``request_kernels.lay_out`` returns."""
        out = np.zeros(len(slots), EXECUTE_ROW)
        return out, request_kernels.lay_out(self._entries, slots, local, fielded(out))

    def settle(
        self,
        slots: Slots,
        answers: npt.NDArray[Any],
        blob_bytes: int,
        *,
        now: int,
        failed: set[int],
        counts: npt.NDArray[np.int64],
        latencies: npt.NDArray[np.int64],
        keep: bool = False,
    ) -> Settled | None:
        """How the requests of a batch ended, see ``request_kernels.settle``; None if the answers do not add up."""
        n = len(slots)
        marks = _NONE_FAILED
        if failed:
            marks = np.zeros(n, np.int8)
            marks[list(failed)] = 1
        results, owners = np.zeros(n, RESULT_ROW), np.empty(n, np.int32)
        entries = np.empty(n, request_kernels.ENTRY) if keep else _NO_ENTRIES
        owner, answered, answer_ns = request_kernels.settle(
            self._entries, slots, fielded(answers), blob_bytes, now, self._one_way, self._in_hand, marks,
            fielded(results), owners, counts, latencies, fielded(entries),
        )  # fmt: skip
        if owner == request_kernels.MALFORMED:
            return None
        self._drop_payloads(slots)
        return Settled(owner, answered, answer_ns, results, owners, entries)

    def payloads(self, slots: Slots) -> list[memoryview]:
        """The payloads of some requests in their order, empty for those that are held."""
        payload = self._payload
        return [payload[slot] for slot in slots.tolist()]

    def rows(self, slots: Slots) -> Rows:
        entries = self._entries[slots]
        return Rows(*(np.asarray(entries[name]) for name in ("id", "client", "arrival", "deadline", "bytes")))

    def forget(self, slots: Slots) -> None:
        self.client[slots] = -1
        self._drop_payloads(slots)

    def _drop_payloads(self, slots: Slots) -> None:
        for slot in slots.tolist():
            self._payload[slot] = _EMPTY

    def of_client(self, client: int, ids: npt.NDArray[np.int64] | None = None) -> npt.NDArray[np.int64]:
        """Slots of a client's requests, of those with the given ids if there are any."""
        mine = np.flatnonzero(self.client == client)
        return mine if ids is None else mine[np.isin(self.id[mine], ids)]


_EMPTY = memoryview(b"")
