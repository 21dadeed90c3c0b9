"""Runs that were damaged, or are somebody else's: every command that reads one ends by one line, or as it should."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.runs.damaged import COMMANDS, make_run
from workloads.analysis.verify import verify

OTHERS = [name for name in COMMANDS if name != "verify"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("damaged") / "run")


def look(run: Path, first: int, last: int, *names: str) -> dict[str, Any]:
    """How the commands end on runs damaged by these seeds, in a process of its own: forks need one without threads."""
    words = [sys.executable, "-m", "tests.helpers.runs.damaged", str(run), str(first), str(last), *names]
    found = subprocess.run(words, cwd=Path(__file__).parents[3], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    ended: dict[str, Any] = json.loads(found.stdout)
    return ended


def test_a_run_that_is_whole_is_verified(run: Path) -> None:
    found = verify(run)
    assert found.differing == 0
    assert found.decisions > 50


def test_verify_of_a_damaged_run_ends_in_one_line(run: Path) -> None:
    found = look(run, 0, 40, "verify")
    assert found["faults"] == []
    assert found["ended"]["verify: one line"] > 15


def test_other_commands_end_in_one_line_on_a_damaged_run(run: Path) -> None:
    found = look(run, 0, 3, *OTHERS)
    assert found["faults"] == []
    assert sum(found["ended"].values()) == 3 * len(OTHERS)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_so_it_is_with_a_thousand_damaged_runs(run: Path) -> None:
    found = look(run, 1000, 2000, "verify")
    assert found["faults"] == []
    assert found["ended"]["verify: one line"] > 400


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_so_it_is_with_a_hundred_damaged_runs_and_every_command(run: Path) -> None:
    assert look(run, 1000, 1100, *OTHERS)["faults"] == []
