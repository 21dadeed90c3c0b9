"""The engine's calls beside ``advance``: requests and models come and go, GPUs run early and late, drain and die."""

from __future__ import annotations

import numpy as np
import pytest

from symphony_dask.engine.engine import NEVER, NO_MODEL, QUEUE_FULL, Engine
from tests.helpers.engines.engines import Sent, advance, make_engine, next_event, ns, submit, table


def test_a_full_queue_and_an_unknown_model_are_answered_in_place_of_a_slot() -> None:
    engine = Engine()
    engine.add_model(0, slo_ns=ns(25), latency_ns={0: table(1, 5)}, queue_limit=2)
    assert submit(engine, 0, 25, 25, 25) == [0, 1, QUEUE_FULL]
    assert submit(engine, 0, 25, model=1) == [NO_MODEL]


def test_max_requests_bounds_what_is_queued_and_in_flight() -> None:
    engine = make_engine(max_requests=2, policy="eager")
    submit(engine, 0, 25)
    advance(engine, 0)
    assert submit(engine, 1, 25, 25) == [1, QUEUE_FULL]


def test_the_room_of_a_batch_that_ended_is_free_though_its_gpu_opened_before_the_end() -> None:
    engine = make_engine(gpus=0, max_requests=1, policy="eager")
    engine.add_gpu(0, control_ns=ns(1))
    submit(engine, 0, 25)
    assert advance(engine, 0) == ([Sent(0, 0, [0], 1, 7)], [])
    assert advance(engine, 6) == ([], [])
    assert submit(engine, 6.9, 25) == [QUEUE_FULL]
    assert submit(engine, 7, 25) == [0]


def test_the_next_batch_is_sent_so_early_that_it_starts_when_the_gpu_is_free() -> None:
    engine = make_engine(gpus=0, policy="eager", exact=False)
    engine.add_gpu(0, control_ns=ns(1))
    submit(engine, 0, 25)
    advance(engine, 0)
    submit(engine, 1, 25)
    assert advance(engine, 1) == ([], [])
    # The first batch runs from 1 to 7.
    assert next_event(engine) == 6
    assert advance(engine, 6) == ([Sent(0, 0, [1], 7, 13)], [])


def test_an_open_gpu_waits_again_when_its_control_latency_turns_out_shorter() -> None:
    engine = make_engine(gpus=0, policy="eager", exact=False)
    engine.add_gpu(0, control_ns=ns(3))
    submit(engine, 0, 25)
    # Runs from 3 to 9, so the next batch could leave at 6.
    advance(engine, 0)
    advance(engine, 6)
    engine.set_control(ns(6), ns(1), 0)
    submit(engine, 6, 25)
    assert advance(engine, 6) == ([], [])
    assert next_event(engine) == 8
    assert advance(engine, 8) == ([Sent(0, 0, [1], 9, 15)], [])


def test_a_gpu_that_ends_early_is_free_early() -> None:
    engine = make_engine(policy="eager", exact=False)
    submit(engine, 0, 25)
    advance(engine, 0)
    submit(engine, 1, 25)
    assert advance(engine, 1) == ([], [])
    assert engine.completed(ns(4), 0, 0, 0, ns(4))
    assert engine.next_event() == 0
    assert advance(engine, 4) == ([Sent(0, 0, [1], 4, 10)], [])


def test_a_gpu_that_is_late_holds_one_waiting_batch_and_no_more() -> None:
    engine = make_engine(policy="eager", exact=False)
    for t in (0, 6, 12):
        submit(engine, t, 40)
        advance(engine, t)
    # Batch 0 was to end at 6 and still runs, since it started at 8; batch 1 waits behind it, and the third request in
    # its queue.
    assert engine.in_flight(0) == 2
    assert engine.queued(0) == 1
    # Batch 1 now runs from 14 to 20.
    assert engine.completed(ns(14), 0, 0, ns(8), ns(14))
    assert advance(engine, 14) == ([], [])
    assert next_event(engine) == 20
    assert advance(engine, 20) == ([Sent(0, 0, [2], 20, 26)], [])


def test_a_completion_that_nobody_waits_for_is_refused() -> None:
    engine = make_engine(policy="eager", exact=False)
    submit(engine, 0, 25)
    advance(engine, 0)
    assert not engine.completed(ns(6), 0, 7, 0, ns(6))
    assert engine.completed(ns(6), 0, 0, 0, ns(6))
    assert not engine.completed(ns(6), 0, 0, 0, ns(6))


def test_requests_of_a_lost_gpu_return_to_their_place_in_the_queue() -> None:
    engine = make_engine(policy="eager", exact=False)
    submit(engine, 0, 30, 25)
    assert advance(engine, 0) == ([Sent(0, 0, [1, 0], 0, 7)], [])
    submit(engine, 1, 27)
    removal = engine.remove_gpu(ns(2), 0)
    assert removal.requeued.tolist() == [1, 0]
    assert removal.ended.tolist() == []
    engine.add_gpu(ns(3))
    assert advance(engine, 3) == ([Sent(0, 0, [1, 2, 0], 3, 11)], [])


def test_a_request_cancelled_in_flight_does_not_return() -> None:
    engine = make_engine(policy="eager", exact=False)
    submit(engine, 0, 25, 25)
    advance(engine, 0)
    assert not engine.cancel(ns(1), 0)
    assert engine.remove_gpu(ns(2), 0).requeued.tolist() == [1]


def test_requests_of_a_removed_model_end_with_its_gpu() -> None:
    engine = make_engine(models=2, policy="eager", exact=False)
    submit(engine, 0, 25)
    advance(engine, 0)
    submit(engine, 1, 25)
    assert engine.remove_model(ns(1), 0).tolist() == [1]
    removal = engine.remove_gpu(ns(2), 0)
    assert (removal.requeued.tolist(), removal.ended.tolist()) == ([], [0])
    engine.validate()


def test_an_index_is_used_again_when_the_last_batch_of_its_model_ended() -> None:
    engine = make_engine(policy="eager", exact=False)
    submit(engine, 0, 25)
    advance(engine, 0)
    engine.remove_model(ns(1), 0)
    assert engine.add_model(ns(1), slo_ns=ns(25), latency_ns={0: table(1, 5)}) == 1
    engine.completed(ns(6), 0, 0, 0, ns(6))
    assert engine.add_model(ns(6), slo_ns=ns(25), latency_ns={0: table(1, 5)}) == 0


@pytest.mark.parametrize("exact", [False, True])
def test_a_drained_gpu_ends_what_it_has_and_gets_no_more(exact: bool) -> None:
    engine = make_engine(policy="eager", exact=exact)
    submit(engine, 0, 25)
    advance(engine, 0)
    engine.drain_gpu(ns(1), 0)
    submit(engine, 1, 25)
    assert engine.in_flight(0) == 1
    if not exact:
        engine.completed(ns(6), 0, 0, 0, ns(6))
    assert advance(engine, 6) == ([], [])
    assert engine.in_flight(0) == 0
    assert engine.queued(0) == 1


def test_an_engine_grows_while_it_works() -> None:
    engine = make_engine(models=8, gpus=8, policy="eager")
    submit(engine, 0, 25)
    advance(engine, 0)
    submit(engine, 1, 40, model=7)
    big = table(1, 5, max_batch=300)
    assert engine.add_model(ns(1), slo_ns=ns(25), latency_ns={0: big, 5: big}) == 8
    assert [engine.add_gpu(ns(1)) for _ in range(2)] == [8, 9]
    submit(engine, 1, 41, model=8)
    assert advance(engine, 1) == ([Sent(7, 1, [1], 1, 7), Sent(8, 2, [2], 1, 7)], [])


def test_a_drained_engine_waits_for_nothing() -> None:
    engine = make_engine(models=2, gpus=2)
    advance(engine, 0)
    assert engine.next_event() == NEVER


def test_a_wrong_argument_is_named_with_its_remedy() -> None:
    with pytest.raises(ValueError, match="policy 'lazy' is unknown: choose one of deferred, adaptive, eager, latest, "):
        Engine("lazy")
    with pytest.raises(ValueError, match="max_requests is 0: it must be from 1 to"):
        Engine(max_requests=0)
    engine = make_engine()
    with pytest.raises(ValueError, match=r"models \[0\] have no latency table for GPU class 1"):
        engine.add_gpu(0, gpu_class=1)
    with pytest.raises(ValueError, match="no latency table for GPU classes"):
        engine.add_model(0, slo_ns=ns(25), latency_ns={1: table(1, 5)})
    with pytest.raises(ValueError, match="give one or more, all of one max_batch"):
        engine.add_model(0, slo_ns=ns(25), latency_ns={0: table(1, 5, 4), 1: table(1, 5, 8)})
    with pytest.raises(ValueError, match="slo_ns is 0: it must be from 1 to"):
        engine.add_model(0, slo_ns=0, latency_ns={0: table(1, 5)})
    with pytest.raises(ValueError, match="latency table has 6 entries: model 0 needs 130"):
        engine.update_profile(0, 0, 0, np.zeros(6, np.int64))
