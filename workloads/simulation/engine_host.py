"""Tells the engine when GPUs and models come and go, in a simulation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from symphony_dask.engine.engine import Engine
from symphony_dask.engine.native.arrays import Int32s, Int64s
from symphony_dask.errors import BadInput
from symphony_dask.trace import Outcome
from workloads.simulation.fleet import AddGpu, AddModel, Change, DrainGpu, Event, Fleet, RemoveGpu, RemoveModel
from workloads.simulation.result import SimModel


def latency_tables(model: SimModel, classes: Sequence[str]) -> dict[int, Any]:
    """l(b) in ns by index of the GPU class; raises ``BadInput`` unless all are of one largest batch."""
    profiles = [model.profile_on(name) for name in classes]
    largest = {profile.max_batch for profile in profiles}
    if len(largest) > 1:
        raise BadInput(f"profiles of {model.name} have max_batch {sorted(largest)}: give it one on all GPU classes")
    return {c: profile.latency_ns() for c, profile in enumerate(profiles)}


class Ids(NamedTuple):
    """The caller's models and GPUs in the engine, which uses an index again once it is free."""

    slot: Int32s  # (models,) int32: where the engine has a model, -1 while it is not served
    model: Int32s  # int32: the model at each of the engine's indices
    gpu: Int32s  # int32: the number of the GPU at each of the engine's indices


class Host:
    """The engine with its fleet and models as they stand.

    tables: of each model, l(b) in ns by index of the GPU class. log: where the simulation writes what became of
    requests and batches. changes: what happened to GPUs until now.
    """

    def __init__(
        self,
        engine: Engine,
        fleet: Fleet,
        models: Sequence[SimModel],
        tables: Sequence[Mapping[int, Any]],
        log: Any,
        *,
        control_ns: int,
        queue_limit: int,
    ) -> None:
        self.engine, self.fleet, self.models, self.tables, self.log = engine, fleet, models, tables, log
        self.control_ns, self.queue_limit = control_ns, queue_limit
        self.changes: list[Change] = []
        numbers = len(fleet.rank)
        self.ids = Ids(
            np.full(len(models), -1, np.int32),
            np.empty(len(models) + len(fleet.events), np.int32),
            np.empty(numbers, np.int32),
        )
        #: Where the engine has each GPU that has come.
        self.gpu_slots: list[int] = []

    def start(self, now: int) -> None:
        for _ in range(self.fleet.initial):  # before the models, each of which would be looked at for each GPU
            self._add_gpu(now)
        for m in sorted(self.fleet.served):
            self._add_model(now, m)

    def apply(self, event: Event, now: int) -> None:
        if isinstance(event, AddGpu):
            self._add_gpu(now)
        elif isinstance(event, DrainGpu):
            self.engine.drain_gpu(now, self.gpu_slots[event.gpu])
            self.changes.append(Change(now, event.gpu, "drain"))
        elif isinstance(event, RemoveGpu):
            self._remove_gpu(now, event.gpu)
        elif isinstance(event, AddModel):
            self._add_model(now, event.model)
        elif isinstance(event, RemoveModel):
            queued = self.engine.remove_model(now, int(self.ids.slot[event.model]))
            self._cancel(now, self._requests(queued))
            self.ids.slot[event.model] = -1

    def finish(self, batch_gpu: Int32s, batch_end_ns: Int64s) -> list[Change]:
        """All changes by time, with the leaving of drained GPUs: when the last batch of each had ended."""
        left = {change.gpu: change for change in self.changes if change.event == "leave"}
        for drained in [change for change in self.changes if change.event == "drain"]:
            end = int(batch_end_ns[batch_gpu == drained.gpu].max(initial=drained.time_ns))
            end = max(end, drained.time_ns)
            removed = left.get(drained.gpu)
            if removed is None or end < removed.time_ns:
                left[drained.gpu] = Change(end, drained.gpu, "leave")
        others = [change for change in self.changes if change.event != "leave"]
        return sorted([*others, *left.values()], key=lambda change: change.time_ns)

    def _add_gpu(self, now: int) -> None:
        number = len(self.gpu_slots)
        gpu_class, rank = self.fleet.gpu_class[number], self.fleet.rank[number]
        g = self.engine.add_gpu(now, gpu_class=gpu_class, rank=rank, control_ns=self.control_ns)
        self.gpu_slots.append(g)
        self.ids.gpu[g] = number
        self.changes.append(Change(now, number, "ready"))

    def _add_model(self, now: int, m: int) -> None:
        slo_ns, limit = self.models[m].slo_ns, self.queue_limit
        slot = self.engine.add_model(
            now, slo_ns=slo_ns, latency_ns=self.tables[m], queue_limit=limit, batching=self.models[m].batching
        )
        self.ids.slot[m] = slot
        self.ids.model[slot] = m

    def _remove_gpu(self, now: int, number: int) -> None:
        log = self.log
        removal = self.engine.remove_gpu(now, self.gpu_slots[number])
        requeued, ended = self._requests(removal.requeued), self._requests(removal.ended)
        lost = np.unique(log.batch[np.concatenate((requeued, ended))])
        log.lost[lost] = True
        log.start[lost] = np.minimum(log.start[lost], now)  # one that waited there never started
        log.end[lost] = now
        log.batch[requeued] = -1
        self._cancel(now, ended)
        self.changes.append(Change(now, number, "leave"))

    def _requests(self, slots: Int32s) -> Int64s:
        return self.engine.state.req["request"][slots]

    def _cancel(self, now: int, requests: Int64s) -> None:
        log = self.log
        log.outcome[requests] = Outcome.CANCELLED
        log.finish[requests] = -1
        log.decided[requests] = now
        log.batch[requests] = -1
