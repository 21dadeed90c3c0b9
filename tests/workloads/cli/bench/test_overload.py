from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from workloads.cli.bench.overload import overload


@pytest.mark.slow
def test_goodput_does_not_collapse_in_overload(tmp_path: Path) -> None:
    picture = tmp_path / "overload.png"
    arguments = ["--times", "0.8", "--times", "5", "--seconds", "3", "--gpus", "2", "--png", str(picture), "--json"]
    result = CliRunner().invoke(overload, arguments)
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert [row["times"] for row in found["rows"]] == [0.8, 5.0]
    for row in found["rows"]:
        ends = sum(row[how] for how in ("ok", "late", "dropped", "rejected", "failed"))
        assert ends == row["requests"]
    assert found["least_share_of_peak"] > 0.8
    assert found["fairness"]["attainment"] > 0.8
    assert found["recovery"]["back_ms"] is not None
    assert picture.stat().st_size > 5_000
