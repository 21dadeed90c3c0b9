"""Observed times: l(b) = b + 5 ms as given, so a lone request takes 6 ms, and what is reported differs from that."""

from __future__ import annotations

import pytest

from symphony_dask.engine.engine import NEVER, Engine
from tests.helpers.engines.engines import Sent, advance, make_engine, next_event, ns, submit, table


def serve(engine: Engine, at: float, took: float, gpu: int = 0) -> None:
    """One request that starts at ``at`` on an idle GPU and takes ``took``, in ms."""
    submit(engine, at, at + 1000)
    ((_, g, _, _, _),), _ = advance(engine, at)
    assert g == gpu
    batch = int(engine.state.flight["batch"][2 * g])
    assert engine.completed(ns(at + took), g, batch, ns(at), ns(at + took))


def observer(gpus: int = 1) -> Engine:
    return make_engine(policy="eager", exact=False, gpus=gpus, slo=1000)


def on_both(engine: Engine, at: float, *took: float, model: int = 0) -> None:
    """A request at once on each of two idle GPUs, which take so long, in ms."""
    for n in range(2):
        submit(engine, at, at + 1000, model=model)
        ((_, gpu, _, _, _),), _ = advance(engine, at + n / 10)
    for gpu, ms in enumerate(took):
        batch = int(engine.state.flight["batch"][2 * gpu])
        assert engine.completed(ns(at + ms), gpu, batch, ns(at), ns(at + ms))


def planned(engine: Engine, at: float, model: int = 0) -> float:
    """What a lone request is planned to take, in ms."""
    submit(engine, at, at + 1000, model=model)
    ((_, _, _, start, end),), _ = advance(engine, at)
    return end - start


def test_a_batch_that_was_fast_lowers_what_is_planned_by_a_tenth_of_that() -> None:
    engine = observer()
    serve(engine, 0, 3)  # 5 % less, which does not act yet
    serve(engine, 50, 3)  # 0.95 * (1 - (1 - 0.5 / 0.95) / 10)
    assert planned(engine, 100) == pytest.approx(6 * 0.905 * 1.02, abs=0.001)


def test_a_stall_counts_as_three_times_what_was_planned() -> None:
    engine = observer()
    serve(engine, 0, 6000)
    assert planned(engine, 7000) == pytest.approx(6 * (1 + 2 / 3) * 1.02, abs=0.01)


def test_a_stall_of_a_gpu_that_is_known_teaches_nothing_and_two_batches_in_a_row_do() -> None:
    engine = observer()
    for i in range(5):
        serve(engine, 50 * i, 6)
    serve(engine, 300, 600)
    assert planned(engine, 1000) == 6
    engine.completed(ns(1600), 0, 6, ns(1000), ns(1600))
    assert planned(engine, 2000) == pytest.approx(6 * (1 + 2 / 9) * 1.02, abs=0.01)  # after six


def test_the_drift_follows_after_five_batches() -> None:
    engine = observer()
    for i in range(4):
        serve(engine, 50 * i, 9)
        assert engine.drift(0) == 1
    serve(engine, 200, 9)
    assert engine.drift(0) == pytest.approx(1.4, abs=0.05)


def test_a_model_that_did_not_run_has_no_drift() -> None:
    engine = make_engine(policy="eager", exact=False, models=2, slo=1000)
    for i in range(100):
        serve(engine, 50 * i, 18)
    assert engine.drift(0) == pytest.approx(3, rel=0.02)
    assert engine.drift(1) == 1
    assert engine.slowdown(0) == 1
    assert planned(engine, 10_000, model=1) == 6


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


def slow_gpu() -> Engine:
    """Two GPUs, of which the first takes three times as long, as was noticed."""
    engine = observer(gpus=2)
    for i in range(6):
        assert not engine.is_slow(0)
        on_both(engine, 50 * i, 18, 6)
    assert (engine.is_slow(0), engine.is_slow(1)) == (True, False)
    return engine


def test_a_slow_gpu_is_used_last() -> None:
    engine = slow_gpu()
    serve(engine, 350, 6, gpu=1)
    serve(engine, 400, 6, gpu=1)
    assert engine.drift(0) == 1
    assert engine.slowdown(0) == 1  # as one model says no more than that it is slow there itself


def test_a_slow_gpu_that_is_fast_again_is_no_longer_slow() -> None:
    engine = slow_gpu()
    engine.drain_gpu(ns(300), 1)
    n = 0
    while engine.is_slow(0):
        n += 1
        serve(engine, 300 + 20 * n, 6)
    assert n == 16  # what it is above 1 falls by a tenth each time, from 1.5 to below 0.3


def test_two_models_that_agree_tell_the_pace_of_a_gpu() -> None:
    engine = make_engine(policy="eager", exact=False, models=3, gpus=2, slo=1000)
    for i in range(20):
        on_both(engine, 100 * i, 12, 6)
        assert engine.slowdown(0) == 1
    for i in range(20, 40):
        on_both(engine, 100 * i, 12, 6, model=1)
    assert engine.slowdown(0) == pytest.approx(2, rel=0.05)
    assert engine.slowdown(1) == 1
    engine.drain_gpu(ns(4000), 1)
    assert planned(engine, 4000, model=2) == pytest.approx(12, rel=0.05)


def test_the_pace_of_a_gpu_refuses_nothing_to_a_model_that_did_not_run_there() -> None:
    engine = make_engine(policy="eager", exact=False, models=3, gpus=2, slo=1000)
    for i in range(40):
        on_both(engine, 100 * i, 12, 6, model=i % 2)
    engine.drain_gpu(ns(4000), 1)
    submit(engine, 4000, 4008, model=2)  # 6 as declared, 12 by the pace
    sent, drops = advance(engine, 4000)
    assert [s.gpu for s in sent] == [0]
    assert drops == []


def test_two_models_that_disagree_tell_no_pace() -> None:
    engine = make_engine(policy="eager", exact=False, models=2, gpus=2, slo=1000)
    for i in range(20):
        on_both(engine, 100 * i, 12, 6)
        on_both(engine, 100 * i + 50, 6, 6, model=1)
    assert engine.slowdown(0) == 1
    assert not engine.is_slow(0)


def test_what_was_not_heard_for_ten_seconds_is_forgotten() -> None:
    engine = observer(gpus=2)
    serve(engine, 0, 18)
    assert planned(engine, 50) == pytest.approx(10.2, abs=0.001)
    engine.remove_gpu(ns(60), 1)
    engine.completed(ns(61), 0, 1, NEVER, ns(61))
    assert planned(engine, 10_200) == 6


def test_half_of_a_drift_is_forgotten_in_a_minute() -> None:
    engine = observer()
    for i in range(60):
        serve(engine, 50 * i, 12)
    assert engine.drift(0) == pytest.approx(2, rel=0.05)
    serve(engine, 64_000, 9)
    assert engine.drift(0) == pytest.approx(1.5, rel=0.05)


def test_a_gpu_that_returns_starts_afresh() -> None:
    engine = observer(gpus=2)
    serve(engine, 0, 18)
    engine.remove_gpu(ns(100), 0)
    assert engine.add_gpu(ns(101)) == 0
    assert engine.slowdown(0) == 1
    serve(engine, 200, 6, gpu=0)


def test_what_all_gpus_have_in_common_moves_the_windows() -> None:
    engine = observer()
    for i in range(200):
        serve(engine, 100 * i, 9)
    assert engine.drift(0) * engine.slowdown(0) == pytest.approx(1.5, rel=0.02)
    assert engine.slowdown(0) == pytest.approx(1, abs=0.05)
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


def test_a_gpu_leaves_to_others_what_it_cannot_serve_in_time() -> None:
    engine = observer(gpus=2)
    serve(engine, 0, 18)  # one request is planned to take 10.2 ms there, two 11.9
    submit(engine, 101, 110, 120, 121)
    sent, drops = advance(engine, 101)
    assert [(s.gpu, len(s.slots)) for s in sent] == [(0, 2), (1, 1)]
    assert drops == []


def test_an_idle_slow_gpu_is_tried_every_half_second_ahead_of_the_window() -> None:
    engine = slow_gpu()
    engine.policy = "deferred"
    submit(engine, 1000, 2000)
    assert [batch.gpu for batch in advance(engine, 1000)[0]] == [0]
    engine.completed(ns(1018), 0, int(engine.state.flight["batch"][0]), ns(1000), ns(1018))
    submit(engine, 1100, 2100)
    assert advance(engine, 1100) == ([], [])
    assert next_event(engine) == 1500


def test_times_of_a_batch_that_failed_teach_nothing() -> None:
    engine = observer()
    submit(engine, 0, 1000)
    advance(engine, 0)
    engine.completed(ns(1), 0, 0, int(NEVER), ns(1))
    assert engine.slowdown(0) == 1


def test_batches_of_less_than_a_fifth_of_a_ms_are_not_judged() -> None:
    engine = Engine("eager")
    engine.add_model(0, slo_ns=ns(1000), latency_ns={0: table(0, 0.1)})
    engine.add_gpu(0)
    serve(engine, 0, 6)
    assert engine.slowdown(0) == 1
