"""Model threads and the rank thread (rules at the top of ``workloads/parallel_engine/rank_thread.py`` and
``model_thread.py``), run in turn.

Time stands still until nobody has anything left to do, so that messages take no time.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pytest

from symphony_dask.engine import kernels
from symphony_dask.engine.engine import NEVER, Engine
from tests.helpers.engines.engines import make_engine, ns
from workloads.parallel_engine import model_thread, rank_thread
from workloads.parallel_engine.model_thread import Shard, make_shard
from workloads.parallel_engine.rank_thread import Ranks, make_ranks


class Batch(NamedTuple):
    """A batch with its requests by the numbers they were submitted under, in order; times in ns."""

    model: int
    gpu: int
    start: int
    end: int
    requests: tuple[int, ...]


class Outcome(NamedTuple):
    batches: list[Batch]
    dropped: set[int]


def poisson(rate_hz: int, seconds: float, models: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Arrivals in ns and the model of each."""
    rng = np.random.default_rng(seed)
    arrivals = (rng.exponential(1e9 / rate_hz, int(rate_hz * seconds)).cumsum()).astype(np.int64)
    return arrivals, rng.integers(0, models, len(arrivals), np.int32)


def coordination(*, threads: int, models: int, gpus: int, **options: object) -> tuple[Ranks, list[Shard], list[Engine]]:
    """``threads`` model threads with ``models`` models each."""
    engines = [make_engine(models=models, gpus=gpus, exact=False, **options) for _ in range(threads)]  # type: ignore[arg-type]
    r = make_ranks([models] * threads, gpus, 0, 0)
    return r, [make_shard(engine, r, j, j * models, 0) for j, engine in enumerate(engines)], engines


def settle(r: Ranks, shards: list[Shard], now: int, outcome: Outcome) -> None:
    """All that happens at ``now``."""
    worked = 1
    while worked:
        worked = 0
        for sh in shards:
            kernels.clear_output(sh.s)
            worked += model_thread.step(sh, now)
            members, drops = sh.s.members, sh.s.drops[: sh.s.g["n_drops"][0]]
            outcome.dropped.update(sh.s.req["request"][drops].tolist())
            for b in sh.s.batches[: sh.s.g["n_batches"][0]]:
                slots = members[b["offset"] : b["offset"] + b["size"]]
                requests = tuple(sh.s.req["request"][slots].tolist())
                model = sh.first + int(b["model"])
                outcome.batches.append(Batch(model, int(b["gpu"]), int(b["start"]), int(b["end"]), requests))
            worked += model_thread.report(sh)
        worked += rank_thread.step(r, now)


def run_coordinated(threads: int, models: int, gpus: int, arrivals: np.ndarray, choices: np.ndarray) -> Outcome:
    r, shards, engines = coordination(threads=threads, models=models // threads, gpus=gpus, max_requests=4096)
    outcome = Outcome([], set())
    i = 0
    while True:
        now = min(rank_thread.next_event(r), *(model_thread.next_event(sh) for sh in shards))
        now = min(now, int(arrivals[i])) if i < len(arrivals) else now
        if now >= NEVER:
            break
        while i < len(arrivals) and arrivals[i] <= now:
            j, m = divmod(int(choices[i]), models // threads)
            assert model_thread.submit(shards[j], now, m, now, now + ns(25), i) >= 0
            i += 1
        settle(r, shards, now, outcome)
    for engine in engines:
        engine.validate()
        assert engine.state.g["n_slots"][0] == 4096
    return outcome


def run_engine(models: int, gpus: int, arrivals: np.ndarray, choices: np.ndarray) -> Outcome:
    engine = make_engine(models=models, gpus=gpus, exact=True, max_requests=4096)
    engine.state.g["ticked_at"] = NEVER  # fairness in overload looks at all models at once: threads do without it
    outcome = Outcome([], set())
    names = engine.state.req["request"]
    i = 0
    while True:
        now = engine.next_event()
        now = min(now, int(arrivals[i])) if i < len(arrivals) else now
        if now >= NEVER:
            return outcome
        while i < len(arrivals) and arrivals[i] <= now:
            engine.submit(now, choices[i : i + 1].copy(), np.array([now + ns(25)]), np.array([i]))
            i += 1
        decisions = engine.advance(now)
        outcome.dropped.update(names[decisions.drops].tolist())
        for b in decisions.batches:
            slots = decisions.members[b["offset"] : b["offset"] + b["size"]]
            requests = tuple(names[slots].tolist())
            outcome.batches.append(Batch(int(b["model"]), int(b["gpu"]), int(b["start"]), int(b["end"]), requests))


@pytest.mark.parametrize(("threads", "rate_hz"), [(1, 1_500), (2, 1_500), (3, 3_000)])
def test_model_threads_and_a_rank_thread_decide_what_one_engine_decides(threads: int, rate_hz: int) -> None:
    arrivals, choices = poisson(rate_hz, 0.4, 6, seed=threads)
    one, several = run_engine(6, 3, arrivals, choices), run_coordinated(threads, 6, 3, arrivals, choices)
    assert several == one
    assert len(one.batches) > 50


def test_in_overload_every_request_ends_once_in_time_or_dropped_and_no_gpu_runs_two_batches_at_once() -> None:
    arrivals, choices = poisson(6_000, 0.2, 4, seed=1)
    outcome = run_coordinated(2, 4, 2, arrivals, choices)
    served = [request for batch in outcome.batches for request in batch.requests]
    assert len(served) == len(set(served))
    assert not outcome.dropped & set(served)
    assert len(served) + len(outcome.dropped) == len(arrivals)
    assert len(outcome.dropped) > 100
    for batch in outcome.batches:
        assert batch.end - batch.start == ns(len(batch.requests) + 5)
        assert batch.end <= arrivals[list(batch.requests)].min() + ns(25)
    for g in range(2):
        spans = [(b.start, b.end) for b in outcome.batches if b.gpu == g]
        assert all(end <= start for (_, end), (start, _) in pairwise(spans))


def test_a_model_is_reported_when_its_window_opens_and_granted_the_gpu_of_the_lowest_rank() -> None:
    r, shards, _ = coordination(threads=2, models=1, gpus=2)
    outcome = Outcome([], set())
    model_thread.submit(shards[1], ns(0), 0, ns(0), ns(25), 7)
    settle(r, shards, ns(0), outcome)
    assert model_thread.next_event(shards[1]) == ns(18)  # 25 - l(2)
    settle(r, shards, ns(17.9), outcome)
    assert outcome.batches == []
    settle(r, shards, ns(18), outcome)
    assert outcome.batches == [Batch(model=1, gpu=0, start=ns(18), end=ns(24), requests=(7,))]


def test_a_batch_is_due_when_both_its_window_was_open_and_the_gpu_free_however_late_it_is_looked_at() -> None:
    r, shards, _ = coordination(threads=1, models=2, gpus=1)
    outcome = Outcome([], set())
    sh = shards[0]
    model_thread.submit(sh, ns(0), 0, ns(0), ns(25), 0)
    settle(r, shards, ns(0), outcome)
    settle(r, shards, ns(18.5), outcome)  # due at 18
    assert sh.due[0] == ns(18)
    assert outcome.batches[-1].end == ns(24.5)
    model_thread.submit(sh, ns(21), 1, ns(20.5), ns(31), 1)  # arrived when its window (18 to 19 before 25) was open
    settle(r, shards, ns(21), outcome)
    settle(r, shards, ns(24.9), outcome)  # the GPU was free at 24.5
    assert sh.due[0] == ns(24.5)
    assert len(outcome.batches) == 2


def test_a_gpu_granted_to_a_model_that_is_no_longer_ready_goes_back_unused() -> None:
    r, shards, _ = coordination(threads=2, models=1, gpus=1)
    outcome = Outcome([], set())
    for request, j in enumerate((0, 1)):
        model_thread.submit(shards[j], ns(0), 0, ns(0), ns(25), request)
        model_thread.step(shards[j], ns(18))
        model_thread.report(shards[j])
    rank_thread.step(r, ns(18))  # grants the GPU to the first model, whose thread then stalls
    settle(r, shards, ns(22), outcome)  # and could not end by 25 any more
    assert outcome.dropped == {0, 1}
    assert outcome.batches == []
    model_thread.submit(shards[1], ns(22), 0, ns(22), ns(28), 2)
    settle(r, shards, ns(22), outcome)
    assert outcome.batches == [Batch(model=1, gpu=0, start=ns(22), end=ns(28), requests=(2,))]


def test_reports_that_find_the_ring_full_are_made_later() -> None:
    r, shards, _ = coordination(threads=1, models=100, gpus=100, max_requests=512)
    sh = shards[0]
    assert len(sh.reports.cells) == 256
    for i in range(3):  # each request is more urgent than those before, and moves the closing of an open window
        for m in range(100):
            model_thread.submit(sh, 0, m, 0, ns(7 - i / 10), 100 * i + m)
        model_thread.step(sh, 0)
        model_thread.report(sh)
    assert sh.n_listed[0] == 300 - 256
    outcome = Outcome([], set())
    settle(r, shards, 0, outcome)
    assert sh.n_listed[0] == 0
    assert sorted(batch.model for batch in outcome.batches) == list(range(100))


def test_the_adaptive_policy_is_refused() -> None:
    engine = make_engine(policy="adaptive", exact=False)
    with pytest.raises(ValueError, match="policy 'adaptive' needs all models in one thread"):
        make_shard(engine, make_ranks([1], 1, 0, 0), 0, 0, 0)
