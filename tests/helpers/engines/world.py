"""Runs an engine against GPUs whose batches take what they take, whatever is declared, and that may stand still."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from symphony_dask.engine.engine import NEVER, Engine
from tests.helpers.engines.engines import make_engine, ns, submit, table


class Stall(NamedTuple):
    """From ``begin`` to ``end``, in ms, GPUs stand still: what they run then ends so much later.

    gpus: which ones, of None all. host: the engine stands still too, and hears at the end of all that was.
    """

    begin: float
    end: float
    gpus: tuple[int, ...] | None = None
    host: bool = False


@dataclass
class Model:
    """A model that is asked again after ``every()`` ms, whose batches of b take l(b) times ``factor(t)``, t in ms."""

    index: int
    slo: float
    every: Callable[[], float]
    factor: Callable[[float], float]
    asked: int = 0
    in_time: int = 0
    #: Arrival of the first request in a row that was not in time though a GPU was idle all the while; -1: none.
    starves_since: float = -1.0
    longest: float = 0.0
    #: Of each request that ended: when it arrived, and whether it was in time.
    ended: list[tuple[float, bool]] = field(default_factory=list)


@dataclass
class World:
    """An engine, and GPUs whose batches take what they take. Times are ms."""

    engine: Engine
    gpus: int
    stalls: list[Stall] = field(default_factory=list)
    now: float = 0.0
    models: dict[int, Model] = field(default_factory=dict)
    _events: list[tuple[float, int, str, tuple[int, ...]]] = field(default_factory=list)
    _n: int = 0
    _arrived: dict[int, tuple[int, float]] = field(default_factory=dict)
    _free_at: dict[int, float] = field(default_factory=dict)
    #: When last no GPU was idle.
    _crowded_at: float = -1.0

    def add(self, model: Model) -> None:
        self.models[model.index] = model
        self._at(self.now, "arrival", model.index)

    def remove(self, index: int) -> None:
        del self.models[index]
        for slot in self.engine.remove_model(ns(self.now), index).tolist():
            del self._arrived[slot]

    def run(self, span: float) -> None:
        end = self.now + span
        while True:
            due = self.engine.next_event()
            wake = max(due / 1e6, self.now) if due != NEVER else end
            at = min(self._events[0][0] if self._events else end, wake, end)
            self.now = max([at, *(stall.end for stall in self.stalls if stall.host and stall.begin <= at < stall.end)])
            if self.now >= end:
                return
            while self._events and self._events[0][0] <= self.now:
                at, _, what, args = heapq.heappop(self._events)
                (self._arrive if what == "arrival" else self._complete)(at, *args)
            self._advance()

    def _at(self, time: float, what: str, *args: int) -> None:
        self._n += 1
        heapq.heappush(self._events, (time, self._n, what, args))

    def _arrive(self, at: float, index: int) -> None:
        model = self.models.get(index)
        if model is None:
            return
        model.asked += 1
        (slot,) = submit(self.engine, self.now, at + model.slo, model=index)
        assert slot >= 0
        self._arrived[slot] = (index, at)
        self._at(at + model.every(), "arrival", index)

    def _advance(self) -> None:
        decisions = self.engine.advance(ns(self.now))
        members = decisions.members.tolist()
        batches = [row.tolist() for row in decisions.batches]
        names = decisions.batches.dtype.names
        for slot in decisions.drops.tolist():
            self._end(slot, in_time=False)
        for values in batches:
            row = dict(zip(names, values, strict=True))
            slots = members[row["offset"] : row["offset"] + row["size"]]
            model = self.models[row["model"]]
            planned_ms = (row["end"] - row["start"]) / 1e6
            given_ms = self.engine.profiles.given[row["model"], 0, row["size"]] / 1e6
            assert planned_ms > 0
            start = max(self.now, self._free_at.get(row["gpu"], 0.0))
            end = self._free_at[row["gpu"]] = self._after(row["gpu"], start, given_ms * model.factor(self.now))
            self._at(end, "end", row["gpu"], row["batch"], ns(start), *slots)
        if all(self.engine.in_flight(g) for g in range(self.gpus)):
            self._crowded_at = self.now

    def _after(self, gpu: int, start: float, took: float) -> float:
        """When work of ``took`` ms that starts at ``start`` has ended."""
        end = start + took
        for stall in sorted(self.stalls):
            if (stall.gpus is None or gpu in stall.gpus) and start < stall.end and stall.begin < end:
                end += stall.end - max(start, stall.begin)
        return end

    def _complete(self, at: float, gpu: int, batch: int, start: int, *slots: int) -> None:
        for slot in slots:
            index, arrived = self._arrived[slot]
            model = self.models.get(index)
            self._end(slot, in_time=model is not None and at <= arrived + model.slo)
        assert self.engine.completed(ns(self.now), gpu, batch, start, ns(at))

    def _end(self, slot: int, in_time: bool) -> None:
        index, arrived = self._arrived.pop(slot)
        model = self.models.get(index)
        if model is None:
            return
        model.in_time += in_time
        model.ended.append((arrived, in_time))
        if in_time or self._crowded_at >= arrived:
            model.starves_since = -1.0
        elif model.starves_since < 0:
            model.starves_since = arrived
        if model.starves_since >= 0:
            model.longest = max(model.longest, self.now - model.starves_since)


def world(
    policy: str = "adaptive", gpus: int = 2, stalls: list[Stall] | None = None, max_requests: int = 1024
) -> World:
    engine = make_engine(policy=policy, exact=False, models=0, gpus=gpus, max_requests=max_requests)
    return World(engine, gpus, stalls or [])


def add(
    w: World,
    l1: float,
    slo: float,
    factor: float | Callable[[float], float] = 1.0,
    every: float | Callable[[], float] = 40.0,
    alpha: float = 0.01,
) -> Model:
    """A model with l(b) = alpha * (b - 1) + l1, declared."""
    index = w.engine.add_model(ns(w.now), slo_ns=ns(slo), latency_ns={0: table(alpha, l1 - alpha)})
    model = Model(
        index,
        slo,
        every if callable(every) else lambda: every,
        factor if callable(factor) else lambda t: factor,
    )
    w.add(model)
    return model
