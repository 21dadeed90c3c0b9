"""What the dispatcher writes down: models, batches, requests and GPUs of one run, on the run's own clock."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from symphony_dask.lane import now_ns
from symphony_dask.requests import Rows
from symphony_dask.scheduling.profile import LatencyProfile
from symphony_dask.trace import BatchOutcome, Outcome, Recorder
from symphony_dask.trace.columns import EventRow

#: Events are handed to the recorder so many at a time, or after so long, ns.
_EVENTS, _EVENTS_NS = 256, 500_000_000


@dataclass
class ServedModel:
    """A model as the dispatcher knows it: ``model_id`` on the lane, ``index`` in the engine."""

    name: str
    model_id: int
    index: int
    slo_ns: int
    profiles: dict[str, LatencyProfile]
    counts: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(len(Outcome), np.int64))
    batches: int = 0
    batched: int = 0


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


class RunLog:
    """A recording under way. Times given are on ``lane.now_ns``; the run's clock starts at ``start_ns``."""

    def __init__(self, folder: str, info: dict[str, Any], start_ns: int) -> None:
        self.folder = folder
        self._start_ns = start_ns
        self._recorder = Recorder(folder, info)
        self._codes: dict[int, int] = {}
        self._models: list[dict[str, Any]] = []
        self._events: list[EventRow] = []
        self._n_events = 0
        self._last_ns = self._kept_ns = start_ns
        self._recorder.update_info(engine_clock_ns=start_ns)

    def close(self) -> None:
        self._keep_events()
        self._recorder.close()

    def event(self, op: str, now: int, a: int, b: int, c: int, d: int, data: bytes) -> None:
        """The engine's ``journal``. An op that has no time (0) gets that of the one before."""
        self._last_ns = max(self._last_ns, now)
        self._events.append((self._n_events, self._last_ns - self._start_ns, op, a, b, c, d, data))
        self._n_events += 1
        if len(self._events) >= _EVENTS or self._last_ns - self._kept_ns > _EVENTS_NS:
            self._keep_events()

    def _keep_events(self) -> None:
        if self._events:
            self._recorder.record_events(self._events)
            self._events = []
        self._kept_ns = self._last_ns

    def model(self, model: ServedModel) -> None:
        profiles = {c: p.to_dict() for c, p in model.profiles.items()}
        self._codes[model.model_id] = self._recorder.add_model(model.name)
        self._models.append({"name": model.name, "slo_ns": model.slo_ns, "profiles": profiles})
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

    def batch(self, flight: Flight, outcome: BatchOutcome, start: int = -1, end: int = -1) -> None:
        zero = self._start_ns
        (window_open, window_close), (planned_start, planned_end) = flight.window, flight.planned
        self._recorder.record_batches(
            {
                "batch": np.array([flight.batch]),
                "model": np.array([self._codes[flight.model.model_id]]),
                "gpu": np.array([flight.gpu]),
                "size": np.array([len(flight.slots)]),
                "dispatch_ns": np.array([flight.dispatch_ns - zero]),
                "window_open_ns": np.array([window_open - zero]),
                "window_close_ns": np.array([window_close - zero]),
                "planned_start_ns": np.array([planned_start - zero]),
                "planned_end_ns": np.array([planned_end - zero]),
                "start_ns": np.array([start if start < 0 else start - zero]),
                "end_ns": np.array([end if end < 0 else end - zero]),
                "outcome": np.array([outcome]),
            }
        )

    def requests(
        self,
        model: ServedModel,
        rows: Rows,
        outcome: Outcome | npt.NDArray[np.int8],
        *,
        dispatch: int = -1,
        start: int = -1,
        end: int = -1,
        reply: int = -1,
        batch: int = -1,
        gpu: int = -1,
    ) -> None:
        """Requests of one model that ended together, and what they have in common."""
        n, zero = len(rows.ids), self._start_ns
        times = {"dispatch_ns": dispatch, "start_ns": start, "end_ns": end, "reply_ns": reply}
        columns: dict[str, Any] = {
            "id": rows.ids,
            "client": rows.clients,
            "model": np.full(n, self._codes[model.model_id]),
            "arrival_ns": rows.arrivals - zero,
            "deadline_ns": rows.deadlines - zero,
            **{name: np.full(n, t if t < 0 else t - zero) for name, t in times.items()},
            "outcome": outcome if isinstance(outcome, np.ndarray) else np.full(n, outcome, np.int8),
            "batch": np.full(n, batch),
            "gpu": np.full(n, gpu),
            "bytes": rows.bytes,
        }
        self._recorder.record_requests(columns)
