"""Accounting of an engine that is as plain as can be, and a check of each of its decisions.

Every request ends exactly once: completed, dropped, cancelled, rejected, or removed with its model. ``Books`` passes
each event on to the engine, follows it in dicts and lists, and checks what comes back against the rules of
``engine/policy/window.py`` and ``engine/kernels.py``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from symphony_dask.engine.batching import AS_ALL, Batching
from symphony_dask.engine.engine import NEVER, QUEUE_FULL, Engine, Ints
from symphony_dask.engine.policy import speed_tracking
from symphony_dask.engine.state import DEPTH, READY


def scaled(table: Ints, factor: float) -> Ints:
    return np.floor(table * factor + 0.5).astype(np.int64)


@dataclass
class Model:
    index: int
    tables: dict[int, Ints]
    max_batch: int
    limit: int
    batching: Batching = AS_ALL


@dataclass
class Request:
    name: int
    model: int
    deadline: int
    order: int
    priority: int = 0
    cancelled: bool = False


@dataclass
class Flight:
    batch: int
    start: int
    end: int
    slots: list[int]


@dataclass
class Gpu:
    gpu_class: int
    rank: int
    control: int
    free_at: int
    draining: bool = False
    flights: list[Flight] = field(default_factory=list)

    def is_open(self, now: int) -> bool:
        return not self.draining and len(self.flights) < DEPTH and self.free_at - self.control <= now

    def complete(self, i: int, end: int) -> Flight:
        """Take out flight ``i``; those behind it start no earlier than it ended."""
        done = self.flights.pop(i)
        self.free_at = end
        for j, flight in enumerate(self.flights):
            took = flight.end - flight.start
            flight.start = max(flight.start, self.free_at) if j >= i else flight.start
            flight.end = self.free_at = flight.start + took
        return done


class Books:
    def __init__(self, policy: str, *, exact: bool, max_requests: int) -> None:
        self.exact, self.max_requests, self.policy = exact, max_requests, policy
        self.engine = Engine(policy, exact=exact, max_requests=max_requests)
        self.now = self.names = self.control = self.slack = 0
        self.stale = False  #: windows are as drawn before the last change of control latency or slack
        self.models: dict[int, Model] = {}
        self.gpus: dict[int, Gpu] = {}
        self.unable: set[tuple[int, int]] = set()  #: models and GPUs that cannot run them
        self.queued: dict[int, Request] = {}
        self.flying: dict[int, Request] = {}
        self.outcomes: dict[int, str] = {}
        self.starving: set[int] = set()  #: models none of whose requests was in time of late (``trials``)

    def wait(self, span: int) -> None:
        self.now += span
        if self.exact:
            for gpu in self.gpus.values():
                while gpu.flights and gpu.flights[0].end <= self.now:
                    self._land(gpu.flights.pop(0))

    def _land(self, flight: Flight) -> None:
        for slot in flight.slots:
            self._end(self.flying.pop(slot), "completed")

    def _end(self, request: Request, outcome: str) -> None:
        assert request.name not in self.outcomes, "a request ended twice"
        self.outcomes[request.name] = outcome

    def queue(self, model: int) -> list[int]:
        """The model's queue: request slots by deadline, first come first."""
        mine = [slot for slot, request in self.queued.items() if request.model == model]
        return sorted(mine, key=self._place)

    def _place(self, slot: int) -> tuple[int, int]:
        return self.queued[slot].deadline, self.queued[slot].order

    def _fastest(self, model: Model) -> Ints:
        able = [gpu for g, gpu in self.gpus.items() if (model.index, g) not in self.unable]
        present = {gpu.gpu_class for gpu in able if not gpu.draining} & set(model.tables)
        tables = {c: self._drifted(model, c) for c in present or model.tables}
        return tables[min(tables, key=lambda c: (tables[c][1], c))]

    def _drifted(self, model: Model, gpu_class: int) -> Ints:
        """l(b) on a class, as observed times changed it."""
        return scaled(model.tables[gpu_class], self.engine.profiles.acting[model.index, gpu_class])

    def _on(self, model: Model, g: int) -> Ints:
        """l(b) on one GPU."""
        factor = speed_tracking.of(self.engine.state, model.index, g, self.now)
        return scaled(self._drifted(model, self.gpus[g].gpu_class), factor)

    def _leaves_to_faster_ones(self, model: Model, g: int) -> bool:
        return bool(self._on(model, g)[1] > self._fastest(model)[1])

    def _policy(self, model: Model) -> str:
        return model.batching.policy or self.policy

    def _rank(self, g: int) -> tuple[bool, int, int]:
        return self.engine.is_slow(g), self.gpus[g].rank, g

    def advance(self) -> None:
        due = self.engine.next_event()
        self.starving = {m for m in self.models if self.engine.state.mod["try_at"][m] <= self.now}
        decisions = self.engine.advance(self.now)
        batches = decisions.batches.copy()
        members = decisions.members.tolist()
        drops = decisions.drops.tolist()
        ticked = self.engine.state.g["ticked_at"][0] == self.now  # who goes first was looked at again
        assert self.now >= due or ticked or not (len(batches) or drops), "decisions before next_event()"
        assert self.engine.next_event() > self.now, "next_event() asks again for what was just done"

        before = {m: self.queue(m) for m in self.models}
        raised = {request.model for request in self.queued.values() if request.priority > 0}
        for row in batches:
            self._check_batch(row, members[row["offset"] : row["offset"] + row["size"]], set(drops))
        for slot in drops:
            self._check_drop(slot, batches)
        for m, queue in before.items():
            rest = self.queue(m)
            alike = not any(self.queued[slot].priority or slot in drops for slot in queue if slot in self.queued)
            apart = any(self._leaves_to_faster_ones(self.models[m], row["gpu"]) for row in batches if row["model"] == m)
            if alike and m not in raised and not apart:
                assert queue[len(queue) - len(rest) :] == rest, "a request left the queue before an earlier one"
            self._check_window(m, rest)

    def _check_batch(self, row: Any, slots: list[int], drops: set[int]) -> None:
        m, g, start, end = int(row["model"]), int(row["gpu"]), int(row["start"]), int(row["end"])
        model, gpu = self.models[m], self.gpus[g]
        queue = self.queue(m)
        latency = self._on(model, g)
        last = max(self.queued[slot].deadline for slot in queue)

        kept = [slot for slot in queue if slot not in drops]
        flights = self.engine.state.flight[g * DEPTH : g * DEPTH + self.engine.in_flight(g)]
        tried = not self.exact and flights["tried"][flights["batch"] == row["batch"]][0] == 1
        if tried:
            self._check_trial(model, g, kept, slots)
        elif any(self.queued[slot].priority for slot in queue):
            self._check_choice(kept, slots, end)
        else:
            at = kept.index(slots[0]) if self._leaves_to_faster_ones(model, g) else 0
            assert slots == kept[at : at + len(slots)], "a batch is not the queue's head"
        assert 1 <= len(slots) <= model.max_batch
        assert tried or all(end <= self.queued[slot].deadline for slot in slots), "a batch ends after a deadline"
        assert end == start + latency[len(slots)]
        assert start == self.now + gpu.control, "a batch waits at its GPU"
        assert start >= gpu.free_at, "two batches overlap"
        assert gpu.is_open(self.now)
        assert (m, g) not in self.unable, "a GPU was given a model that it cannot run"
        # What windows' estimates would have dropped goes to an idle GPU, which may be of a higher rank.
        refused = self.now + self.control + self._fastest(model)[1] > self.queued[queue[0]].deadline
        starving = not self.exact and m in self.starving and len(flights) == 1
        probe = tried or refused or starving or self.engine.is_slow(g)
        for o, other in self.gpus.items():
            able = (m, o) not in self.unable
            if able and other.is_open(self.now) and self._rank(o) < self._rank(g) and not probe:
                alone = self.now + other.control + self._on(model, o)[1]
                assert alone > last, "an open GPU of lower rank was passed over"
        if self._policy(model) == "deferred" and not probe:
            assert row["window_open"] <= self.now or len(queue) >= model.max_batch, "dispatched before its window"

        for slot in slots:
            self.flying[slot] = self.queued.pop(slot)
        gpu.flights.append(Flight(int(row["batch"]), start, end, slots))
        gpu.free_at = end

    def _check_trial(self, model: Model, g: int, queue: list[int], slots: list[int]) -> None:
        """The first request alone, on an idle GPU that could answer it in time by the profile as it was declared."""
        assert slots == queue[:1], "a trial is not of the first request"
        assert not self.gpus[g].flights, "a trial is on a GPU that has a batch"
        declared = model.tables[self.gpus[g].gpu_class][1]
        assert self.now + declared <= self.queued[slots[0]].deadline + 1, "a trial that was hopeless as declared"

    def _check_choice(self, queue: list[int], slots: list[int], end: int) -> None:
        """Of all that could be in the batch it holds those of the highest priorities, of equals the earliest."""
        assert slots == sorted(slots, key=self._place), "a batch is out of order"
        could = [slot for slot in queue if self.queued[slot].deadline >= end]
        best = sorted(could, key=lambda slot: (-self.queued[slot].priority, self._place(slot)))
        assert set(slots) == set(best[: len(slots)]), "a request of lower priority was preferred"

    def _check_drop(self, slot: int, batches: Any) -> None:
        request = self.queued.pop(slot)
        alone = self.now + self.control + self._fastest(self.models[request.model])[1]
        beyond = [row for row in batches if row["model"] == request.model and row["end"] > request.deadline]
        assert alone > request.deadline or beyond, "a request was dropped that could have been served"
        self._end(request, "dropped")

    def _check_window(self, m: int, queue: list[int]) -> None:
        """What is left waits for its window or for a GPU, and can still be served."""
        if not queue:
            return
        model, mod = self.models[m], self.engine.state.mod[m]
        latency = self._fastest(model)
        ready = bool(mod["state"] == READY)
        last = max(self.queued[slot].deadline for slot in queue)
        for g, gpu in self.gpus.items():
            if ready and gpu.is_open(self.now) and (m, g) not in self.unable:
                alone = self.now + gpu.control + self._on(model, g)[1]
                assert alone > last, "an open GPU was left idle beside a ready model"
        if self.stale or (mod["urgent"] and mod["raised"]):
            return
        soonest = self.now + self.control
        assert soonest + latency[1] <= self.queued[queue[0]].deadline, "a hopeless request is still queued"

        rest = queue[int(mod["skipped"]) :]
        first = self.queued[rest[0]].deadline
        b = min(len(rest), model.max_batch)
        assert soonest + latency[min(self.engine.target(m), len(rest))] <= first, "the candidate cannot be served whole"
        target = self.engine.target(m)
        closes = first - latency[min(target, len(rest))] - self.control
        lead = int(mod["under"]) * int(self.engine.state.g["lead"][0])
        opens = first - latency[b + 1] - self.control - self.slack - lead
        policy, delay, slo = self._policy(model), model.batching.max_delay_ns, int(mod["slo"])
        if policy == "latest":
            opens = closes
        elif policy == "timeout":
            opens = min(closes, first - slo + int(0.5 * slo))
        if delay is not None:
            opens = min(opens, first - slo + delay)
        at_once = policy == "eager" or (policy == "target" and len(rest) >= target)
        assert mod["open"] == opens
        assert mod["close"] == closes
        assert ready == (at_once or b == model.max_batch or self.now >= opens)

    def check(self) -> None:
        """The engine's own invariants, and that no request is lost."""
        self.engine.validate()
        for m in self.models:
            assert self.engine.queued(m) == len(self.queue(m))
        assert len(self.outcomes) + len(self.queued) + len(self.flying) == self.names, "a request is lost"

    def submit(self, m: int, deadlines: list[int], priorities: list[int] | None = None) -> None:
        n = len(deadlines)
        names = np.arange(self.names, self.names + n)
        given = None if priorities is None else np.array(priorities, np.int32)
        slots = self.engine.submit(self.now, np.full(n, m, np.int32), np.array(deadlines, np.int64), names, given)
        evicted = [(slot, self.queued[slot].name) for slot in self.engine.evicted["slot"].tolist()]
        assert [name for _, name in evicted] == self.engine.evicted["request"].tolist()
        mine: dict[int, Request] = {}  # by a stand-in for the slot, which may be an evicted request's
        for i, deadline in enumerate(deadlines):
            request = Request(self.names, m, deadline, self.names, 0 if priorities is None else priorities[i])
            self.names += 1
            full = len(self.queue(m)) >= self.models[m].limit
            if full or len(self.queued) + len(self.flying) == self.max_requests:
                victim = self._victim(request, m if full else self._most_ordinary(m))
                if victim is None:
                    self._end(request, "rejected")
                    continue
                assert victim in mine or victim in dict(evicted), "another request was evicted"
                mine.pop(victim, None)
                evicted = [(slot, name) for slot, name in evicted if slot != victim]
                self._end(self.queued.pop(victim), "evicted")
            self.queued[-1 - request.name] = mine[-1 - request.name] = request
        assert evicted == [], "a request was evicted without need"
        for slot, name in zip(slots.tolist(), names.tolist(), strict=True):
            if -1 - name not in mine:
                assert slot == QUEUE_FULL
                continue
            assert slot >= 0, "a request was rejected though there was room"
            assert slot not in self.queued
            assert slot not in self.flying
            assert self.engine.state.req["request"][slot] == name
            self.queued[slot] = self.queued.pop(-1 - name)

    def _most_ordinary(self, m: int) -> int:
        """The model with most queued requests of priority 0; ``m`` if there are none."""
        ordinary = [request.model for request in self.queued.values() if request.priority == 0]
        return max(sorted(set(ordinary)), key=ordinary.count) if ordinary else m

    def _victim(self, request: Request, m: int) -> int | None:
        """The latest request of the lowest priority of a model, if that is below the request's."""
        queue = self.queue(m)
        lowest = min((self.queued[slot].priority for slot in queue), default=request.priority)
        if lowest >= request.priority:
            return None
        return [slot for slot in queue if self.queued[slot].priority == lowest][-1]

    def cancel(self, slot: int) -> None:
        assert self.engine.cancel(self.now, slot) == (slot in self.queued)
        if slot in self.queued:
            self._end(self.queued.pop(slot), "cancelled")
            assert not self.engine.cancel(self.now, slot)
        else:
            self.flying[slot].cancelled = True

    def complete(self, g: int, i: int, end: int) -> None:
        """Report that flight ``i`` of GPU ``g`` ended."""
        gpu = self.gpus[g]
        assert self.engine.completed(self.now, g, gpu.flights[i].batch, gpu.flights[i].start, end)
        done = gpu.complete(i, end)
        assert not self.engine.completed(self.now, g, done.batch, done.start, end)
        self._land(done)
        assert self.engine.in_flight(g) == len(gpu.flights)

    def add_gpu(self, gpu_class: int, rank: int | None, control: int) -> None:
        g = self.engine.add_gpu(self.now, gpu_class=gpu_class, rank=rank, control_ns=control)
        assert g not in self.gpus
        self.gpus[g] = Gpu(gpu_class, g if rank is None else rank, control, self.now)

    def drain_gpu(self, g: int) -> None:
        gpu = self.gpus[g]
        self.engine.drain_gpu(self.now, g)
        # A GPU that drains already is looked at by the next ``advance``.
        assert gpu.draining or self.engine.in_flight(g) == len(gpu.flights)
        gpu.draining = True

    def set_eligible(self, m: int, g: int, can_run: bool) -> None:
        self.engine.set_eligible(self.now, m, g, can_run)
        assert self.engine.can_run(m, g) == can_run
        if can_run:
            self.unable.discard((m, g))
        else:
            self.unable.add((m, g))

    def remove_gpu(self, g: int) -> None:
        self.unable = {(m, other) for m, other in self.unable if other != g}
        removal = self.engine.remove_gpu(self.now, g)
        requeued, ended = [], []
        for slot in [slot for flight in self.gpus.pop(g).flights for slot in flight.slots]:
            request = self.flying.pop(slot)
            if request.cancelled:
                self._end(request, "cancelled")
            elif request.model in self.models:
                self.queued[slot] = request
                requeued.append(slot)
            else:
                self._end(request, "removed")
                ended.append(slot)
        assert removal.requeued.tolist() == requeued
        assert removal.ended.tolist() == ended

    def add_model(self, slo: int, tables: dict[int, Ints], limit: int) -> int:
        m = self.engine.add_model(self.now, slo_ns=slo, latency_ns=tables, queue_limit=limit)
        assert m not in self.models
        assert all(request.model != m for request in self.flying.values()), "an index is used again too early"
        self.models[m] = Model(m, dict(tables), len(tables[min(tables)]) - 2, limit)
        return m

    def remove_model(self, m: int) -> None:
        self.unable = {(other, g) for other, g in self.unable if other != m}
        queue = self.queue(m)
        assert self.engine.remove_model(self.now, m).tolist() == queue
        for slot in queue:
            self._end(self.queued.pop(slot), "removed")
        del self.models[m]

    def update_profile(self, m: int, gpu_class: int, latency: Ints) -> None:
        self.engine.update_profile(self.now, m, gpu_class, latency)
        self.models[m].tables[gpu_class] = latency

    def set_control(self, control: int, slack: int) -> None:
        self.engine.set_control(self.now, control)
        self.engine.set_slack(slack)
        self.control, self.slack, self.stale = control, slack, True

    def set_control_of(self, g: int, control: int) -> None:
        self.engine.set_control(self.now, control, g)
        self.gpus[g].control = control

    def set_batching(self, m: int, batching: Batching) -> None:
        self.engine.set_batching(self.now, m, batching)
        self.models[m].batching = batching

    def set_policy(self, policy: str) -> None:
        """Also has every window drawn again."""
        self.engine.policy = self.policy = policy
        self.stale = False

    def finish(self) -> None:
        """Left alone, the engine ends every request."""
        for _ in range(1000):
            at = self.engine.next_event()
            if at == NEVER:
                break
            self.wait(max(0, at - self.now))
            self.advance()
            self._complete_what_is_due()
        else:
            raise AssertionError("next_event() never comes to NEVER")
        self.wait(10**9)
        self._complete_what_is_due()
        assert not self.queued
        assert not self.flying
        assert len(self.outcomes) == self.names
        for g, gpu in self.gpus.items():
            assert not gpu.draining or self.engine.in_flight(g) == 0, "a drained GPU never ends its batches"
        self.check()

    def _complete_what_is_due(self) -> None:
        for g, gpu in self.gpus.items():
            while not self.exact and gpu.flights and gpu.flights[0].end <= self.now:
                self.complete(g, 0, gpu.flights[0].end)
