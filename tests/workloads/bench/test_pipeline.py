"""``symphony bench pipeline``, small."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from symphony_dask.errors import BadInput
from workloads.bench.pipeline import bench_pipeline, bench_split
from workloads.cli.bench.group import bench


@pytest.mark.slow
def test_pipelines_and_models_are_measured_side_by_side() -> None:
    done = CliRunner().invoke(bench, ["pipeline", "--requests", "40", "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    cases = {row["case"]: row for row in found["rows"]}
    assert list(cases) == ["model", "two stages", "ensemble of two", "two models by hand"]
    assert cases["two stages"]["p50_ms"] > cases["model"]["p50_ms"]
    assert found["label"].startswith("measured")


@pytest.mark.slow
def test_a_split_and_halves_are_offered_the_same() -> None:
    found = bench_split(rates_hz=(50.0,), gpus=2, seconds=2.0)
    assert [row["case"] for row in found["rows"]] == ["split", "halves"]
    assert found["rows"][1]["budgets_ms"] == [50.0, 50.0]
    assert all(0 < row["attainment"] <= 1 for row in found["rows"])


def test_what_cannot_be_measured_is_refused() -> None:
    with pytest.raises(BadInput, match="requests=0"):
        bench_pipeline(requests=0)
    with pytest.raises(BadInput, match="gpus=0"):
        bench_split(gpus=0)
