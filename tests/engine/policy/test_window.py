"""The window worked out by hand, for l(b) = b + 5 ms and an SLO of 25 ms: l(1) = 6, l(2) = 7, ..."""

from __future__ import annotations

import pytest

from symphony_dask.engine.engine import NEVER
from symphony_dask.engine.policy import window
from tests.helpers.engines.engines import Sent, advance, make_engine, next_event, ns, submit, table

L = table(1, 5)


# Formulas


def test_the_window_opens_when_one_more_request_could_not_join() -> None:
    # Three requests due at 25: a fourth would need l(4) = 9.
    assert window.frontrun(L, ns(25), 3, 0) == ns(16)


def test_the_window_closes_when_the_batch_could_not_be_served_whole() -> None:
    assert window.latest(L, ns(25), 3, 0) == ns(17)


def test_control_latency_moves_the_window_earlier() -> None:
    assert window.frontrun(L, ns(25), 3, ns(2)) == ns(14)
    assert window.latest(L, ns(25), 3, ns(2)) == ns(15)


@pytest.mark.parametrize(
    ("gpus", "expected"),
    [
        (1, 7),  # 2 (b + 5) <= 25
        (2, 11),  # 1.5 (b + 5) <= 25: 1.5 * 16 = 24
        (4, 15),  # 1.25 (b + 5) <= 25: 1.25 * 20 = 25
    ],
)
def test_with_no_known_rate_all_gpus_are_taken_to_be_at_work(gpus: int, expected: int) -> None:
    assert window.target_batch(L, 128, ns(25), 0.0, gpus) == expected


def test_a_high_rate_lets_staggered_gpus_serve_large_batches() -> None:
    # 1 request a ms: n = l(b)/b, so l(b) + l(b)/n = 2b + 5 <= 25. n = 1.5 at b = 10.
    assert window.target_batch(L, 128, ns(25), 1 / ns(1), 8) == 10


def test_a_low_rate_waits_for_its_own_requests() -> None:
    # 1 request in 4 ms: n < 1 from b = 2 on, so l(b) + 4b = 5b + 5 <= 25.
    assert window.target_batch(L, 128, ns(25), 1 / ns(4), 8) == 4


def test_the_target_is_at_least_one_and_at_most_max_batch() -> None:
    assert window.target_batch(L, 128, ns(5), 0.0, 1) == 1
    assert window.target_batch(L, 3, ns(25), 0.0, 1) == 3


# Opening and closing


def test_a_lone_request_waits_for_its_window() -> None:
    engine = make_engine()
    submit(engine, 0, 25)
    assert advance(engine, 0) == ([], [])
    # A second request would need l(2) = 7: opens at 18.
    assert next_event(engine) == 18
    assert advance(engine, 17.9) == ([], [])
    assert advance(engine, 18) == ([Sent(model=0, gpu=0, slots=[0], start=18, end=24)], [])


def test_a_request_that_only_moves_the_opening_is_written_down_without_a_look() -> None:
    engine = make_engine()
    submit(engine, 0, 25)
    advance(engine, 0)
    submit(engine, 1, 26)
    assert engine.state.mod["dirty"][0] == 0
    assert engine.state.mod["open"][0] == ns(17)  # 25 - l(3)
    assert next_event(engine) == 17


def test_a_model_whose_requests_come_fast_is_looked_at_before_its_window_and_sent_inside_it() -> None:
    engine = make_engine()
    engine.state.mod["rate"][0] = 1 / ns(1)
    submit(engine, 0, 25)
    advance(engine, 0)
    # Opens at 18; at a request and so 1 ms a ms the opening comes nearer twice as fast as time: three quarters of 9 ms.
    assert next_event(engine) == 6.75
    assert advance(engine, 6.75) == ([], [])
    assert engine.state.mod["open"][0] == ns(18)
    for t in range(7, 12):
        submit(engine, t, 25 + t)
        assert advance(engine, t) == ([], [])
    assert next_event(engine) <= 13  # 25 - l(7)
    sent, _ = advance(engine, 13)
    assert [len(batch.slots) for batch in sent] == [6]


def test_each_request_that_joins_opens_the_window_earlier() -> None:
    engine = make_engine()
    submit(engine, 0, 25)
    submit(engine, 10, 35)
    assert advance(engine, 10) == ([], [])
    # 25 - l(3) = 17
    assert next_event(engine) == 17
    assert advance(engine, 17) == ([Sent(0, 0, [0, 1], 17, 24)], [])


def test_a_request_that_can_start_at_the_last_moment_is_served() -> None:
    engine = make_engine()
    submit(engine, 0, 6)
    assert advance(engine, 0) == ([Sent(0, 0, [0], 0, 6)], [])


def test_a_request_beyond_hope_is_dropped() -> None:
    engine = make_engine()
    submit(engine, 0, 5.9)
    assert advance(engine, 0) == ([], [0])
    assert engine.next_event() == NEVER


def test_without_a_gpu_a_request_is_dropped_once_it_cannot_be_served() -> None:
    engine = make_engine(gpus=0)
    submit(engine, 0, 25)
    # Opens at 18; at 19 it could still be served, just after that it could not.
    assert advance(engine, 0) == ([], [])
    assert advance(engine, 18) == ([], [])
    assert advance(engine, 19) == ([], [])
    assert next_event(engine) == 19.000001
    assert advance(engine, 19.000001) == ([], [0])
    assert engine.next_event() == NEVER


def test_the_first_deadline_leads_whatever_the_order_of_arrival() -> None:
    engine = make_engine()
    submit(engine, 0, 40, 25, 30)
    advance(engine, 0)
    # 25 - l(4) = 16
    assert next_event(engine) == 16
    assert advance(engine, 16) == ([Sent(0, 0, [1, 2, 0], 16, 24)], [])


def test_a_full_batch_opens_the_window_at_once() -> None:
    engine = make_engine(max_batch=4)
    submit(engine, 0, 25, 25, 25)
    assert advance(engine, 0) == ([], [])
    submit(engine, 1, 26)
    assert advance(engine, 1) == ([Sent(0, 0, [0, 1, 2, 3], 1, 10)], [])


def test_a_cancelled_request_opens_the_window_later() -> None:
    engine = make_engine()
    slots = submit(engine, 0, 25, 30)
    advance(engine, 0)
    assert next_event(engine) == 17
    assert engine.cancel(ns(1), slots[0])
    advance(engine, 1)
    # 30 - l(2) = 23
    assert next_event(engine) == 23


def test_control_latency_counts_from_dispatch_to_start() -> None:
    engine = make_engine(gpus=0)
    engine.set_control(0, ns(2))
    engine.add_gpu(0, control_ns=ns(2))
    submit(engine, 0, 25)
    advance(engine, 0)
    # 25 - l(2) - 2 = 16
    assert next_event(engine) == 16
    assert advance(engine, 16) == ([Sent(0, 0, [0], 18, 24)], [])


def test_slack_opens_the_window_earlier_and_leaves_its_end() -> None:
    engine = make_engine(gpus=0)
    engine.set_slack(ns(3))
    submit(engine, 0, 25)
    advance(engine, 0)
    assert next_event(engine) == 15
    advance(engine, 15)
    assert next_event(engine) == 19.000001


def test_eager_dispatches_at_once() -> None:
    engine = make_engine(policy="eager")
    submit(engine, 0, 25)
    assert advance(engine, 0) == ([Sent(0, 0, [0], 0, 6)], [])


# Which GPU, which model


def test_the_open_gpu_of_lowest_rank_is_used() -> None:
    engine = make_engine(models=2, gpus=0)
    for rank in (5, 2, 9):
        engine.add_gpu(0, rank=rank)
    submit(engine, 0, 25)
    assert advance(engine, 18) == ([Sent(0, 1, [0], 18, 24)], [])
    submit(engine, 18, 26, model=1)
    # GPU 1 is busy until 24; rank 5 comes next.
    assert advance(engine, 19) == ([Sent(1, 0, [1], 19, 25)], [])


def test_of_two_ready_models_the_one_whose_window_closes_first_gets_the_freed_gpu() -> None:
    engine = make_engine(models=3)
    submit(engine, 0, 24)
    assert advance(engine, 17) == ([Sent(0, 0, [0], 17, 23)], [])
    submit(engine, 17, 29.5, model=1)
    submit(engine, 17, 29, model=2)
    # The windows are 22.5 to 23.5 and 22 to 23.
    assert advance(engine, 22.5) == ([], [])
    assert next_event(engine) == 23
    assert advance(engine, 23) == ([Sent(2, 0, [2], 23, 29)], [])
    assert advance(engine, 23.6) == ([], [1])


def test_a_gpu_on_which_no_request_could_be_in_time_is_passed_over() -> None:
    engine = make_engine(gpus=0)
    engine.update_profile(0, 0, 1, table(1, 11))
    engine.add_gpu(0, gpu_class=1)
    engine.add_gpu(0, gpu_class=0)
    submit(engine, 0, 25)
    # At 18 the slow GPU of lower rank would end at 30.
    assert advance(engine, 18) == ([Sent(0, 1, [0], 18, 24)], [])


def test_where_only_a_slow_gpu_is_present_its_latency_sets_the_window() -> None:
    engine = make_engine(gpus=0)
    engine.update_profile(0, 0, 1, table(1, 11))
    engine.add_gpu(0, gpu_class=1)
    submit(engine, 0, 25)
    advance(engine, 0)
    # 25 - 13
    assert next_event(engine) == 12
    assert advance(engine, 12) == ([Sent(0, 0, [0], 12, 24)], [])


# Forming the batch. One GPU and no known rate: the target is 7.


def test_a_batch_grows_beyond_its_target_while_the_first_deadline_holds() -> None:
    engine = make_engine(gpus=0)
    submit(engine, 0, *[25] * 10)
    engine.add_gpu(0)
    advance(engine, 0)
    # 25 - l(11) = 9; l(10) = 15 ends at 24.
    assert next_event(engine) == 9
    assert advance(engine, 9) == ([Sent(0, 0, list(range(10)), 9, 24)], [])


def test_a_late_batch_grows_less() -> None:
    engine = make_engine(gpus=0)
    submit(engine, 0, *[25] * 10)
    engine.add_gpu(ns(11))
    # From 11 on, l(9) = 14 ends at 25. The tenth request cannot wait until then.
    assert advance(engine, 11) == ([Sent(0, 0, list(range(9)), 11, 25)], [])
    assert advance(engine, 25) == ([], [9])


def test_a_head_that_the_batch_would_make_late_is_dropped() -> None:
    engine = make_engine(gpus=0)
    submit(engine, 0, 20, 22, 22, 22, 22)
    engine.add_gpu(ns(12))
    # All five end at 12 + l(5) = 22: too late for the head. The other four end at 21: also too late for it.
    assert advance(engine, 12) == ([Sent(0, 0, [1, 2, 3, 4], 12, 21)], [0])


def test_a_skipped_head_rejoins_where_the_smaller_batch_is_in_time_for_it() -> None:
    engine = make_engine(gpus=0)
    submit(engine, 0, 21, 22, 22, 22, 22)
    engine.add_gpu(ns(12))
    # Five end at 12 + l(5) = 22, too late for the head; four end at 21, so the head is one of the four.
    assert advance(engine, 12) == ([Sent(0, 0, [0, 1, 2, 3], 12, 21)], [])
    assert engine.queued(0) == 1


def test_a_skipped_head_is_dropped_when_it_could_not_run_alone() -> None:
    engine = make_engine(gpus=0)
    submit(engine, 0, 14, 40, 40, 40, 40)
    # Five end at 5 + 10 = 15, so the head is skipped; alone it can start until 8.
    assert advance(engine, 5) == ([], [])
    assert next_event(engine) == 8.000001
    assert advance(engine, 8.000001) == ([], [0])
    # The others: 40 - l(5) = 30.
    assert next_event(engine) == 30


def test_the_target_follows_the_measured_rate() -> None:
    engine = make_engine(policy="eager", gpus=8)
    advance(engine, 0)
    # 1.125 (b + 5) <= 25
    assert engine.target(0) == 17
    for t in range(201):
        submit(engine, t, t + 25)
        advance(engine, t)
    # 201 requests in 8 SLOs = 200 ms, n > 1: b + 5 + b/1.005 <= 25
    assert engine.target(0) == 10


def test_latest_waits_until_the_window_closes() -> None:
    engine = make_engine(policy="latest")
    submit(engine, 0, 25)
    # One request: the window closes at 25 - l(1) = 25 - 6 = 19 ms; deferred would start at 25 - l(2) = 18 ms.
    assert engine.next_event() == 0
    engine.advance(0)
    assert engine.next_event() == ns(19)


def test_timeout_starts_when_the_head_has_waited_its_fraction() -> None:
    engine = make_engine(policy="timeout(0.2)")
    assert engine.policy == "timeout(0.2)"
    submit(engine, 0, 25)
    engine.advance(0)
    assert engine.next_event() == ns(5)


def test_target_starts_with_the_target_batch() -> None:
    engine = make_engine(policy="target")
    engine.advance(0)
    target = engine.target(0)
    submit(engine, 0, *[25] * (target - 1))
    assert len(engine.advance(0).batches) == 0
    submit(engine, 0, 25)
    assert engine.advance(0).batches["size"].tolist() == [target]


def test_adaptive_aims_for_a_part_of_the_batch_of_evenly_spaced_arrivals() -> None:
    engine, adaptive = make_engine(), make_engine(policy="adaptive")
    engine.advance(0)
    adaptive.advance(0)
    assert adaptive.target(0) == int((1 - window.SHORT) * engine.target(0) + 0.5)


def test_adaptive_starts_early_on_an_idle_gpu_once_batches_have_waited() -> None:
    engine = make_engine(policy="adaptive")
    engine.state.g["packed"] = 0  # no GPU starts batches at once
    engine.state.g["waiting"] = 0.001  # half of FULL_SHARE: up to half an SLO early, 12.5 ms
    submit(engine, 0, 25)
    assert len(engine.advance(0).batches) == 0
    assert engine.next_event() == ns(5.5)
    assert engine.advance(ns(5.5)).batches["size"].tolist() == [1]


def test_adaptive_starts_the_model_early_whose_window_closes_first() -> None:
    engine = make_engine(models=2, policy="adaptive")
    engine.state.g["waiting"] = 1.0
    submit(engine, 0, 25, model=0)
    submit(engine, 0, 24, model=1)
    assert engine.advance(0).batches["model"].tolist() == [1]


def test_adaptive_counts_a_batch_that_waited_for_a_gpu() -> None:
    engine = make_engine(models=2, policy="adaptive")
    submit(engine, 0, 25, model=0)
    submit(engine, 0, 25, model=1)
    # Both windows open at 18 ms; one GPU: the second batch starts at 24 ms, too late for its deadline of 25 ms.
    assert len(engine.advance(ns(18)).batches) == 1
    assert engine.state.g["waiting"][0] == 0.0
    assert len(engine.advance(ns(24)).drops) == 1
    assert engine.state.g["waiting"][0] == 0.01
