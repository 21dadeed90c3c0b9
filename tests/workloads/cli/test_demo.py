"""``symphony demo``, the whole of it."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from symphony_dask.trace import open_run
from tests.helpers.command_line import printed
from workloads.live.demo import POLICIES


@pytest.mark.slow
def test_the_demo_serves_the_trace_under_each_policy_and_waiting_needs_fewer_gpus(tmp_path: Path) -> None:
    found = printed("demo", "--folder", str(tmp_path), "--json")
    for policy in POLICIES:
        recorded = open_run(found[policy]["run"])
        assert recorded.requests.select(pl.len()).collect().item() == found[policy]["client"]["requests"]
        assert found[policy]["attainment"] > 0.95
        assert found[policy]["wrong_answers"] == 0
    assert found["deferred"]["busy_gpus"] < 0.6 * found["eager"]["busy_gpus"]
    assert found["adaptive"]["busy_gpus"] < 0.8 * found["eager"]["busy_gpus"]


@pytest.mark.slow
def test_the_torch_demo_gives_the_networks_own_answers(tmp_path: Path) -> None:
    found = printed("demo", "--torch", "--folder", str(tmp_path), "--json")
    assert all(found[policy]["wrong_answers"] == 0 for policy in POLICIES)
    assert all(found[policy]["client"]["ok"] > 0 for policy in POLICIES)
