from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from click.testing import CliRunner

from autoscale.providers.prices import prices
from symphony_dask.cli.main import symphony
from symphony_dask.engine.latency_profile import LatencyProfile
from symphony_dask.errors import BadInput
from symphony_dask.trace import write_trace
from tests.helpers.runs.simulated import MS, crowd
from workloads.analysis.plan import on_classes, plan, scaled
from workloads.analysis.whatif import whatif
from workloads.simulation.workload import Workload, read_workload

#: Batches of one: 6 and 3 ms, and two never fit into an SLO of 8 and 5 ms.
SLOW, FAST = LatencyProfile(6, 0), LatencyProfile(3, 0)


def trace(folder: Path, gap_ms: float, n: int = 600) -> Path:
    """A request every ``gap_ms``."""
    arrivals = np.round(np.arange(n) * gap_ms * MS).astype(np.int64)
    write_trace(folder, pl.DataFrame({"model": ["m"] * n, "arrival_ns": arrivals}))
    return folder


def work(folder: Path, gap_ms: float, slo_ms: int = 8, **profiles: LatencyProfile) -> Workload:
    return on_classes(read_workload(trace(folder, gap_ms), slo_ns=slo_ms * MS), profiles)


def test_each_class_needs_as_many_gpus_as_its_time_a_request(tmp_path: Path) -> None:
    every_4_ms = work(tmp_path / "t", 4, slow=SLOW, fast=FAST)  # 1.5 and 0.75 GPUs' worth of work
    found = plan(every_4_ms, ["slow", "fast"], prices(["slow=1", "fast=3"]))
    assert [(row["gpu_class"], row["gpus"], row["usd_per_hour"]) for row in found["needed"]] == [
        ("slow", 2, 2.0),
        ("fast", 1, 3.0),
    ]
    assert found["cheapest"] == {
        "gpu_class": "slow", "mix": {"slow": 2}, "gpus": 2, "attainment": 1.0, "usd_per_hour": 2.0
    }  # fmt: skip
    assert found["label"] == "simulated"


def test_the_curve_holds_too_few_gpus_as_well(tmp_path: Path) -> None:
    found = plan(work(tmp_path / "t", 4, slow=SLOW), ["slow"], prices())
    by_gpus = {row["gpus"]: row for row in found["rows"]}
    assert not by_gpus[1]["enough"]
    assert by_gpus[1]["attainment"] == pytest.approx(2 / 3, abs=0.01)  # one of 6 ms every 4 ms
    assert by_gpus[2]["enough"]
    assert found["needed"][0]["monotone"]
    assert found["cheapest"]["usd_per_hour"] is None


def test_a_mix_is_found_where_it_is_cheaper_than_either_class(tmp_path: Path) -> None:
    every_2_ms = work(
        tmp_path / "t", 2, slo_ms=9, slow=SLOW, fast=FAST
    )  # 3 slow GPUs, or 1.5 fast ones, or one of each
    found = plan(every_2_ms, ["slow", "fast"], prices(["slow=1.2", "fast=2"]))
    assert [(row["gpu_class"], row["gpus"]) for row in found["needed"]] == [("slow", 3), ("fast", 2)]
    assert found["cheapest"]["mix"] == {"slow": 1, "fast": 1}
    assert found["cheapest"]["usd_per_hour"] == pytest.approx(3.2)


def test_gpus_are_rented_in_whole_instances(tmp_path: Path) -> None:
    many = work(tmp_path / "t", 0.6, **{"p4d.24xlarge": SLOW})  # 10 GPUs' worth of work, 8 an instance
    found = plan(many, ["p4d.24xlarge"], prices(["p4d.24xlarge=20"]))
    assert (found["cheapest"]["gpus"], found["cheapest"]["usd_per_hour"]) == (16, 40)
    assert [row["gpus"] % 8 for row in found["rows"]] == [0] * len(found["rows"])


def test_a_class_that_is_too_slow_is_said_to_be_never_enough(tmp_path: Path) -> None:
    found = plan(work(tmp_path / "t", 4, slo_ms=5, slow=SLOW), ["slow"], prices(["slow=1"]))
    assert found["needed"][0]["gpus"] is None
    assert found["needed"][0]["gpus_tried"] >= 4
    assert found["cheapest"] is None


def test_a_scaled_rate_keeps_the_order_and_number_of_requests(tmp_path: Path) -> None:
    twice = scaled(work(tmp_path / "t", 4, slow=SLOW), 2)
    assert twice.arrivals_ns[:3].tolist() == [0, 2 * MS, 4 * MS]
    assert len(twice.arrivals_ns) == 600
    with pytest.raises(BadInput, match="positive factor"):
        scaled(twice, 0)


def test_a_target_that_is_no_share_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="attainment 99 is no target"):
        plan(work(tmp_path / "t", 4, slow=SLOW), ["slow"], prices(), attainment=99)


def call(*arguments: str) -> Any:
    result = CliRunner().invoke(symphony, [*arguments, "--json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_the_plan_command_knows_instances_and_their_prices(tmp_path: Path) -> None:
    path = str(trace(tmp_path / "t", 4))
    found = call("plan", path, "--slo", "8ms", "--profile", "g4dn.xlarge=6,0", "--profile", "g5.xlarge=3,0")
    assert found["cheapest"]["mix"] == {"g5.xlarge": 1}
    assert found["cheapest"]["usd_per_hour"] == pytest.approx(1.006)
    assert {"gpu_class", "gpus", "attainment", "usd_per_hour"} <= set(found["rows"][0])
    text = CliRunner().invoke(symphony, ["plan", path, "--slo", "8ms", "--profile", "g5.xlarge=3,0"]).output
    assert "cheapest: 1 g5.xlarge, 100.000% in time, 1.01 USD/h" in text


def test_the_plan_command_does_without_profiles(tmp_path: Path) -> None:
    found = call("plan", str(trace(tmp_path / "t", 4)), "--attainment", "0.99")
    assert [row["gpu_class"] for row in found["needed"]] == ["g4dn.xlarge", "p3.2xlarge", "p4d.24xlarge"]
    assert found["cheapest"]["mix"] == {"g4dn.xlarge": 1}


def test_whatif_without_a_change_is_the_run_itself(tmp_path: Path) -> None:
    crowd(tmp_path / "run", policy="deferred")
    was, again, what = whatif(tmp_path / "run", prices())
    assert [row["name"] for row in (was, again, what)] == ["as it was", "simulated as it was", "what if"]
    assert was["gpus"] == {"gpu": 2}
    for key in ("requests", "attainment", "goodput_hz", "p50_ms", "p99_ms", "mean_batch", "busy_gpus"):
        assert again[key] == pytest.approx(was[key])
        assert what[key] == pytest.approx(was[key])


def test_whatif_more_gpus_and_a_longer_slo_serve_more(tmp_path: Path) -> None:
    crowd(tmp_path / "run", policy="deferred")
    was, _, more = whatif(tmp_path / "run", prices(["gpu=1"]), gpus=4)
    assert more["attainment"] > was["attainment"]
    assert (was["usd_per_hour"], more["usd_per_hour"]) == (2, 4)
    _, _, longer = whatif(tmp_path / "run", prices(), slo_ns=200 * MS)
    assert longer["attainment"] > was["attainment"]
    _, _, half = whatif(tmp_path / "run", prices(), scale=0.5)
    assert half["attainment"] > was["attainment"]


def test_whatif_of_a_trace_needs_gpus_and_has_one_row(tmp_path: Path) -> None:
    path = trace(tmp_path / "t", 4)
    with pytest.raises(BadInput, match="does not say which GPUs served it"):
        whatif(path, prices())
    (row,) = whatif(path, prices(), gpus=2, profile=SLOW, slo_ns=8 * MS)
    assert (row["label"], row["attainment"]) == ("simulated", 1.0)


def test_whatif_on_an_unknown_class_asks_for_its_profile(tmp_path: Path) -> None:
    crowd(tmp_path / "run")
    with pytest.raises(BadInput, match="no profile on GPU class 'fast': give --profile fast="):
        whatif(tmp_path / "run", prices(), gpus=[("fast", 2)])


def test_the_whatif_command_prints_a_table_and_rows(tmp_path: Path) -> None:
    crowd(tmp_path / "run", policy="deferred")
    found = call(
        "whatif", str(tmp_path / "run"), "--policy", "eager", "--gpus", "3", "--slo", "100ms", "--scale", "0.5"
    )
    assert [(row["label"], row["policy"]) for row in found["rows"]] == [
        ("simulated", "deferred"),
        ("simulated", "deferred"),
        ("simulated", "eager"),
    ]
    assert "what if" in CliRunner().invoke(symphony, ["whatif", str(tmp_path / "run")]).output
