"""Observed times: l(b) = b + 5 ms as given, so a lone request takes 6 ms, and what is reported differs from that."""

from __future__ import annotations

import pytest

from symphony_dask.scheduling.engine import NEVER, Engine
from tests.scheduling.helpers import Sent, advance, make_engine, next_event, ns, submit, table


def serve(engine: Engine, at: float, took: float, gpu: int = 0) -> None:
    """One request that starts at ``at`` on an idle GPU and takes ``took``, in ms."""
    submit(engine, at, at + 1000)
    ((_, g, _, _, _),), _ = advance(engine, at)
    assert g == gpu
    batch = int(engine.state.flight["batch"][2 * g])
    assert engine.completed(ns(at + took), g, batch, ns(at), ns(at + took))


def observer(gpus: int = 1) -> Engine:
    return make_engine(policy="eager", exact=False, gpus=gpus, slo=1000)


def test_a_batch_that_took_half_as_long_again_raises_the_pace_by_a_third_of_that() -> None:
    engine = observer()
    serve(engine, 0, 9)
    assert engine.pace(0) == pytest.approx(1 + 0.5 / 3)
    assert engine.drift(0) == pytest.approx(1 + 0.5 * 0.02)


def test_a_batch_that_was_fast_lowers_the_pace_by_a_tenth_of_that() -> None:
    engine = observer()
    serve(engine, 0, 3)
    assert engine.pace(0) == pytest.approx(1 - 0.5 / 10)


def test_a_stall_counts_as_three_times_what_was_planned() -> None:
    engine = observer()
    serve(engine, 0, 6000)
    assert engine.pace(0) == pytest.approx(1 + 2 / 3)


def test_a_batch_on_a_gpu_off_its_pace_is_planned_by_it() -> None:
    engine = observer()
    serve(engine, 0, 9)
    submit(engine, 100, 1000)
    # The pace is 7/6 and acts 2 % above; the drift of 1 % does not act.
    assert advance(engine, 100)[0][0].end == pytest.approx(100 + 6 * 7 / 6 * 1.02)


def test_times_within_2_percent_of_the_plan_change_nothing() -> None:
    engine = observer()
    for i in range(20):
        serve(engine, 100 * i, 6.1)
    submit(engine, 5000, 6000)
    assert advance(engine, 5000) == ([Sent(0, 0, [0], 5000, 5006)], [])


def test_a_slow_gpu_is_used_last() -> None:
    engine = observer(gpus=2)
    serve(engine, 0, 18)
    assert (engine.is_slow(0), engine.is_slow(1)) == (True, False)
    serve(engine, 100, 6, gpu=1)
    serve(engine, 200, 6, gpu=1)


def test_a_slow_gpu_that_is_fast_again_is_no_longer_slow() -> None:
    engine = observer(gpus=2)
    serve(engine, 0, 18)
    engine.drain_gpu(ns(100), 1)
    for i in range(8):
        assert engine.is_slow(0)
        serve(engine, 110 + 20 * i, 6)
        if not engine.is_slow(0):
            break
    assert engine.pace(0) == pytest.approx(1.28, abs=0.02)
    assert not engine.is_slow(0)


def test_a_gpu_that_returns_starts_afresh() -> None:
    engine = observer(gpus=2)
    serve(engine, 0, 18)
    engine.remove_gpu(ns(100), 0)
    assert engine.add_gpu(ns(101)) == 0
    assert engine.pace(0) == 1
    serve(engine, 200, 6, gpu=0)


def test_what_all_gpus_have_in_common_moves_the_windows() -> None:
    engine = observer()
    for i in range(200):
        serve(engine, 100 * i, 9)
    assert engine.drift(0) * engine.pace(0) == pytest.approx(1.5, rel=0.02)
    assert engine.pace(0) == pytest.approx(1, abs=0.05)
    assert not engine.is_slow(0)
    engine.policy = "deferred"
    submit(engine, 30_000, 30_100)
    advance(engine, 30_000)
    assert next_event(engine) == pytest.approx(30_100 - 1.5 * 7, abs=0.5)


def test_a_new_profile_is_taken_as_it_is_given() -> None:
    engine = observer()
    for i in range(200):
        serve(engine, 100 * i, 9)
    engine.update_profile(ns(30_000), 0, 0, table(2, 5))
    assert engine.drift(0) == 1


def test_a_slow_gpu_leaves_to_others_what_it_cannot_serve_in_time() -> None:
    engine = observer(gpus=2)
    serve(engine, 0, 18)  # pace 5/3, acting 1.7: one request takes 10.2 ms, two 11.9
    submit(engine, 100, 1100)
    advance(engine, 100)  # keeps GPU 1 at work
    submit(engine, 101, 110, 120, 121)
    sent, drops = advance(engine, 101)
    assert [batch.gpu for batch in sent] == [0]
    assert sent[0].slots == [2, 3]
    assert drops == []
    assert engine.queued(0) == 1


def test_an_idle_slow_gpu_is_tried_every_half_second_ahead_of_the_window() -> None:
    engine = observer(gpus=2)
    serve(engine, 0, 18)
    engine.policy = "deferred"
    submit(engine, 1000, 2000)
    assert [batch.gpu for batch in advance(engine, 1000)[0]] == [0]
    engine.completed(ns(1010), 0, 1, ns(1000), ns(1010))
    submit(engine, 1100, 2100)
    assert advance(engine, 1100) == ([], [])
    assert next_event(engine) == 1500


def test_times_of_a_batch_that_failed_teach_nothing() -> None:
    engine = observer()
    submit(engine, 0, 1000)
    advance(engine, 0)
    engine.completed(ns(1), 0, 0, int(NEVER), ns(1))
    assert engine.pace(0) == 1


def test_batches_of_less_than_a_fifth_of_a_ms_are_not_judged() -> None:
    engine = Engine("eager")
    engine.add_model(0, slo_ns=ns(1000), latency_ns={0: table(0, 0.1)})
    engine.add_gpu(0)
    serve(engine, 0, 6)
    assert engine.pace(0) == 1
