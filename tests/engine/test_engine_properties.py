"""The engine under random events: after each, its invariants hold and its decisions follow the rules."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from symphony_dask.engine.batching import PREFER, Batching
from symphony_dask.engine.engine import NEVER, NO_MODEL, POLICIES
from tests.helpers.engines.books import Books
from tests.helpers.engines.engines import ns, table

Draw = Callable[[st.SearchStrategy[Any]], Any]

POLICY_NAMES = st.sampled_from(list(POLICIES))
CONTROLS = st.sampled_from([0, 0, ns(0.5), ns(3)])
CLASSES = st.integers(0, 2)
TABLES = st.builds(table, st.sampled_from([1, 0.25, 3]), st.sampled_from([2, 0, 5]), st.just(6))

#: Times are drawn as quarters of a ms, so that they often coincide; 1 ns more or less takes them apart again.
JITTER = st.sampled_from([0, 0, 0, -1, 1])
SHORT = st.builds(lambda q, jitter: max(0, ns(q / 4) + jitter), st.sampled_from([0, 0, 0, 1, 4]), JITTER)
LONG = st.builds(lambda q, jitter: max(0, ns(q / 4) + jitter), st.integers(0, 60), JITTER)
PRIORITIES = st.sampled_from([0, 0, 0, 1, 1, 2, 7])
DEADLINES = st.lists(st.sampled_from([100, 60, 60, 40, 20]) | st.integers(-2, 120), min_size=1, max_size=6)


def pick(draw: Draw, choices: Iterable[int]) -> int:
    return int(draw(st.sampled_from(sorted(choices))))


def submit(books: Books, draw: Draw) -> None:
    books.wait(draw(SHORT))
    if books.models:
        m = pick(draw, books.models)
        deadlines = [books.now + ns(q / 4) for q in draw(DEADLINES)]
        some = st.lists(PRIORITIES, min_size=len(deadlines), max_size=len(deadlines))
        books.submit(m, deadlines, draw(st.none() | some))
    if draw(st.booleans()):
        books.advance()


def submit_to_nobody(books: Books, draw: Draw) -> None:
    m = draw(st.integers(-1, 20))
    if m not in books.models:
        slots = books.engine.submit(books.now, np.array([m], np.int32), np.array([books.now]), np.array([0]))
        assert slots.tolist() == [NO_MODEL]


def cancel(books: Books, draw: Draw) -> None:
    books.wait(draw(SHORT))
    if books.queued or books.flying:
        books.cancel(pick(draw, [*books.queued, *books.flying]))


def advance(books: Books, draw: Draw) -> None:
    books.wait(draw(LONG))
    books.advance()


def drop_all_then_make_room(books: Books, draw: Draw) -> None:
    """One look drops as many as there is room for; before the next, requests leave by cancelling and eviction."""
    if not books.models:
        return
    m = pick(draw, books.models)
    books.submit(m, [books.now - 1] * books.max_requests)
    books.advance()
    books.submit(m, [books.now + ns(q / 4) for q in draw(DEADLINES)] * 2)
    for _ in range(draw(st.integers(0, 3))):
        if books.queued:
            books.cancel(draw(st.sampled_from([min(books.queued), *sorted(books.queued)])))
    deadlines = [books.now + ns(q / 4) for q in draw(DEADLINES)]
    books.submit(m, deadlines * 2, [7] * len(deadlines) + [1] * len(deadlines))


def follow_next_event(books: Books, draw: Draw) -> None:
    at = books.engine.next_event()
    if at != NEVER:
        books.wait(max(0, at - books.now))
        books.advance()


def fall_silent(books: Books, draw: Draw) -> None:
    """Long enough for a new sample of the rate."""
    books.wait(ns(100 * draw(st.integers(1, 8))))
    books.advance()


def complete(books: Books, draw: Draw) -> None:
    """A batch ends early, on time or late; now and then the one behind it is reported first."""
    books.wait(draw(SHORT))
    at_work = [g for g, gpu in books.gpus.items() if gpu.flights]
    if at_work and not books.exact:
        g = pick(draw, at_work)
        flights = books.gpus[g].flights
        i = draw(st.sampled_from([0, 0, len(flights) - 1]))
        end = flights[i].end + ns(draw(st.integers(-20, 20)) / 4)
        if draw(st.booleans()):
            books.wait(max(0, end - books.now))
        books.complete(g, i, min(end, books.now))
    if draw(st.booleans()):
        books.advance()


def add_gpu(books: Books, draw: Draw) -> None:
    gpu_class, rank, control = draw(CLASSES), draw(st.none() | st.integers(0, 5)), draw(CONTROLS)
    if not all(gpu_class in model.tables for model in books.models.values()):
        with pytest.raises(ValueError, match="no latency table"):
            books.engine.add_gpu(books.now, gpu_class=gpu_class)
    elif len(books.gpus) < 5:
        books.add_gpu(gpu_class, rank, control)


def drain_gpu(books: Books, draw: Draw) -> None:
    books.wait(draw(SHORT))
    if books.gpus:
        books.drain_gpu(pick(draw, books.gpus))


def remove_gpu(books: Books, draw: Draw) -> None:
    books.wait(draw(SHORT))
    if books.gpus:
        books.remove_gpu(pick(draw, books.gpus))


def add_model(books: Books, draw: Draw) -> None:
    slo, limit = ns(draw(st.integers(5, 60))), draw(st.integers(1, 12))
    tables = draw(st.dictionaries(CLASSES, TABLES, min_size=1))
    if not {gpu.gpu_class for gpu in books.gpus.values() if not gpu.draining} <= set(tables):
        with pytest.raises(ValueError, match="no latency table"):
            books.engine.add_model(books.now, slo_ns=slo, latency_ns=tables)
    elif len(books.models) < 4:
        books.add_model(slo, tables, limit)


def remove_model(books: Books, draw: Draw) -> None:
    books.wait(draw(SHORT))
    if books.models:
        books.remove_model(pick(draw, books.models))


def update_profile(books: Books, draw: Draw) -> None:
    if books.models:
        books.update_profile(pick(draw, books.models), draw(CLASSES), draw(TABLES))


def set_control(books: Books, draw: Draw) -> None:
    books.set_control(draw(CONTROLS), draw(CONTROLS))
    if draw(st.booleans()):
        books.set_policy(books.policy)


def set_control_of_a_gpu(books: Books, draw: Draw) -> None:
    if books.gpus:
        books.set_control_of(pick(draw, books.gpus), draw(CONTROLS))


def set_eligible(books: Books, draw: Draw) -> None:
    if books.models and books.gpus:
        books.set_eligible(pick(draw, books.models), pick(draw, books.gpus), draw(st.booleans()))


def set_policy(books: Books, draw: Draw) -> None:
    books.set_policy(draw(POLICY_NAMES))


def set_batching(books: Books, draw: Draw) -> None:
    if books.models:
        policy = draw(st.none() | POLICY_NAMES)
        delay_ns = draw(st.none() | st.integers(0, 60).map(ns))
        books.set_batching(pick(draw, books.models), Batching(policy, draw(st.sampled_from(PREFER)), delay_ns))


TRAFFIC = (
    [submit] * 12 + [drop_all_then_make_room] + [follow_next_event] * 8 + [advance] * 6 + [complete] * 8 + [cancel] * 2
)
RARE = [
    set_eligible,
    set_eligible,
    fall_silent,
    submit_to_nobody,
    update_profile,
    set_control,
    set_control_of_a_gpu,
    set_policy,
    set_batching,
]
FLEET = [add_gpu, add_gpu, drain_gpu, remove_gpu, add_model, remove_model]


HYPOTHESIS: dict[str, Any] = {"deadline": None, "print_blob": True, "suppress_health_check": list(HealthCheck)}


@settings(max_examples=80, **HYPOTHESIS)
@given(data=st.data())
def test_every_request_ends_once_and_every_decision_follows_the_rules(data: st.DataObject) -> None:
    run_events(data)


@pytest.mark.slow
@pytest.mark.timeout(1800)  # hypothesis may spend minutes on making a failure small
@settings(max_examples=2000, **HYPOTHESIS)
@given(data=st.data())
def test_so_it_is_in_two_thousand_runs(data: st.DataObject) -> None:
    run_events(data)


def run_events(data: st.DataObject) -> None:
    """Random events to random fleets and models; all is checked after each, and at the end that no room was lost."""
    draw = data.draw
    books = Books(draw(POLICY_NAMES), exact=draw(st.booleans()), max_requests=draw(st.sampled_from([40, 6])))
    books.set_control(draw(CONTROLS), draw(CONTROLS))
    books.set_policy(books.policy)
    for _ in range(draw(st.integers(1, 3))):
        books.add_model(ns(draw(st.integers(5, 30))), {c: draw(TABLES) for c in range(3)}, limit=12)
    for _ in range(draw(st.sampled_from([1, 2, 3, 0]))):
        books.add_gpu(draw(CLASSES), None, draw(CONTROLS))
    for event in draw(st.lists(st.sampled_from(TRAFFIC + RARE + FLEET), min_size=30, max_size=80)):
        event(books, draw)
        books.check()
    books.finish()

    m = books.add_model(ns(25), {c: table(1, 5, 6) for c in range(3)}, limit=books.max_requests)
    books.submit(m, [books.now] * books.max_requests)
    assert len(books.queued) == books.max_requests, "room was lost"
