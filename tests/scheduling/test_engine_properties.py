"""The engine under random events, held against accounting that is as plain as can be.

Every request ends exactly once: completed, dropped, cancelled, rejected, or ended with its model. After every event the
engine's own invariants hold, and every decision is checked against the rules of ``scheduling/window.py``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from symphony_dask.scheduling.engine import NEVER, NO_MODEL, POLICIES, QUEUE_FULL, Engine, Ints
from symphony_dask.scheduling.state import DEPTH, READY
from tests.scheduling.helpers import ns, table

#: Times are drawn as quarters of a ms, so that they often coincide; 1 ns more or less takes them apart again.
quarters = st.integers(0, 60)
waits = st.builds(lambda q, extra: max(0, ns(q / 4) + extra), st.sampled_from([0, 0, 0, 1, 4, 20]), st.integers(-1, 1))
spans = st.builds(lambda q, extra: max(0, ns(q / 4) + extra), st.integers(0, 120), st.integers(-1, 1))
controls = st.sampled_from([0, 0, ns(0.5), ns(3)])
tables = st.builds(
    table, st.sampled_from([0.25, 1, 3]), st.sampled_from([0, 2, 5]), st.shared(st.just(6), key="max_batch")
)
picks = st.integers(0, 1000)


@dataclass
class Model:
    tables: dict[int, Ints]
    max_batch: int
    limit: int


@dataclass
class Request:
    name: int
    model: int
    deadline: int
    order: int
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


class EngineMachine(RuleBasedStateMachine):
    @initialize(
        policy=st.sampled_from(sorted(POLICIES)),
        exact=st.booleans(),
        max_requests=st.sampled_from([2, 5, 40]),
        control=controls,
        gpus=st.lists(st.tuples(st.integers(0, 2), controls), min_size=0, max_size=3),
        profiles=st.lists(st.tuples(tables, tables, tables), min_size=1, max_size=3),
        slo=st.integers(5, 30),
    )
    def start(
        self,
        policy: str,
        exact: bool,
        max_requests: int,
        control: int,
        gpus: list[tuple[int, int]],
        profiles: list[tuple[Ints, Ints, Ints]],
        slo: int,
    ) -> None:
        self.exact, self.max_requests, self.control, self.policy = exact, max_requests, control, policy
        self.engine = Engine(policy, exact=exact, max_requests=max_requests)
        self.now = 0
        self.names = 0
        self.models: dict[int, Model] = {}
        self.gpus: dict[int, Gpu] = {}
        self.queued: dict[int, Request] = {}
        self.flying: dict[int, Request] = {}
        self.outcomes: dict[int, str] = {}
        self.engine.set_control(0, control)
        for profile in profiles:
            self._add_model(slo, dict(enumerate(profile)), limit=50)
        for gpu_class, gpu_control in gpus:
            self._add_gpu(gpu_class, None, gpu_control)

    # Accounting

    def _pass(self, wait: int) -> None:
        self.now += wait
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

    def _queue(self, model: int) -> list[int]:
        """The model's queue: request slots by deadline, first come first."""
        mine = [slot for slot, request in self.queued.items() if request.model == model]
        return sorted(mine, key=self._place)

    def _place(self, slot: int) -> tuple[int, int]:
        return self.queued[slot].deadline, self.queued[slot].order

    def _fastest(self, model: Model) -> Ints:
        present = {gpu.gpu_class for gpu in self.gpus.values() if not gpu.draining} & set(model.tables)
        return model.tables[min(present or model.tables, key=lambda c: (model.tables[c][1], c))]

    def _pick(self, choices: Any, pick: int) -> Any:
        ordered = sorted(choices)
        return ordered[pick % len(ordered)]

    # Decisions

    def _advance(self) -> None:
        due = self.engine.next_event()
        decisions = self.engine.advance(self.now)
        batches = decisions.batches.copy()
        members = decisions.members.tolist()
        drops = decisions.drops.tolist()
        assert self.now >= due or not (len(batches) or drops), "decisions before next_event()"
        assert self.engine.next_event() > self.now, "next_event() asks again for what was just done"

        before = {m: self._queue(m) for m in self.models}
        for row in batches:
            self._check_batch(row, members[row["offset"] : row["offset"] + row["size"]], set(drops))
        for slot in drops:
            self._check_drop(slot, batches)
        for m, queue in before.items():
            rest = self._queue(m)
            assert queue[len(queue) - len(rest) :] == rest, "a request left the queue before an earlier one"
            self._check_window(m, rest)

    def _check_batch(self, row: Any, slots: list[int], drops: set[int]) -> None:
        m, start, end = int(row["model"]), int(row["start"]), int(row["end"])
        model, gpu = self.models[m], self.gpus[int(row["gpu"])]
        queue = self._queue(m)
        latency = model.tables[gpu.gpu_class]
        last = max(self.queued[slot].deadline for slot in queue)

        assert slots == [slot for slot in queue if slot not in drops][: len(slots)], "a batch is not the queue's head"
        assert 1 <= len(slots) <= model.max_batch
        assert all(end <= self.queued[slot].deadline for slot in slots), "a batch ends after a deadline"
        assert end == start + latency[len(slots)]
        assert start == self.now + gpu.control, "a batch waits at its GPU"
        assert start >= gpu.free_at, "two batches overlap"
        assert gpu.is_open(self.now)
        for g, other in self.gpus.items():
            if other.is_open(self.now) and (other.rank, g) < (gpu.rank, int(row["gpu"])):
                alone = self.now + other.control + model.tables[other.gpu_class][1]
                assert alone > last, "an open GPU of lower rank was passed over"
        if self.policy == "deferred":
            assert row["window_open"] <= self.now or len(queue) >= model.max_batch, "dispatched before its window"

        for slot in slots:
            self.flying[slot] = self.queued.pop(slot)
        gpu.flights.append(Flight(int(row["batch"]), start, end, slots))
        gpu.free_at = end

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
        soonest = self.now + self.control
        assert soonest + latency[1] <= self.queued[queue[0]].deadline, "a hopeless request is still queued"

        rest = queue[int(mod["skipped"]) :]
        first = self.queued[rest[0]].deadline
        b = min(len(rest), model.max_batch)
        assert soonest + latency[min(self.engine.target(m), len(rest))] <= first, "the candidate cannot be served whole"
        opens = first - latency[b + 1] - self.control
        assert mod["open"] == opens
        ready = self.policy == "eager" or b == model.max_batch or self.now >= opens
        assert (mod["state"] == READY) == ready
        last = max(self.queued[slot].deadline for slot in queue)
        for gpu in self.gpus.values():
            if ready and gpu.is_open(self.now):
                alone = self.now + gpu.control + model.tables[gpu.gpu_class][1]
                assert alone > last, "an open GPU was left idle beside a ready model"

    # Events

    @rule(wait=waits, pick=picks, offsets=st.lists(st.integers(-8, 160), min_size=1, max_size=6), at_once=st.booleans())
    @precondition(lambda self: self.models)
    def submit(self, wait: int, pick: int, offsets: list[int], at_once: bool) -> None:
        self._pass(wait)
        m = self._pick(self.models, pick)
        self._submit(m, [self.now + ns(q / 4) for q in offsets])
        if at_once:
            self._advance()

    def _submit(self, m: int, deadlines: list[int]) -> None:
        n = len(deadlines)
        names = np.arange(self.names, self.names + n)
        slots = self.engine.submit(self.now, np.full(n, m, np.int32), np.array(deadlines, np.int64), names)
        for slot, deadline in zip(slots.tolist(), deadlines, strict=True):
            request = Request(self.names, m, deadline, order=self.names)
            self.names += 1
            full = len(self.queued) + len(self.flying) == self.max_requests
            if full or len(self._queue(m)) >= self.models[m].limit:
                assert slot == QUEUE_FULL
                self._end(request, "rejected")
            else:
                assert slot >= 0, "a request was rejected though there was room"
                assert slot not in self.queued
                assert slot not in self.flying
                assert self.engine.state.req["request"][slot] == request.name
                self.queued[slot] = request

    @rule(m=st.integers(-1, 20))
    def submit_to_nobody(self, m: int) -> None:
        if m not in self.models:
            slots = self.engine.submit(self.now, np.array([m], np.int32), np.array([self.now]), np.array([0]))
            assert slots.tolist() == [NO_MODEL]

    @rule(wait=waits, pick=picks)
    @precondition(lambda self: self.queued or self.flying)
    def cancel(self, wait: int, pick: int) -> None:
        self._pass(wait)
        if not (self.queued or self.flying):
            return
        slot = self._pick([*self.queued, *self.flying], pick)
        assert self.engine.cancel(self.now, slot) == (slot in self.queued)
        if slot in self.queued:
            self._end(self.queued.pop(slot), "cancelled")
            assert not self.engine.cancel(self.now, slot)
        else:
            self.flying[slot].cancelled = True

    @rule(span=spans)
    def advance(self, span: int) -> None:
        self._pass(span)
        self._advance()

    @rule(times=st.integers(1, 4))
    def follow_next_event(self, times: int) -> None:
        for _ in range(times):
            at = self.engine.next_event()
            if at == NEVER:
                break
            self._pass(max(0, at - self.now))
            self._advance()

    @rule(span=st.integers(1, 8))
    def fall_silent(self, span: int) -> None:
        """Long enough for a new sample of the rate."""
        self._pass(ns(100 * span))
        self._advance()

    @rule(wait=waits, pick=picks, second=st.booleans(), error=st.integers(-20, 20), when_due=st.booleans())
    @precondition(lambda self: not self.exact and any(gpu.flights for gpu in self.gpus.values()))
    def complete(self, wait: int, pick: int, second: bool, error: int, when_due: bool) -> None:
        """A batch ends early, on time or late; now and then the one behind it is reported first."""
        self._pass(wait)
        g = self._pick([g for g, gpu in self.gpus.items() if gpu.flights], pick)
        gpu = self.gpus[g]
        i = 1 if second and len(gpu.flights) > 1 else 0
        end = gpu.flights[i].end + ns(error / 4)
        if when_due:
            self._pass(max(0, end - self.now))
        end = min(end, self.now)
        assert self.engine.completed(self.now, g, gpu.flights[i].batch, end)
        done = gpu.complete(i, end)
        assert not self.engine.completed(self.now, g, done.batch, end)
        self._land(done)
        if not gpu.draining:
            assert self.engine.in_flight(g) == len(gpu.flights)

    @rule(
        gpu_class=st.integers(0, 2),
        rank=st.none() | st.integers(0, 5),
        control=controls,
    )
    @precondition(lambda self: len(self.gpus) < 5)
    def add_gpu(self, gpu_class: int, rank: int | None, control: int) -> None:
        if all(gpu_class in model.tables for model in self.models.values()):
            self._add_gpu(gpu_class, rank, control)
        else:
            with pytest.raises(ValueError, match="no latency table"):
                self.engine.add_gpu(self.now, gpu_class=gpu_class)

    def _add_gpu(self, gpu_class: int, rank: int | None, control: int) -> None:
        g = self.engine.add_gpu(self.now, gpu_class=gpu_class, rank=rank, control_ns=control)
        assert g not in self.gpus
        self.gpus[g] = Gpu(gpu_class, g if rank is None else rank, control, self.now)

    @rule(wait=waits, pick=picks)
    @precondition(lambda self: self.gpus)
    def drain_gpu(self, wait: int, pick: int) -> None:
        self._pass(wait)
        g = self._pick(self.gpus, pick)
        self.engine.drain_gpu(self.now, g)
        self.gpus[g].draining = True
        assert self.engine.in_flight(g) == len(self.gpus[g].flights)

    @rule(wait=waits, pick=picks)
    @precondition(lambda self: self.gpus)
    def remove_gpu(self, wait: int, pick: int) -> None:
        self._pass(wait)
        g = self._pick(self.gpus, pick)
        removal = self.engine.remove_gpu(self.now, g)
        requeued, ended = [], []
        for flight in self.gpus.pop(g).flights:
            for slot in flight.slots:
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

    @rule(
        profile=st.dictionaries(st.integers(0, 2), tables, min_size=1),
        limit=st.integers(1, 8),
        slo=st.integers(5, 60),
    )
    @precondition(lambda self: len(self.models) < 4)
    def add_model(self, profile: dict[int, Ints], limit: int, slo: int) -> None:
        if {gpu.gpu_class for gpu in self.gpus.values() if not gpu.draining} <= set(profile):
            self._add_model(slo, profile, limit)
        else:
            with pytest.raises(ValueError, match="no latency table"):
                self.engine.add_model(self.now, slo_ns=ns(slo), latency_ns=profile)

    def _add_model(self, slo: int, profile: dict[int, Ints], limit: int) -> int:
        m = self.engine.add_model(self.now, slo_ns=ns(slo), latency_ns=profile, queue_limit=limit)
        assert m not in self.models
        assert all(request.model != m for request in self.flying.values()), "an index is used again too early"
        self.models[m] = Model(dict(profile), len(profile[min(profile)]) - 2, limit)
        return m

    @rule(wait=waits, pick=picks)
    @precondition(lambda self: self.models)
    def remove_model(self, wait: int, pick: int) -> None:
        self._pass(wait)
        m = self._pick(self.models, pick)
        queue = self._queue(m)
        assert self.engine.remove_model(self.now, m).tolist() == queue
        for slot in queue:
            self._end(self.queued.pop(slot), "removed")
        del self.models[m]

    @rule(pick=picks, gpu_class=st.integers(0, 2), latency=tables)
    @precondition(lambda self: self.models)
    def update_profile(self, pick: int, gpu_class: int, latency: Ints) -> None:
        m = self._pick(self.models, pick)
        self.engine.update_profile(self.now, m, gpu_class, latency)
        self.models[m].tables[gpu_class] = latency

    @rule(control=controls)
    def set_control(self, control: int) -> None:
        self.engine.set_control(self.now, control)
        self.control = control

    @rule(control=controls, pick=picks)
    @precondition(lambda self: self.gpus)
    def set_control_of_a_gpu(self, control: int, pick: int) -> None:
        g = self._pick(self.gpus, pick)
        self.engine.set_control(self.now, control, g)
        self.gpus[g].control = control

    @rule(policy=st.sampled_from(sorted(POLICIES)))
    def set_policy(self, policy: str) -> None:
        self.engine.policy = self.policy = policy

    @invariant()
    def the_books_agree(self) -> None:
        self.engine.validate()
        for m in self.models:
            assert self.engine.queued(m) == len(self._queue(m))
        assert len(self.outcomes) + len(self.queued) + len(self.flying) == self.names, "a request is lost"

    def teardown(self) -> None:
        """Left alone, the engine ends every request, and all its room is free again."""
        if not hasattr(self, "engine"):
            return
        for _ in range(1000):
            at = self.engine.next_event()
            if at == NEVER:
                break
            self._pass(max(0, at - self.now))
            self._advance()
            self._complete_what_is_due()
        else:
            raise AssertionError("next_event() never comes to NEVER")
        self._pass(ns(1000))
        self._complete_what_is_due()
        assert not self.queued
        assert not self.flying
        assert len(self.outcomes) == self.names
        for g, gpu in self.gpus.items():
            assert not gpu.draining or self.engine.in_flight(g) == 0, "a drained GPU never ends its batches"
        every_class = {c: table(1, 5, 6) for c in range(3)}
        m = self._add_model(25, every_class, limit=self.max_requests)
        self._submit(m, [self.now] * self.max_requests)
        assert len(self.queued) == self.max_requests, "room was lost"
        self.engine.validate()

    def _complete_what_is_due(self) -> None:
        for g, gpu in self.gpus.items():
            while not self.exact and gpu.flights and gpu.flights[0].end <= self.now:
                flight = gpu.flights[0]
                assert self.engine.completed(self.now, g, flight.batch, flight.end)
                self._land(gpu.complete(0, flight.end))


TestEngine = EngineMachine.TestCase
TestEngine.settings = settings(
    max_examples=150,
    stateful_step_count=40,
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
