from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from workloads.cli.soak import soak
from workloads.live.soak import slopes


def sample(t_s: float, *processes: tuple[str, int, float]) -> dict[str, Any]:
    rows = [
        {"process": name, "pid": pid, "rss_mib": rss, "descriptors": 10, "threads": 5} for name, pid, rss in processes
    ]
    return {"t_s": t_s, "processes": rows, "latency_ms": {"fast": [10.0, 20.0 + t_s / 3600]}}


def test_growth_is_told_by_the_hour_and_without_the_warm_up() -> None:
    warm = [sample(t, ("scheduler", 1, 500.0 - t)) for t in (0.0, 60.0)]
    after = [sample(t, ("scheduler", 1, 100.0 + 2 * t / 3600)) for t in (600.0, 1200.0, 1800.0)]
    found = {(row["process"], row["what"]): row for row in slopes([*warm, *after], 600.0)}
    assert found["scheduler", "rss_mib"]["per_hour"] == pytest.approx(2.0)
    assert found["scheduler", "rss_mib"]["last"] == 101.0
    assert found["scheduler", "descriptors"]["per_hour"] == 0.0
    assert found["fast", "p99_ms"]["per_hour"] == pytest.approx(1.0)


def test_workers_that_come_and_go_have_one_slope_and_a_warm_up_each() -> None:
    first = [sample(t, ("worker", 1, 100.0 + 3 * t / 3600)) for t in (0.0, 600.0, 1200.0)]
    second = [sample(t, ("worker", 2, 300.0 + 3 * t / 3600)) for t in (2000.0, 2600.0, 3200.0)]
    second[0]["processes"][0]["rss_mib"] = 0.0
    (row,) = [row for row in slopes([*first, *second], 600.0) if row["what"] == "rss_mib"]
    assert row["per_hour"] == pytest.approx(3.0)


@pytest.mark.slow
def test_a_soak_of_half_a_minute_reports_all_that_it_measures(tmp_path: Path) -> None:
    arguments = ["--hours", "0.008", "--seed", "1", "--every", "5", "--folder", str(tmp_path / "soak"), "--json"]
    result = CliRunner().invoke(soak, arguments)
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found == json.loads((tmp_path / "soak" / "soak.json").read_text())
    assert found["requests"] > 500
    assert (found["late_ends"], found["wrong_answers"], found["hanging"]) == (0, 0, 0)
    assert found["samples"] >= 5
    assert len((tmp_path / "soak" / "samples.jsonl").read_text().splitlines()) == found["samples"]
    measured = {(row["process"], row["what"]) for row in found["slopes"]}
    processes = ("scheduler", "worker", "client")
    assert {(p, what) for p in processes for what in ("rss_mib", "descriptors", "threads")} <= measured
    assert ("fast", "p99_ms") in measured
