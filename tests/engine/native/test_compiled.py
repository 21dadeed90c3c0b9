"""What compiled code is kept under: code that checks bounds is never taken for code that does not, or the other way."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]

#: Reads one entry behind an array: an IndexError where bounds are checked.
PROBE = """
import numpy as np
from symphony_dask.engine.native.compiled import CHECKED, compiled

@compiled
def entry(array, i):
    return array[i]

try:
    entry(np.zeros(4)[:1], 2)
    print(CHECKED, "read on")
except IndexError:
    print(CHECKED, "IndexError")
"""


def run(folder: Path, **settings: str) -> str:
    """What the probe, in ``folder``, says; what is compiled of it is kept in ``folder``/cache."""
    environment = {k: v for k, v in os.environ.items() if k not in ("SYMPHONY_CHECKED", "NUMBA_BOUNDSCHECK")}
    environment |= {"NUMBA_CACHE_DIR": str(folder / "cache"), "PYTHONPATH": f"{folder}:{ROOT}", **settings}
    words = [sys.executable, "-c", "import probe"]
    return subprocess.run(words, env=environment, capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.parametrize("setting", ["SYMPHONY_CHECKED", "NUMBA_BOUNDSCHECK"])
def test_one_cache_holds_code_with_bounds_checks_beside_code_without(tmp_path: Path, setting: str) -> None:
    (tmp_path / "probe.py").write_text(PROBE)
    assert run(tmp_path) == "False read on"
    plain = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.nb?")}
    assert len(plain) == 2
    assert run(tmp_path, **{setting: "1"}) == "True IndexError"
    assert run(tmp_path) == "False read on"
    assert run(tmp_path, **{setting: "0"}) == "False read on"
    both = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.nb?")}
    assert plain.items() < both.items(), "code without checks was compiled once more"
    assert len(both) == 4
