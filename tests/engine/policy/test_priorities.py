"""Priorities of requests; l(b) = b + 5 ms, slots count from 0."""

from __future__ import annotations

import numpy as np

from symphony_dask.engine.engine import QUEUE_FULL, Engine
from tests.helpers.engines.engines import Sent, advance, make_engine, ns, submit, table


def full(limit: int, *deadlines: float, priority: int = 0) -> Engine:
    """An engine without GPUs whose queue is full."""
    engine = Engine(max_requests=8)
    engine.add_model(0, slo_ns=ns(25), latency_ns={0: table(1, 5)}, queue_limit=limit)
    submit(engine, 0, *deadlines, priority=priority)
    return engine


def test_a_batch_takes_the_highest_priorities_and_leaves_the_others_queued() -> None:
    engine = make_engine(policy="eager", max_batch=2)
    submit(engine, 0, 30, 31)
    submit(engine, 0, 32, 33, priority=1)
    assert advance(engine, 0) == ([Sent(0, 0, [2, 3], 0, 7)], [])
    assert engine.queued(0) == 2


def test_among_equal_priorities_a_batch_takes_the_earliest_deadlines() -> None:
    engine = make_engine(policy="eager", max_batch=2)
    submit(engine, 0, 31, 30)
    submit(engine, 0, 33, 32, priority=2)
    submit(engine, 0, 40, priority=7)
    assert advance(engine, 0) == ([Sent(0, 0, [3, 4], 0, 7)], [])


def test_a_batch_that_takes_all_is_what_it_is_without_priorities() -> None:
    engine = make_engine(policy="eager")
    submit(engine, 0, 30, 31)
    submit(engine, 0, 29, priority=5)
    assert advance(engine, 0) == ([Sent(0, 0, [2, 0, 1], 0, 8)], [])


def test_a_batch_is_smaller_where_a_request_of_high_priority_could_not_be_in_it_else() -> None:
    engine = make_engine(gpus=0, policy="eager")
    submit(engine, 0, 7, priority=1)
    submit(engine, 0, *[25] * 6)
    engine.add_gpu(0)
    # With all seven it would end at 12; the first must end by 7, which two do.
    assert advance(engine, 0) == ([Sent(0, 0, [0, 1], 0, 7)], [])


def test_without_priorities_the_same_head_is_dropped_for_the_larger_batch() -> None:
    engine = make_engine(gpus=0, policy="eager")
    submit(engine, 0, 7, *[25] * 6)
    engine.add_gpu(0)
    assert advance(engine, 0) == ([Sent(0, 0, [1, 2, 3, 4, 5, 6], 0, 11)], [0])


def test_a_batch_is_not_made_smaller_where_more_of_high_priority_would_lose_by_it() -> None:
    engine = make_engine(gpus=0, policy="eager")
    submit(engine, 0, 6, *[25] * 8, priority=1)
    engine.add_gpu(0)
    # One request in 6 ms, or eight in 13.
    assert advance(engine, 0) == ([Sent(0, 0, [1, 2, 3, 4, 5, 6, 7, 8], 0, 13)], [0])


def test_in_a_full_queue_the_latest_of_the_lowest_priority_makes_room() -> None:
    engine = full(3, 25, 27, 26)
    assert submit(engine, 1, 24, priority=1) == [1]
    assert engine.evicted.tolist() == [(1, 1, 0)]
    engine.validate()


def test_a_request_takes_no_room_of_its_own_priority() -> None:
    engine = full(2, 25, 27, priority=1)
    assert submit(engine, 1, 24, priority=1) == [QUEUE_FULL]
    assert engine.evicted.tolist() == []


def test_of_several_priorities_the_lowest_makes_room() -> None:
    engine = full(3, 25, priority=2)
    submit(engine, 0, 24, 26, priority=1)
    assert submit(engine, 1, 30, priority=3) == [2]
    assert engine.evicted["request"].tolist() == [1]


def test_a_request_evicted_by_one_of_the_same_call_is_answered_as_rejected() -> None:
    engine = full(1)
    models, deadlines = np.zeros(2, np.int32), np.full(2, ns(25))
    slots = engine.submit(0, models, deadlines, np.arange(2), np.array([0, 1], np.int32))
    assert slots.tolist() == [QUEUE_FULL, 0]
    assert engine.evicted.tolist() == []
    assert engine.queued(0) == 1


def test_where_the_engine_is_full_the_model_with_most_ordinary_requests_makes_room() -> None:
    engine = Engine(max_requests=4)
    for _ in range(2):
        engine.add_model(0, slo_ns=ns(25), latency_ns={0: table(1, 5)})
    submit(engine, 0, 25, model=0)
    submit(engine, 0, 25, 25, 25, model=1)
    submit(engine, 1, 26, model=0, priority=1)
    assert engine.evicted.tolist() == [(2, 3, 1)]
    assert (engine.queued(0), engine.queued(1)) == (2, 2)
