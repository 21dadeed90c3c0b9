"""Records a run into its folder while it goes on, without holding up the thread that serves.

Rule 1: one producer thread calls ``record_*``, ``add_model`` and ``update_info``; each call only appends to memory.
Rule 2: one writer thread takes what has gathered every interval and writes one part per table.
Rule 3: no fault of the disk reaches the producer; what could not be kept is counted in ``lost_rows``.
The two threads share no lock: a deque carries the rows, and each counter has one thread that writes it.
"""

from __future__ import annotations

import json
import logging
import os
import threading
from collections import deque
from collections.abc import Mapping
from datetime import UTC, datetime
from types import TracebackType
from typing import Any

import pyarrow as pa

from symphony_dask.errors import BadInput
from symphony_dask.trace import folder as run_folder
from symphony_dask.trace.columns import Columns, Events, events_table, to_table
from symphony_dask.trace.schema import GPU_EVENTS, LATER, SCHEMA_VERSION, SCHEMAS

logger = logging.getLogger(__name__)

_REQUEST_COLUMNS = frozenset(SCHEMAS["requests"].names)
_BATCH_COLUMNS = frozenset(SCHEMAS["batches"].names)


class Recorder:
    """Writes the tables of one run; a context manager that closes.

    folder: a new folder, or one that holds no run; local or s3://.
    info: goes into run.json as it is (models with profile and slo, policy, config, ...); plain JSON values. It may also
        set ``started_at`` (UTC, ISO; by default now) and ``clock`` ("monotonic").
    interval_s: seconds between parts; a killed process loses at most the rows of about one interval.
    max_buffered_rows: rows kept while the disk is slow; beyond them the oldest are lost. As many again can be with the
        writer. Raise it for a simulator, which can outrun a disk.

    Raises ``BadInput`` if the folder holds a run or cannot be used, or if ``info`` is not plain.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        info: dict[str, Any],
        interval_s: float = 2.0,
        max_buffered_rows: int = 500_000,
    ) -> None:
        self.folder = run_folder.place(folder)
        #: Names that the codes of ``model`` columns index; grows through ``add_model``.
        self.models: list[str] = []
        #: The latest fault of writing, None while there was none.
        self.error: Exception | None = None
        self.interval_s = interval_s
        self.max_buffered_rows = max_buffered_rows

        #: (table, rows, payload); payload is Columns for requests and batches, a dict of one row for the others.
        self._pending: deque[tuple[str, int, Any]] = deque()
        # Of the producer.
        self._appended_rows = 0
        self._dropped_rows = 0
        self._closed = False
        # Of the writer.
        self._taken_rows = 0
        self._failed_rows = 0
        self._parts = dict.fromkeys(SCHEMAS, 0)
        self._counts = dict.fromkeys(SCHEMAS, 0)

        #: Replaced, never changed in place, so that the writer can read it at any time.
        self._info = {
            "schema_version": SCHEMA_VERSION,
            "started_at": datetime.now(UTC).isoformat(),
            "clock": "monotonic",
            "software": run_folder.software(),
            **run_folder.plain(info),
        }
        #: What run.json was last written from: the info and the lost rows.
        self._written: tuple[dict[str, Any], int] | None = None
        run_folder.create(self.folder)
        try:
            self._write_info(closed=False)
        except OSError as exc:
            raise BadInput(f"trace folder {str(self.folder)!r} cannot be written ({exc}): give another folder") from exc
        self._stop = threading.Event()
        self._writer = threading.Thread(target=self._write_until_stopped, name="symphony-trace", daemon=True)
        self._writer.start()

    @property
    def lost_rows(self) -> int:
        """Rows that never reached the disk: failed writes, a full buffer, or recorded after ``close``."""
        return self._failed_rows + self._dropped_rows

    def add_model(self, name: str) -> int:
        """The code that stands for ``name`` in ``model`` columns; the same name has the same code again."""
        if name not in self.models:
            self.models.append(name)
        return self.models.index(name)

    def record_requests(self, columns: Columns) -> None:
        """Record ended requests: every column of the requests table as an integer array, all of one length.

        ``model`` holds codes of ``add_model``, ``outcome`` codes of ``Outcome``; -1 is null in ``outcome``, ``batch``,
        ``gpu`` and every ``*_ns`` but arrival and deadline. The arrays now belong to the recorder: do not write to
        them. Raises ``BadInput`` for missing or unknown columns.
        """
        if columns.keys() != _REQUEST_COLUMNS:
            raise _wrong_columns("requests", columns)
        self._append("requests", len(columns["id"]), columns)

    def record_batches(self, columns: Columns) -> None:
        """Record ended batches: every column of the batches table as an integer array, all of one length.

        ``model`` holds codes of ``add_model``, ``outcome`` codes of ``BatchOutcome``; -1 is null in every ``*_ns``;
        ``rule`` holds numbers of ``START_RULES``, and may be left out.
        The arrays now belong to the recorder. Raises ``BadInput`` for missing or unknown columns.
        """
        if not _BATCH_COLUMNS - set(LATER["batches"]) <= columns.keys() <= _BATCH_COLUMNS:
            raise _wrong_columns("batches", columns)
        self._append("batches", len(columns["batch"]), columns)

    def record_gpu_event(
        self,
        *,
        time_ns: int,
        gpu: int,
        event: str,
        rank: int | None = None,
        gpu_class: str | None = None,
        worker: str | None = None,
        host: str | None = None,
    ) -> None:
        """Record that a GPU joined, became ready, drains or left; raises ``BadInput`` for another ``event``."""
        if event not in GPU_EVENTS:
            raise BadInput(f"GPU event {event!r} is unknown: use one of {', '.join(GPU_EVENTS)}")
        row = {"time_ns": time_ns, "gpu": gpu, "event": event}
        row |= {"rank": rank, "gpu_class": gpu_class, "worker": worker, "host": host}
        self._append("gpus", 1, row)

    def record_events(self, events: Events) -> None:
        """Record what the engine was told; the rows now belong to the recorder."""
        self._append("events", len(events.rows), events)

    def record_scaling(self, *, time_ns: int, inputs: Mapping[str, Any], decision: Mapping[str, Any]) -> None:
        """Record one tick of the scaling policy; both mappings hold what ``json.dumps`` accepts."""
        row = {"time_ns": time_ns, "inputs": json.dumps(inputs), "decision": json.dumps(decision)}
        self._append("scaling", 1, row)

    def update_info(self, **keys: object) -> None:
        """Set top-level keys of run.json, which is rewritten within an interval; raises ``BadInput`` if not plain."""
        self._info = {**self._info, **run_folder.plain(keys)}

    def close(self) -> None:
        """Write what is left and mark run.json closed, with the final counts; waits for the disk, raises nothing."""
        if self._closed:
            return
        self._closed = True
        self._stop.set()
        self._writer.join()
        self._write_pending()
        self._try_write_info(closed=True)

    def __enter__(self) -> Recorder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _append(self, table: str, rows: int, payload: object) -> None:
        if self._closed:
            self._dropped_rows += rows
            return
        self._pending.append((table, rows, payload))
        self._appended_rows += rows
        while self._appended_rows - self._taken_rows - self._dropped_rows > self.max_buffered_rows:
            try:
                self._dropped_rows += self._pending.popleft()[1]
            except IndexError:  # the writer has just taken them
                break

    def _write_until_stopped(self) -> None:
        while not self._stop.wait(self.interval_s):
            self._write_pending()
            if self._written != (self._info, self.lost_rows):
                self._try_write_info(closed=False)

    def _take_pending(self) -> dict[str, tuple[int, list[Any]]]:
        """Rows and payloads by table of what is pending now."""
        taken: dict[str, tuple[int, list[Any]]] = {}
        for _ in range(len(self._pending)):
            try:
                table, rows, payload = self._pending.popleft()
            except IndexError:  # the producer dropped some meanwhile
                break
            self._taken_rows += rows
            total, payloads = taken.get(table, (0, []))
            payloads.append(payload)
            taken[table] = (total + rows, payloads)
        return taken

    def _write_pending(self) -> None:
        for table, (rows, payloads) in self._take_pending().items():
            try:
                if table in ("requests", "batches"):
                    arrow = to_table(table, payloads, list(self.models))
                elif table == "events":
                    arrow = events_table(payloads)
                else:
                    arrow = pa.Table.from_pylist(payloads, schema=SCHEMAS[table])
                run_folder.write_part(self.folder, table, self._parts[table] + 1, arrow)
            except Exception as exc:
                self._keep_error(exc)
                self._failed_rows += rows
            else:
                self._parts[table] += 1
                self._counts[table] += rows

    def _write_info(self, *, closed: bool) -> None:
        info, lost_rows = self._info, self.lost_rows
        run_folder.write_info(
            self.folder, {**info, "closed": closed, "counts": self._counts if closed else None, "lost_rows": lost_rows}
        )
        self._written = (info, lost_rows)

    def _try_write_info(self, *, closed: bool) -> None:
        try:
            self._write_info(closed=closed)
        except Exception as exc:
            self._keep_error(exc)

    def _keep_error(self, error: Exception) -> None:
        if self.error is None:
            logger.error(
                "trace %s: rows could not be written and are lost; serving goes on, later faults are only counted",
                self.folder,
                exc_info=error,
            )
        self.error = error


def _wrong_columns(table: str, columns: Columns) -> BadInput:
    wanted = SCHEMAS[table].names
    missing = [name for name in wanted if name not in columns]
    unknown = [name for name in columns if name not in wanted]
    return BadInput(f"{table} columns: missing {missing}, unknown {unknown}; give exactly {', '.join(wanted)}")
