"""What is learned from recorded runs."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from autoscale.policies.decision import Memory, Settings
from autoscale.policies.forecast import DAY_STEPS, METHODS
from symphony_dask.engine.latency_profile import LatencyProfile
from symphony_dask.errors import BadInput
from symphony_dask.trace import TraceWriter
from workloads.policy_trials.learn import learn


def record(folder: Path, started_at: str, minutes: list[int]) -> None:
    described = {
        "started_at": started_at,
        "models": [{"name": "m", "slo_ns": 50_000_000, "profiles": {"gpu": LatencyProfile(1, 5).to_dict()}}],
    }
    arrivals = np.sort(np.concatenate([np.linspace(0, 59e9, n) + 60e9 * i for i, n in enumerate(minutes)]))
    with TraceWriter(folder, described) as writer:
        arrivals = arrivals.astype(np.int64)
        models = np.zeros(len(arrivals), np.int32)
        writer.write({"arrival_ns": arrivals, "model": models, "deadline_ns": arrivals + 50_000_000}, ["m"])


def test_a_course_is_learned_from_recorded_runs_by_their_time_of_day(tmp_path):
    record(tmp_path / "yesterday", "2026-03-01T12:00:00+00:00", [6000, 12000])
    record(tmp_path / "today", "2026-03-02T11:58:00+00:00", [600])
    now = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)
    course = learn([tmp_path / "yesterday", tmp_path / "today"], Settings(), now).course
    # From the first known minute on: yesterday at 12:00 and 12:01, a day without a run, today at 11:58, and 11:59.
    assert len(course.demand) == DAY_STEPS
    # 100 req/s at b = 5 cost 10 / 5 ms each; 200 at b = 25 / 3 cost 1.6 ms; 10 at b = 1.45 / 1.01.
    assert course.demand[0] == pytest.approx(100 * 10e-3 / 5)
    assert course.demand[1] == pytest.approx(200 * 1.6e-3)
    assert course.demand[-2:] == (pytest.approx(10 * (1.45 / 1.01 + 5) * 1e-3 / (1.45 / 1.01)), 0.0)
    assert course.method in METHODS


def test_what_is_no_run_cannot_be_learned_from(tmp_path):
    with pytest.raises(BadInput):
        learn([tmp_path / "nothing"], Settings())


def test_runs_of_long_ago_teach_nothing(tmp_path):
    record(tmp_path / "old", "2025-03-01T12:00:00+00:00", [600])
    assert learn([tmp_path / "old"], Settings(), datetime(2026, 3, 2, tzinfo=UTC)) == Memory()


def test_a_margin_is_learned_from_bursts_in_recorded_runs(tmp_path):
    # One minute in 25 has three times the load of the others: 4.5 GPUs, at 60 ms a request.
    record(tmp_path / "bursty", "2026-03-01T12:00:00+00:00", [4500 if i % 25 == 24 else 1500 for i in range(200)])
    record(tmp_path / "calm", "2026-03-01T12:00:00+00:00", [1500] * 200)
    settings, now = Settings(headroom=0.0), datetime(2026, 3, 1, 15, 20, tzinfo=UTC)
    profiles = {"m": LatencyProfile(10, 50)}
    margins = [
        learn([tmp_path / name], settings, now, profiles).course.shortfall.margin(1.0, settings.burst_miss)
        for name in ("bursty", "calm")
    ]
    assert margins[0] > 1.2
    assert margins[1] == 1.0
