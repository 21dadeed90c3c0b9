"""Models that some GPUs cannot run. l(b) = b + 5 ms; times in ms."""

from __future__ import annotations

import numpy as np

from symphony_dask.engine.engine import NEVER, Engine
from symphony_dask.engine.events import EVENT, OPS, Journal
from symphony_dask.engine.journal import Replayer, dump
from symphony_dask.engine.state import EVICTED
from tests.helpers.engines.engines import Sent, advance, make_engine, next_event, ns, submit, table


def test_a_batch_goes_to_the_gpu_of_the_lowest_rank_that_can_run_its_model() -> None:
    engine = make_engine(gpus=3, policy="eager")
    engine.set_eligible(0, 0, 0, False)
    submit(engine, 0, 25)
    assert advance(engine, 0) == ([Sent(0, 1, [0], 0, 6)], [])


def test_a_model_waits_for_a_gpu_that_can_run_it_while_others_are_idle() -> None:
    engine = make_engine(models=2, gpus=2, policy="eager")
    engine.set_eligible(0, 0, 0, False)
    submit(engine, 0, 25)
    assert advance(engine, 0)[0] == [Sent(0, 1, [0], 0, 6)]
    submit(engine, 1, 25)
    assert advance(engine, 1) == ([], [])
    submit(engine, 1, 25, model=1)
    assert advance(engine, 1)[0] == [Sent(1, 0, [2], 1, 7)]
    assert next_event(engine) == 6
    assert advance(engine, 6)[0] == [Sent(0, 1, [1], 6, 12)]


def test_requests_of_a_model_that_no_gpu_can_run_wait_until_they_could_not_be_served_even_at_once() -> None:
    engine = make_engine(policy="eager")
    engine.set_eligible(0, 0, 0, False)
    (slot,) = submit(engine, 0, 25)
    assert advance(engine, 18) == ([], [])
    assert next_event(engine) <= ns(19) + 1
    assert advance(engine, 19.5) == ([], [slot])
    assert engine.next_event() == NEVER


def test_requests_that_waited_for_a_model_run_when_it_is_there() -> None:
    engine = make_engine()
    engine.set_eligible(0, 0, 0, False)
    submit(engine, 0, 25, 25)
    assert advance(engine, 18)[0] == []
    engine.set_eligible(ns(18), 0, 0, True)
    assert next_event(engine) == 0
    assert advance(engine, 18)[0] == [Sent(0, 0, [0, 1], 18, 25)]


def test_the_target_follows_the_gpus_that_can_run_the_model() -> None:
    # Of four GPUs all are taken to be at work: l(b) * 5/4 <= 25 gives 15; of one l(b) * 2 <= 25 gives 7.
    engine = make_engine(gpus=4)
    advance(engine, 0)
    assert engine.target(0) == 15
    for gpu in range(3):
        engine.set_eligible(0, 0, gpu, False)
    advance(engine, 0)
    assert engine.target(0) == 7


def test_windows_follow_the_fastest_class_that_can_run_the_model() -> None:
    engine = Engine("deferred", exact=True, max_requests=16)
    engine.add_model(0, slo_ns=ns(50), latency_ns={0: table(1, 5), 1: table(2, 10)})
    engine.add_gpu(0, gpu_class=0)
    engine.add_gpu(0, gpu_class=1)
    engine.set_eligible(0, 0, 0, False)
    submit(engine, 0, 50)
    assert advance(engine, 0)[0] == []
    assert engine.state.mod["open"][0] == ns(50 - (2 * 2 + 10))
    engine.set_eligible(0, 0, 0, True)
    assert advance(engine, 0)[0] == []
    assert engine.state.mod["open"][0] == ns(50 - (2 + 5))


def test_what_was_said_of_a_gpu_or_a_model_goes_with_it() -> None:
    engine = make_engine(models=2, gpus=2)
    engine.set_eligible(0, 0, 0, False)
    engine.set_eligible(0, 1, 1, False)
    engine.remove_gpu(0, 0)
    engine.remove_model(0, 1)
    engine.validate()
    assert engine.state.g["n_ineligible"][0] == 0
    assert engine.add_gpu(0) == 0
    assert engine.add_model(0, slo_ns=ns(25), latency_ns={0: table(1, 5)}) == 1
    assert engine.can_run(0, 0)
    assert engine.can_run(1, 1)


def test_more_models_and_gpus_keep_what_was_said() -> None:
    engine = make_engine(models=8, gpus=8)
    pairs = {(0, 7), (3, 3), (7, 0)}
    for model, gpu in pairs:
        engine.set_eligible(0, model, gpu, False)
    for _ in range(30):
        engine.add_model(0, slo_ns=ns(25), latency_ns={0: table(1, 5)})
        engine.add_gpu(0)
    engine.set_eligible(0, 37, 30, False)
    engine.validate()
    found = {(m, g) for m in range(38) for g in range(38) if not engine.can_run(m, g)}
    assert found == pairs | {(37, 30)}


def test_a_journal_holds_what_was_said() -> None:
    engine = make_engine(models=2, gpus=2, policy="adaptive", exact=False)
    engine.set_eligible(0, 0, 0, False)
    engine.journal = journal = Journal()
    replayer = Replayer(dump(engine), np.dtype(EVICTED))
    engine.set_eligible(0, 1, 1, False)
    engine.set_eligible(0, 0, 0, True)
    rows, data = journal.take()
    assert data == b""
    for op, *numbers, _ in np.frombuffer(rows, EVENT).tolist():
        replayer.apply(OPS[op], *numbers, b"")
    assert [(m, g) for m in (0, 1) for g in (0, 1) if not replayer.engine.can_run(m, g)] == [(1, 1)]
    assert dump(replayer.engine) == dump(engine)
