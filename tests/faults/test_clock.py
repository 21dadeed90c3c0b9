"""The clock of a process jumps for those who read it, and is set right again."""

from __future__ import annotations

import time

import distributed.metrics
import pytest

from symphony_dask.clock import now_ns
from workloads.faults import clock


@pytest.mark.parametrize("by_s", [3600.0, -3600.0])
def test_a_jump_is_seen_wherever_the_wall_clock_is_read_but_by_deadlines(by_s: float) -> None:
    wall, read, lane = time.time(), distributed.metrics.time, now_ns()
    try:
        clock.shift(by_s)
        assert time.time() - wall == pytest.approx(by_s, abs=60)
        assert time.time_ns() / 1e9 - wall == pytest.approx(by_s, abs=60)
        assert distributed.metrics.time() - wall == pytest.approx(by_s, abs=60)
        clock.shift(2 * by_s)
        assert time.time() - wall == pytest.approx(2 * by_s, abs=60)
        assert 0 <= now_ns() - lane < 60 * 10**9
    finally:
        clock.shift(0)
    assert distributed.metrics.time is read
    assert time.time() - wall == pytest.approx(0, abs=60)
