"""What compiled code is kept under: code that checks bounds is never taken for code that does not, or the other way."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

#: Reads one row behind a heap: an IndexError where bounds are checked.
BEHIND = """
from symphony_dask.scheduling import heap
from symphony_dask.scheduling.compiled import CHECKED
one = heap.make_heap(1)
try:
    heap.size(one[:0])
    print(CHECKED, "read on")
except IndexError:
    print(CHECKED, "IndexError")
"""


def run(cache: Path, **settings: str) -> str:
    environment = {k: v for k, v in os.environ.items() if k not in ("SYMPHONY_CHECKED", "NUMBA_BOUNDSCHECK")}
    environment |= {"NUMBA_CACHE_DIR": str(cache), **settings}
    found = subprocess.run(
        [sys.executable, "-c", BEHIND],
        env=environment,
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    return found.stdout.strip()


@pytest.mark.parametrize("setting", ["SYMPHONY_CHECKED", "NUMBA_BOUNDSCHECK"])
def test_one_cache_holds_code_with_bounds_checks_beside_code_without(tmp_path: Path, setting: str) -> None:
    assert run(tmp_path) == "False read on"
    plain = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.nb?")}
    assert plain
    assert run(tmp_path, **{setting: "1"}) == "True IndexError"
    assert run(tmp_path) == "False read on"
    assert run(tmp_path, **{setting: "0"}) == "False read on"
    both = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.nb?")}
    assert plain.items() < both.items(), "code without checks was compiled once more"
