from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from symphony_dask.engine.latency_profile import LatencyProfile
from symphony_dask.errors import BadInput
from symphony_dask.trace.schema import Outcome
from symphony_dask.units import NS_PER_MS
from workloads.baselines import BASELINES
from workloads.baselines.nexus import CannotPlace
from workloads.baselines.replicas import Replicas, in_proportion, spread_evenly
from workloads.baselines.shepherd import shepherd
from workloads.simulation.result import SimModel, Simulated
from workloads.traces.synthetic_arrivals import assign, gamma

OK, LATE, DROPPED = Outcome.OK, Outcome.LATE, Outcome.DROPPED

#: l(b) = b + 4 ms, which all cases worked out by hand use.
PLAIN = LatencyProfile(1, 4)

MIX = [
    SimModel("short", LatencyProfile(1.053, 5.072), 25 * NS_PER_MS),
    SimModel("small", LatencyProfile(1, 4, max_batch=4), 40 * NS_PER_MS),
    SimModel("long", LatencyProfile(5.090, 18.368), 150 * NS_PER_MS),
]


def simulate(
    name: str,
    arrivals_ms: Sequence[float],
    choices: Sequence[int] | None = None,
    *,
    slos_ms: Sequence[float] = (100,),
    gpus: int = 1,
    profile: LatencyProfile = PLAIN,
    **options: Any,
) -> Simulated:
    models = [SimModel(f"m{m}", profile, round(slo * NS_PER_MS)) for m, slo in enumerate(slos_ms)]
    arrivals_ns = np.array([round(at * NS_PER_MS) for at in arrivals_ms], np.int64)
    which = np.array(choices or [0] * len(arrivals_ms), np.int32)
    baseline: Any = BASELINES[name]
    return baseline(models, gpus, arrivals_ns, which, **options)


def batches(result: Simulated) -> list[tuple[int, int, int, float, float]]:
    """(gpu, model, size, start in ms, end in ms) of each batch."""
    start, end = result.batch_start_ns / NS_PER_MS, result.batch_end_ns / NS_PER_MS
    columns = (result.batch_gpu, result.batch_model, result.batch_size, start, end)
    return list(zip(*(column.tolist() for column in columns), strict=True))


def mixed(name: str, rate_hz: float = 900, gpus: int = 6) -> tuple[Simulated, np.ndarray, np.ndarray]:
    arrivals_ns = gamma(rate_hz, seconds=4, shape=0.3, seed=5)
    choices = assign(len(arrivals_ns), [0.6, 0.3, 0.1], seed=5)
    return BASELINES[name](MIX, gpus, arrivals_ns, choices), arrivals_ns, choices


@pytest.mark.parametrize("name", BASELINES)
class TestEveryBaseline:
    def test_every_request_ends_once_and_in_a_batch_of_its_model(self, name: str) -> None:
        result, arrivals_ns, choices = mixed(name)
        served = result.finish_ns >= 0
        slo_ns = np.array([model.slo_ns for model in MIX])[choices]
        in_time = result.finish_ns <= arrivals_ns + slo_ns
        assert (result.outcome[~served] == DROPPED).all()
        assert (result.outcome[served] == np.where(in_time[served], OK, LATE)).all()
        whole = self.whole(result)
        for m in range(len(MIX)):
            ends = np.repeat(result.batch_end_ns, result.batch_size)[np.repeat(whole, result.batch_size)]
            of_model = np.repeat(result.batch_model, result.batch_size)[np.repeat(whole, result.batch_size)] == m
            assert sorted(ends[of_model]) == sorted(result.finish_ns[served & (choices == m)])

    def test_no_request_is_run_before_it_comes(self, name: str) -> None:
        result, arrivals_ns, choices = mixed(name)
        for m, model in enumerate(MIX):
            mine = (result.finish_ns >= 0) & (choices == m)
            assert (result.finish_ns[mine] - arrivals_ns[mine] >= model.profile.latency_ns()[1]).all()

    def test_a_gpu_runs_one_batch_at_a_time(self, name: str) -> None:
        result, _, _ = mixed(name)
        assert set(result.batch_gpu) <= set(range(6))
        for gpu in range(6):
            mine = result.batch_gpu == gpu
            assert (result.batch_start_ns[mine][1:] >= result.batch_end_ns[mine][:-1]).all()

    def test_a_batch_is_no_larger_than_its_profile_allows_and_takes_as_long_as_it_says(self, name: str) -> None:
        result, _, _ = mixed(name)
        for m, model in enumerate(MIX):
            sizes = result.batch_size[result.batch_model == m]
            assert 1 <= sizes.min() <= sizes.max() <= model.profile.max_batch
        whole = self.whole(result)
        assert whole.all() or name == "shepherd"
        assert (result.batch_end_ns - result.batch_start_ns <= self.latency(result)).all()

    def test_the_same_arrivals_give_the_same_tables(self, name: str) -> None:
        first, second = mixed(name)[0], mixed(name)[0]
        assert first.outcome.tobytes() == second.outcome.tobytes()
        assert first.finish_ns.tobytes() == second.finish_ns.tobytes()
        assert batches(first) == batches(second)
        assert first.span_ns == second.span_ns

    def test_batches_come_in_order_of_start(self, name: str) -> None:
        assert (np.diff(mixed(name)[0].batch_start_ns) >= 0).all()

    def test_input_that_does_not_fit_is_named(self, name: str) -> None:
        run = BASELINES[name]
        at, to = np.array([0, 5], np.int64), np.zeros(2, np.int32)
        with pytest.raises(BadInput, match="gpus is 0"):
            run(MIX, 0, at, to)
        with pytest.raises(BadInput, match="no models"):
            run([], 1, at, to)
        with pytest.raises(BadInput, match="2 arrivals and 1 choices"):
            run(MIX, 1, at, to[:1])
        with pytest.raises(BadInput, match="arrivals_ns falls"):
            run(MIX, 1, at[::-1], to)
        with pytest.raises(BadInput, match="there are 3 models"):
            run(MIX, 1, at, to + 3)

    @staticmethod
    def latency(result: Simulated) -> np.ndarray:
        tables = [model.profile.latency_ns() for model in MIX]
        return np.array([tables[m][b] for m, b in zip(result.batch_model, result.batch_size, strict=True)])

    def whole(self, result: Simulated) -> np.ndarray:
        """Which batches were not preempted."""
        return result.batch_end_ns - result.batch_start_ns == self.latency(result)


class TestClockwork:
    def test_commits_powers_of_two_to_a_schedule_ten_ms_long(self) -> None:
        # At 1 ms the schedule ends at 5: three requests become batches of 2 and 1, up to 16. The request of 5 ms has to
        # wait until 16 is 10 ms away, and by then another has come.
        result = simulate("clockwork", [0, 1, 1, 1, 5, 6])
        assert batches(result) == [(0, 0, 1, 0, 5), (0, 0, 2, 5, 11), (0, 0, 1, 11, 16), (0, 0, 2, 16, 22)]

    def test_runs_the_strategy_with_the_earliest_latest_start_first(self) -> None:
        # Model 0 must start by 51 - 5 = 46 ms, model 1 by 31 - 5 = 26 ms.
        result = simulate("clockwork", [0, 1, 1], [0, 0, 1], slos_ms=(50, 30))
        assert [batch[1] for batch in batches(result)] == [0, 1, 0]

    def test_a_batch_of_more_has_to_start_earlier_and_so_goes_first(self) -> None:
        # Both have the deadline 51 ms: model 1 fills a batch of 2 and must start by 45 ms, model 0 by 46 ms.
        result = simulate("clockwork", [0, 1, 1, 1], [0, 0, 1, 1], slos_ms=(50, 50))
        assert [batch[1:3] for batch in batches(result)] == [(0, 1), (1, 2), (0, 1)]

    def test_drops_what_cannot_meet_its_deadline(self) -> None:
        # The second would run from 5 to 10 ms; its deadline is 9.5.
        assert simulate("clockwork", [0, 0.5], slos_ms=(9,)).outcome.tolist() == [OK, DROPPED]

    def test_a_schedule_of_no_length_commits_a_batch_when_its_gpu_is_free(self) -> None:
        result = simulate("clockwork", [0, 1, 1, 1, 5, 6], ahead_ns=0)
        assert batches(result) == [(0, 0, 1, 0, 5), (0, 0, 4, 5, 13), (0, 0, 1, 13, 18)]
        assert simulate("clockwork", [0, 1, 1, 1], max_batch=2).batch_size.tolist() == [1, 2, 1]

    def test_never_runs_more_than_sixteen(self) -> None:
        assert simulate("clockwork", [0] * 40).batch_size.tolist() == [16, 16, 8]


class TestNexus:
    def test_a_gpu_is_full_at_batches_of_half_the_slo(self) -> None:
        # l(6) = 10 ms is half of 20 ms: 600 requests/s a GPU. 24 requests in 24 ms need two.
        with pytest.raises(CannotPlace, match="needs 2"):
            simulate("nexus", range(25), slos_ms=(20,))
        assert simulate("nexus", range(25), slos_ms=(20,), gpus=2).count(OK) == 25

    def test_models_that_need_more_than_half_a_gpu_do_not_share_one(self) -> None:
        # 400 requests/s: b = 5 is the largest with (b - 1)/0.4 + b + 4 <= 20, so d = 11 ms, of which a batch takes 9.
        arrivals, choices = zip(*[(2.5 * k, m) for k in range(41) for m in range(3)], strict=True)
        with pytest.raises(CannotPlace, match=r"cannot place 3 models at 1230 requests/s on 2 GPUs: .* needs 3"):
            simulate("nexus", arrivals, choices, slos_ms=(20,) * 3, gpus=2)
        assert set(simulate("nexus", arrivals, choices, slos_ms=(20,) * 3, gpus=3).batch_gpu) == {0, 1, 2}

    def test_models_that_need_little_share_a_gpu_in_turn(self) -> None:
        result = simulate("nexus", [0, 0, 0, 1, 200], [0, 1, 2, 0, 0], slos_ms=(100,) * 3)
        assert [batch[1] for batch in batches(result)] == [0, 1, 2, 0, 0]

    def test_drops_the_head_that_cannot_wait_for_the_whole_window(self) -> None:
        # At 20 ms the head, due at 26, could run alone, but a window of 6 ends at 30: dropped; the other 5 end at 29.
        result = simulate("nexus", [0] * 6 + [1] * 6 + [6] + [12] * 5 + [60], slos_ms=(20,))
        assert batches(result) == [(0, 0, 6, 0, 10), (0, 0, 6, 10, 20), (0, 0, 5, 20, 29), (0, 0, 1, 60, 65)]
        assert np.flatnonzero(result.outcome == DROPPED).tolist() == [12]

    def test_a_model_too_slow_for_half_its_slo_cannot_be_placed(self) -> None:
        with pytest.raises(CannotPlace, match="more than half of its SLO"):
            simulate("nexus", [0, 1], slos_ms=(9,))

    def test_requests_go_to_gpus_in_proportion(self) -> None:
        replicas = Replicas(np.array([0, 0]), np.array([0, 1, 2]))
        assert in_proportion(np.zeros(6, np.int32), replicas, np.array([2.0, 1.0])).tolist() == [0, 1, 0, 0, 1, 0]


class TestShepherd:
    def test_preempts_for_a_batch_at_least_lambda_times_as_large_which_takes_in_the_running_one(self) -> None:
        # With the running request, 2 and 3 are too few at 1 ms, and 4 > 3.03 begin anew; the last waits.
        result = simulate("shepherd", [0, 1, 1, 1, 2])
        assert batches(result) == [(0, 0, 1, 0, 1), (0, 0, 4, 1, 9), (0, 0, 1, 9, 14)]
        assert result.finish_ns.tolist() == [9 * NS_PER_MS] * 4 + [14 * NS_PER_MS]
        assert result.gpu_seconds == pytest.approx(0.014)

    def test_a_running_batch_that_could_not_end_in_time_again_is_not_preempted_by_its_own_model(self) -> None:
        # Begun anew at 4 ms the first request would end at 9 ms at the soonest; it is due at 8.
        result = simulate("shepherd", [0, 4, 4, 4, 4], slos_ms=(8,), batch="head")
        assert [batch[2] for batch in batches(result)] == [1, 3]
        assert result.outcome.tolist() == [OK, OK, OK, OK, DROPPED]

    def test_drops_a_preempted_request_that_can_no_longer_be_in_time(self) -> None:
        # Another model's 4 stop it at 4 ms; it is due at 8 and would take 5.
        result = simulate("shepherd", [0, 4, 4, 4, 4], [0, 1, 1, 1, 1], slos_ms=(8, 50))
        assert result.outcome.tolist() == [DROPPED, OK, OK, OK, OK]

    def test_preempted_requests_queue_again_in_order_of_arrival(self) -> None:
        # At 1 ms a batch of 1 becomes one of 4; at 3 ms 13 of another model stop that. All of the first then run.
        result = simulate("shepherd", [0] + [1] * 4 + [3] * 13, [0] * 5 + [1] * 13, slos_ms=(100, 100))
        assert batches(result) == [(0, 0, 1, 0, 1), (0, 0, 4, 1, 3), (0, 1, 13, 3, 20), (0, 0, 5, 20, 29)]

    def test_preempted_requests_count_as_arrivals(self) -> None:
        # Four of model 2 stop the request on GPU 0, which as an arrival finds no batch that it could replace.
        result = simulate("shepherd", [0, 0, 1, 1, 1, 1], [0, 1, 2, 2, 2, 2], slos_ms=(90,) * 3, gpus=2)
        assert batches(result) == [(0, 0, 1, 0, 1), (1, 1, 1, 0, 5), (0, 2, 4, 1, 9), (1, 0, 1, 5, 10)]

    def test_runs_the_largest_batch_of_all_models(self) -> None:
        result = simulate("shepherd", [0, 1, 2, 2], [0, 0, 1, 1], slos_ms=(50, 90))
        assert [batch[1:3] for batch in batches(result)] == [(0, 1), (1, 2), (0, 1)]

    @pytest.mark.parametrize(("batch", "sizes", "dropped"), [("head", [1, 3, 3, 2], []), ("largest", [1, 3, 4], [4])])
    def test_the_head_limits_the_batch_unless_any_run_of_requests_may_be_taken(
        self, batch: str, sizes: list[int], dropped: list[int]
    ) -> None:
        # At 12 ms the head, due at 19.5, allows a batch of 3; without it 4 can run, and then it is too late for it.
        arrivals_ns = np.array([0, 1, 1, 1, 5.5, 11, 11, 11, 11]) * NS_PER_MS
        models, choices = [SimModel("m", PLAIN, 14 * NS_PER_MS)], np.zeros(9, np.int32)
        result = shepherd(models, 1, arrivals_ns.astype(np.int64), choices, batch=batch, preempt=math.inf)
        assert result.batch_size.tolist() == sizes
        assert np.flatnonzero(result.outcome == DROPPED).tolist() == dropped

    def test_an_expired_request_is_in_no_candidate(self) -> None:
        # At 5 ms the second could end at 10 ms; it is due at 9.
        assert simulate("shepherd", [0, 1, 2], slos_ms=(8,)).outcome.tolist() == [OK, DROPPED, OK]

    def test_choices_that_do_not_exist_are_named(self) -> None:
        with pytest.raises(BadInput, match=r"batch='tail', preempt=3\.03: give one of largest, head"):
            shepherd(MIX, 1, np.zeros(1, np.int64), np.zeros(1, np.int32), batch="tail")


class TestReplicaTimeout:
    @staticmethod
    def simulate(*args: Any, **options: Any) -> Simulated:
        """With a time-out of a quarter of the SLO, and any batch that takes no longer than the SLO."""
        return simulate("replica-timeout", *args, settings=[(1.0, 0.25)], **options)

    def test_a_replica_waits_for_a_quarter_of_the_slo(self) -> None:
        result = self.simulate([0, 1, 2], slos_ms=(40,), gpus=2)
        assert batches(result) == [(0, 0, 2, 10, 16), (1, 0, 1, 11, 16)]

    def test_a_full_batch_does_not_wait(self) -> None:
        result = self.simulate([0, 2, 3], slos_ms=(40,), profile=LatencyProfile(1, 4, max_batch=2))
        assert batches(result) == [(0, 0, 2, 2, 8), (0, 0, 1, 13, 18)]

    def test_a_busy_replica_takes_at_once_what_has_waited_long_enough(self) -> None:
        # The second and the third waited through the first batch, from 2 to 7 ms, and longer than 2 ms.
        result = self.simulate([0, 3, 4], slos_ms=(8,))
        assert batches(result) == [(0, 0, 1, 2, 7), (0, 0, 2, 7, 13)]

    def test_late_requests_are_run_all_the_same(self) -> None:
        result = self.simulate([0] * 10, slos_ms=(40,), profile=LatencyProfile(1, 4, max_batch=1))
        assert result.outcome.tolist() == [OK] * 8 + [LATE] * 2

    def test_models_that_share_a_gpu_take_turns_as_their_batches_are_formed(self) -> None:
        result = self.simulate([0, 1, 2], [1, 0, 1], slos_ms=(40, 40))
        assert batches(result) == [(0, 1, 2, 10, 16), (0, 0, 1, 16, 21)]

    def test_the_setting_with_the_best_attainment_is_the_result(self) -> None:
        # Due 12 ms after they come. At once: 0 to 5, and the three others together, 5 to 12. After 3 ms, all four run
        # from 3 to 11. After 6 ms they would end at 14, the first two too late.
        arrivals = [0, 1, 2, 3]
        waits = {part: simulate("replica-timeout", arrivals, slos_ms=(12,), settings=[(1, part)]) for part in (0, 0.5)}
        assert [waits[part].count(OK) for part in (0, 0.5)] == [4, 2]
        best = simulate("replica-timeout", arrivals, slos_ms=(12,), settings=[(1, 0.5), (1, 0)])
        assert batches(best) == batches(waits[0])
        with pytest.raises(BadInput, match="give one or more pairs"):
            simulate("replica-timeout", arrivals, settings=[])

    def test_gpus_are_split_evenly(self) -> None:
        assert spread_evenly(3, 7).model.tolist() == [0, 1, 2, 0, 1, 2, 0]
        shared = spread_evenly(5, 2)
        assert shared.model.tolist() == [0, 2, 4, 1, 3]
        assert shared.on_gpu.tolist() == [0, 3, 5]


class TestClipper:
    def test_the_batch_size_grows_by_one_while_batches_are_full_and_fast(self) -> None:
        result = simulate("clipper", [0] * 10)
        assert [batch[2:] for batch in batches(result)] == [(1, 0, 5), (2, 5, 11), (3, 11, 18), (4, 18, 26)]

    def test_the_batch_size_falls_by_a_tenth_when_a_batch_takes_longer_than_the_slo(self) -> None:
        # l(6) = 10 ms is the SLO; 7 take 11 ms, and 7 less a tenth is 6.
        result = simulate("clipper", [k / 2 for k in range(200)], slos_ms=(10,))
        assert result.batch_size[:9].tolist() == [1, 2, 3, 4, 5, 6, 7, 6, 7]

    def test_a_batch_that_is_not_full_says_nothing_about_the_batch_size(self) -> None:
        # Full batches of 1, 2; one of 2 where 3 are allowed; so the next may be 3 and not 4.
        assert simulate("clipper", [0, 1, 1, 6, 6, 12, 12, 12, 12]).batch_size.tolist() == [1, 2, 2, 3, 1]

    def test_only_requests_past_their_deadline_are_dropped(self) -> None:
        # Two run from 5 to 11 ms, although they are due at 8; the last is still queued at 11.
        assert simulate("clipper", [0] * 4, slos_ms=(8,)).outcome.tolist() == [OK, LATE, LATE, DROPPED]
