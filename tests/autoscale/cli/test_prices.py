"""``symphony autoscale prices``."""

from __future__ import annotations

import json
from pathlib import Path

from click.testing import CliRunner

from symphony_dask.cli.main import symphony
from tests.helpers.command_line import printed


def test_prices_are_shown_and_written(tmp_path: Path) -> None:
    shown = printed("autoscale", "prices", "--json", "--out", str(tmp_path / "prices.json"))
    assert json.loads((tmp_path / "prices.json").read_text()) == shown
    assert "g5.xlarge" in CliRunner().invoke(symphony, ["autoscale", "prices"]).stdout
