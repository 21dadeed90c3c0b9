"""Records models, batches, requests and GPUs of one run, on the run's own clock."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from symphony_dask.clock import now_ns
from symphony_dask.dispatcher.request_table import Rows
from symphony_dask.engine.events import EVENT, Journal
from symphony_dask.engine.latency_profile import LatencyProfile
from symphony_dask.engine.request_kernels import ENTRY, LATENCY_BINS
from symphony_dask.engine.start_rules import UNKNOWN
from symphony_dask.trace import SCHEMAS, BatchOutcome, Outcome, Recorder
from symphony_dask.trace.columns import Events
from symphony_dask.wire.records import RESULT_ROW

#: Rows are handed to the recorder after so many batches at the latest: made into columns together, they cost less.
_KEPT = 256

_BATCH_COLUMNS = SCHEMAS["batches"].names

_BATCH = struct.Struct(f"<{len(_BATCH_COLUMNS)}q").pack

#: Size, model, batch, GPU, dispatch, start, end, reply.
_SERVED = struct.Struct("<8q").pack


@dataclass
class ServedModel:
    """A version of a model as the dispatcher knows it: ``model_id`` on the lane, ``index`` in the engine."""

    name: str
    model_id: int
    index: int
    slo_ns: int
    profiles: dict[str, LatencyProfile]
    version: str = "1"
    counts: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(len(Outcome), np.int64))
    #: How long answers took, as ``request_kernels.settle`` counts them.
    latencies: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(LATENCY_BINS + 1, np.int64))
    batches: int = 0
    batched: int = 0
    used_ns: dict[int, int] = field(default_factory=dict)  #: by GPU: when it was last sent a batch

    @property
    def label(self) -> str:
        return label(self.name, self.version)


def label(name: str, version: str) -> str:
    """What records and figures call a version: the first one of a name has no other name than that."""
    return name if version == "1" else f"{name}@{version}"


@dataclass
class Flight:
    """A batch at a worker."""

    batch: int
    model: ServedModel
    gpu: int
    slots: npt.NDArray[np.int32]
    dispatch_ns: int
    window: tuple[int, int]
    planned: tuple[int, int]
    waited: bool  #: whether another batch was at the GPU when this one left
    held: bool  #: whether payloads of it come from clients
    due_back_ns: int  #: when it should be back at the latest: what it may wait for and the run are over
    #: Which of its requests have ended before it came back; None: none has.
    ended: npt.NDArray[np.bool_] | None = None
    rule: int = UNKNOWN  #: which of ``START_RULES`` let it start
    aside: bool = False  #: whether the worker was asked to go on without it


class RunLog:
    """A recording under way. Times given are on ``clock.now_ns``; the run's clock starts at ``start_ns``."""

    def __init__(self, folder: str, info: dict[str, Any], start_ns: int) -> None:
        self.folder = folder
        self._start_ns = start_ns
        self._recorder = Recorder(folder, info)
        self._codes: dict[int, int] = {}
        self._models: list[dict[str, Any]] = []
        #: The engine's, while the recording goes on; ``keep`` empties it.
        self.journal = Journal()
        self._n_events = 0
        # Of each batch that was served, and of each batch: bytes and arrays, which are not the garbage collector's.
        self._entries: list[Any] = []
        self._results: list[Any] = []
        self._served: list[bytes] = []
        self._batches: list[bytes] = []
        self._last_ns = start_ns
        self._recorder.update_info(engine_clock_ns=start_ns)

    def close(self) -> None:
        self.keep()
        self._recorder.close()

    def update_info(self, info: dict[str, Any]) -> None:
        """Set keys of run.json; raises ``BadInput`` for what JSON has no form for."""
        self._recorder.update_info(**info)

    def keep(self) -> None:
        """Hand what has gathered on to the recorder; to be called every now and then."""
        self._keep_served()
        packed, data = self.journal.take()
        if packed:
            rows = np.frombuffer(packed, EVENT)
            self._recorder.record_events(Events(self._n_events, self._start_ns, self._last_ns, rows, data))
            self._n_events += len(rows)
            self._last_ns = max(self._last_ns, int(rows["time"].max()))

    def model(self, model: ServedModel) -> None:
        profiles = {c: p.to_dict() for c, p in model.profiles.items()}
        self._codes[model.model_id] = self._recorder.add_model(model.label)
        self._models.append({"name": model.label, "slo_ns": model.slo_ns, "profiles": profiles})
        self._recorder.update_info(models=self._models)

    def gpu(self, event: str, gpu: int, rank: int, gpu_class: str, worker: str, host: str) -> None:
        self._recorder.record_gpu_event(
            time_ns=now_ns() - self._start_ns,
            gpu=gpu,
            event=event,
            rank=rank,
            gpu_class=gpu_class,
            worker=worker,
            host=host,
        )

    def scaling(self, inputs: dict[str, Any], decision: dict[str, Any]) -> None:
        """A tick of the scaling policy."""
        self._recorder.record_scaling(time_ns=now_ns() - self._start_ns, inputs=inputs, decision=decision)

    def served(
        self,
        flight: Flight,
        entries: npt.NDArray[Any],
        results: npt.NDArray[Any],
        outcome: BatchOutcome,
        start: int,
        end: int,
        reply: int,
    ) -> None:
        """A batch that came back: its requests' entries, and how each ended (with ``outcome``)."""
        self.batch(flight, outcome, start, end)
        self._entries.append(entries)
        self._results.append(results)
        self._served.append(
            _SERVED(
                len(results), self._codes[flight.model.model_id], flight.batch, flight.gpu, flight.dispatch_ns, start,
                end, reply,
            )
        )  # fmt: skip
        if len(self._served) >= _KEPT:
            self._keep_served()

    def _keep_served(self) -> None:
        """Hand on what was served as columns, made for many batches at once."""
        if self._served:
            # As bytes: numpy joins records field by field.
            of = np.frombuffer(b"".join(self._entries), ENTRY)
            ended = np.frombuffer(b"".join(self._results), RESULT_ROW)
            sizes, *common = np.frombuffer(b"".join(self._served), np.int64).reshape(-1, 8).T
            for kept in (self._entries, self._results, self._served):
                kept.clear()
            zero = self._start_ns
            model, batch, gpu, dispatch, start, end, reply = (np.repeat(column, sizes) for column in common)
            self._recorder.record_requests(
                {
                    "id": of["id"],
                    "client": of["client"],
                    "model": model,
                    "arrival_ns": of["arrival"] - zero,
                    "deadline_ns": of["deadline"] - zero,
                    "dispatch_ns": dispatch - zero,
                    "start_ns": start - zero,
                    "end_ns": end - zero,
                    "reply_ns": reply - zero,
                    "outcome": ended["outcome"],
                    "batch": batch,
                    "gpu": gpu,
                    "bytes": of["bytes"],
                }
            )
        if self._batches:
            columns = np.frombuffer(b"".join(self._batches), np.int64).reshape(-1, len(_BATCH_COLUMNS)).T
            self._batches.clear()
            self._recorder.record_batches(dict(zip(_BATCH_COLUMNS, columns, strict=True)))

    def batch(self, flight: Flight, outcome: BatchOutcome, start: int = -1, end: int = -1) -> None:
        """A batch that ended; ``start`` and ``end`` where they are known."""
        zero = self._start_ns
        (window_open, window_close), (planned_start, planned_end) = flight.window, flight.planned
        self._batches.append(
            _BATCH(
                flight.batch, self._codes[flight.model.model_id], flight.gpu, len(flight.slots),
                flight.dispatch_ns - zero, window_open - zero, window_close - zero, planned_start - zero,
                planned_end - zero, start if start < 0 else start - zero, end if end < 0 else end - zero, int(outcome),
                flight.rule,
            )
        )  # fmt: skip

    def requests(
        self,
        model: ServedModel,
        rows: Rows,
        outcome: Outcome,
        *,
        reply: int,
        flight: Flight | None = None,
    ) -> None:
        """Requests of one model that ended together without an answer; flight: the batch that did not come back."""
        n, zero = len(rows.ids), self._start_ns
        dispatch = flight.dispatch_ns - zero if flight is not None else -1
        columns: dict[str, Any] = {
            "id": rows.ids,
            "client": rows.clients,
            "model": np.full(n, self._codes[model.model_id]),
            "arrival_ns": rows.arrivals - zero,
            "deadline_ns": rows.deadlines - zero,
            "dispatch_ns": np.full(n, dispatch),
            **dict.fromkeys(("start_ns", "end_ns"), np.full(n, -1)),
            "reply_ns": np.full(n, reply - zero),
            "outcome": np.full(n, outcome, np.int8),
            "batch": np.full(n, flight.batch if flight is not None else -1),
            "gpu": np.full(n, flight.gpu if flight is not None else -1),
            "bytes": rows.bytes,
        }
        self._recorder.record_requests(columns)
