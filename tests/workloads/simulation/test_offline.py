"""The offline baseline: by hand, against an exhaustive search of tiny cells, and against what knows no arrivals."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import combinations

import numpy as np
import pytest

from symphony_dask.engine.latency_profile import LatencyProfile
from symphony_dask.errors import BadInput
from symphony_dask.trace.schema import Outcome
from symphony_dask.units import NS_PER_MS
from tests.helpers.command_line import printed, refusal
from workloads.baselines.offline import MOST_REQUESTS, ONLINE, offline
from workloads.compare.cells import Cell
from workloads.compare.compare import searches
from workloads.compare.goodput import mix_arrivals
from workloads.simulation.result import SimModel, Simulated
from workloads.simulation.simulate import simulate

#: l(b) = b + 4 ms.
PLAIN = LatencyProfile(1, 4)

L2 = LatencyProfile(1.053, 5.072)


def searched(arrivals_ms: Sequence[float], choices: Sequence[int] = (), *, slo_ms: float, gpus: int = 1) -> Simulated:
    """What the search alone finds."""
    which = np.array(choices or [0] * len(arrivals_ms), np.int32)
    models = [SimModel(f"m{m}", PLAIN, round(slo_ms * NS_PER_MS)) for m in range(which.max() + 1)]
    return offline(models, gpus, (np.array(arrivals_ms) * NS_PER_MS).astype(np.int64), which, online=())


def most_in_time(arrivals: Sequence[int], choices: Sequence[int], slo: int, gpus: int) -> int:
    """The most requests that any schedule has in time, l(b) = b + 4, by trying all batches in order of their starts.

    A batch may hold any requests of a model. It starts once all have come and a GPU is free, and no earlier than the
    one before it.
    """

    @cache
    def best(left: frozenset[int], free: tuple[int, ...]) -> int:
        found = 0
        for m in set(choices):
            mine = [r for r in sorted(left) if choices[r] == m]
            for size in range(1, len(mine) + 1):
                for batch in combinations(mine, size):
                    start = max(free[0], arrivals[batch[-1]])
                    end = start + size + 4
                    if end <= arrivals[batch[0]] + slo:
                        then = tuple(sorted([*(max(at, start) for at in free[1:]), end]))
                        found = max(found, size + best(left - set(batch), then))
        return found

    return best(frozenset(range(len(arrivals))), (0,) * gpus)


def test_holds_the_gpu_back_for_a_request_that_is_known_to_come() -> None:
    # At 0 the first could run alone until 5; the others, due at 10 and 11, would then end at 11, one too late.
    result = searched([0, 1, 2], slo_ms=9)
    assert result.batch_start_ns.tolist() == [2 * NS_PER_MS]
    assert result.batch_size.tolist() == [3]
    assert result.attainment == 1


def test_gives_up_the_request_that_would_cost_two_others() -> None:
    # The first alone keeps the GPU until 5; from then even one of the other two, due at 9.5, would end at 10.
    result = searched([0, 3.5, 3.5], slo_ms=6)
    assert result.outcome.tolist() == [Outcome.DROPPED, Outcome.OK, Outcome.OK]
    assert result.batch_start_ns.tolist() == [3.5 * NS_PER_MS]


@pytest.mark.parametrize(("models", "gpus"), [(1, 1), (1, 2), (2, 1), (2, 2), (3, 2)])
def test_finds_nearly_always_the_optimum_of_tiny_cells(models: int, gpus: int) -> None:
    drawn = np.random.default_rng(models * 10 + gpus)
    short = []
    for _ in range(25):
        arrivals = np.sort(drawn.integers(0, 14, 8)).tolist()
        choices = drawn.integers(0, models, 8).tolist()
        choices[0] = models - 1
        found = searched(arrivals, choices, slo_ms=12, gpus=gpus).count(Outcome.OK)
        short.append(most_in_time(arrivals, choices, 12, gpus) - found)
    assert min(short) >= 0
    assert sum(short) <= 2
    assert models > 1 or gpus > 1 or sum(short) == 0


@pytest.mark.parametrize(
    ("models", "gpus", "rate_hz", "shape"),
    [(1, 8, 5_500, 1.0), (1, 2, 1_200, 0.2), (5, 4, 1_900, 1.0), (5, 4, 1_900, 0.2)],
)
def test_the_search_alone_beats_every_policy_that_knows_no_arrivals(
    models: int, gpus: int, rate_hz: float, shape: float
) -> None:
    alike = [SimModel(f"m{m}", L2, 25 * NS_PER_MS) for m in range(models)]
    arrivals_ns, choices = mix_arrivals(models, rate_hz, 1.0, shape)
    found = offline(alike, gpus, arrivals_ns, choices, width=12, online=())
    for policy in ONLINE:
        assert found.attainment > simulate(alike, gpus, arrivals_ns, choices, policy=policy).attainment


def test_takes_the_schedule_of_a_policy_where_that_is_better() -> None:
    alike = [SimModel(f"m{m}", LatencyProfile(0.05, 10), 100 * NS_PER_MS) for m in range(30)]
    arrivals_ns, choices = mix_arrivals(30, 1_500, 1.0, 0.2)
    alone = offline(alike, 6, arrivals_ns, choices, width=1, online=())
    eager = simulate(alike, 6, arrivals_ns, choices, policy="eager")
    assert alone.attainment < eager.attainment
    both = offline(alike, 6, arrivals_ns, choices, width=1, online=["eager"])
    assert type(both) is Simulated
    assert both.attainment == eager.attainment


def test_all_batches_of_a_schedule_are_in_time() -> None:
    alike = [SimModel(f"m{m}", L2, 25 * NS_PER_MS) for m in range(3)]
    arrivals_ns, choices = mix_arrivals(3, 3_000, 0.5, 0.3)
    found = offline(alike, 2, arrivals_ns, choices, online=())
    assert set(found.outcome.tolist()) == {Outcome.OK, Outcome.DROPPED}
    assert found.batch_size.sum() == found.count(Outcome.OK)


def test_what_is_too_large_is_refused_at_once_with_its_size_and_the_remedy() -> None:
    n = MOST_REQUESTS + 1
    with pytest.raises(
        BadInput, match=r"at most 40,000 requests, 32 GPUs and 50 models, and these are 40,001, 1 and 1"
    ):
        offline([SimModel("m", L2, NS_PER_MS)], 1, np.zeros(n, np.int64), np.zeros(n, np.int32))
    cell = ("--profile", "1.053,5.072", "--slo", "25ms", "--gpus", "8")
    remedy = "these are 176,252, 8 and 1: give fewer seconds, a shorter trace or a smaller cell"
    assert remedy in refusal("goodput", *cell, "--policy", "offline")
    assert remedy in refusal("bound", *cell, "--offline", "--seconds", "20")
    with pytest.raises(BadInput, match="and 100: give fewer seconds"):
        searches([Cell("1.053,5.072", 100, 8, 25 * NS_PER_MS, 1.0)], ["offline"], 1, 200, None)


def test_the_command_puts_the_figure_beside_the_bound() -> None:
    cell = ("--profile", "1.053,5.072", "--slo", "25ms", "--gpus", "2")
    found = printed("bound", *cell, "--offline", "--seconds", "0.5", "--seeds", "1", "--json")
    assert found["offline_low_hz"] == found["offline_hz"] == found["offline_high_hz"]
    adaptive = printed("goodput", *cell, "--seconds", "0.5", "--seeds", "1", "--json")
    assert adaptive["goodput_hz"] < found["offline_hz"] < found["bound_hz"] == adaptive["bound_hz"]
    assert found["offline_batch"] > 5
