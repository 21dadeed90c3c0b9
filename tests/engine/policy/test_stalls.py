"""GPUs that stand still for a while: half a second after the stall's end attainment is what it is without the stall.

Where SLOs are long and GPUs busy it is not, and no estimate is to blame: requests that came during the stall can still
be in time, and what they take is not there for those that come after.
"""

from __future__ import annotations

import random

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, given, settings

from symphony_dask.engine.engine import POLICIES
from tests.helpers.engines.world import Stall, World, add, world

BEGIN = 1500.0

#: What stands still: all GPUs, the first one, the scheduler, or all of it.
WHAT: dict[str, tuple[tuple[int, ...] | None, bool]] = {
    "gpus": (None, False),
    "one gpu": ((0,), False),
    "scheduler": ((), True),
    "machine": (None, True),
}


def stalls_of(what: str, lengths: list[float], apart: float = 700.0) -> list[Stall]:
    gpus, host = WHAT[what]
    found, begin = [], BEGIN
    for length in lengths:
        found.append(Stall(begin, begin + length, gpus, host))
        begin += length + apart
    return found


def asked(
    policy: str, gpus: int, slos: list[float], room: float, load: float, stalls: list[Stall], end: float
) -> World:
    """Models of l(1) = SLO / room, l(b) = l(1) * (b + 2) / 3, that share ``load`` of what all GPUs can do."""
    w = world(policy, gpus, stalls, max_requests=8192)
    for slo in slos:
        l1 = slo / room
        most = max(b for b in range(1, 129) if b == 1 or l1 * (b + 2) / 3 * (1 + 1 / gpus) <= slo)
        rate = load * gpus / len(slos) * most / (l1 * (most + 2) / 3)
        rnd = random.Random(len(w.models))
        add(w, l1, slo, every=lambda rate=rate, rnd=rnd: rnd.uniform(0.5, 1.5) / rate, alpha=l1 / 3)
    w.run(end)
    return w


def in_time(w: World, begin: float, end: float) -> tuple[int, int]:
    """Of the requests that arrived between, how many were in time, and how many there were."""
    found = [ok for model in w.models.values() for arrival, ok in model.ended if begin <= arrival < end]
    return sum(found), len(found)


def check(policy: str, gpus: int, slos: list[float], room: float, load: float, stalls: list[Stall]) -> None:
    end = stalls[-1].end + 1500
    w = asked(policy, gpus, slos, room, load, stalls, end + max(slos))
    without = asked(policy, gpus, slos, room, load, [], end + max(slos))
    for stall, following in zip(stalls, [*(stall.begin for stall in stalls[1:]), end], strict=True):
        back, until = stall.end + 500, following - max(slos)
        ok, n = in_time(w, back, until)
        expected, _ = in_time(without, back, until)
        # Where the GPUs have too little time without a stall, too, a few requests more or less are chance.
        chance = max(1, 0.04 * n + 0.2 * (n - expected))
        assert ok >= expected - chance, f"{ok} of {n} in time from {back} to {until} ms, without {expected}"


@pytest.mark.parametrize("policy", ["adaptive", "deferred", "eager"])
@pytest.mark.parametrize("what", WHAT)
@pytest.mark.parametrize(
    ("gpus", "slos", "room", "load", "lengths"),
    [
        (1, [30.0], 1.2, 0.6, [100.0]),
        (2, [10.0, 25.0], 1.2, 0.6, [1000.0, 1000.0]),
        (2, [40.0, 100.0], 4.0, 0.8, [2000.0, 2000.0, 2000.0]),
        (3, [25.0, 100.0, 25.0, 500.0], 1.5, 0.1, [10_000.0]),
        (4, [50.0, 50.0, 200.0, 200.0], 3.0, 0.75, [500.0]),
    ],
)
def test_half_a_second_after_a_stall_attainment_is_back(
    policy: str, what: str, gpus: int, slos: list[float], room: float, load: float, lengths: list[float]
) -> None:
    check(policy, gpus, slos, room, load, stalls_of(what, lengths))


@pytest.mark.slow
@pytest.mark.timeout(1800)
@settings(max_examples=300, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    st.sampled_from(sorted(POLICIES)),
    st.sampled_from(sorted(WHAT)),
    st.integers(1, 4),
    st.lists(st.sampled_from([10.0, 25.0, 50.0, 100.0]), min_size=1, max_size=4),
    st.sampled_from([1.2, 1.5, 2.0, 5.0]),
    st.sampled_from([0.05, 0.3, 0.6, 0.75]),
    st.lists(st.sampled_from([100.0, 300.0, 1000.0, 2000.0]), min_size=1, max_size=3),
)
def test_so_it_is_after_three_hundred_kinds_of_stalls(
    policy: str, what: str, gpus: int, slos: list[float], room: float, load: float, lengths: list[float]
) -> None:
    check(policy, gpus, slos, room, load, stalls_of(what, lengths, apart=1000.0 + max(slos)))
