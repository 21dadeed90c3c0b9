"""Memory of traces does not grow with them: each measured in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

MILLION = 1_000_000


def peak_mib(program: str, *args: object) -> float:
    """The peak resident memory of a Python program."""
    tail = "\nimport resource; print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)"
    command = [sys.executable, "-c", "import sys\n" + program + tail, *map(str, args)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def test_importing_many_rows_out_of_order_and_looking_at_them_takes_no_more_memory_than_few(tmp_path: Path) -> None:
    peaks = {}
    for millions in (6, 18):
        # Seconds of a million requests each, which come in no order within theirs.
        (tmp_path / "rates").write_text(f"{MILLION}\n" * millions)
        program = (
            "from workloads.traces.importers import import_trace\n"
            "from workloads.traces.info import trace_info\n"
            "found = import_trace('rate', sys.argv[1], sys.argv[2], models=5)\n"
            "assert trace_info(sys.argv[2]) == found\n"
        )
        peaks[millions] = peak_mib(program, tmp_path / "rates", tmp_path / f"run-{millions}")
    assert peaks[18] < peaks[6] + 200
    assert peaks[18] < 2048


def test_a_synthetic_trace_takes_no_more_memory_the_longer_it_is(tmp_path: Path) -> None:
    program = (
        "from workloads.traces.transform import synth\n"
        "synth(sys.argv[1], requests=int(sys.argv[2]), rate_hz=1000, shape=0.5, models=10)\n"
    )
    peaks = [peak_mib(program, tmp_path / str(n), n * MILLION) for n in (3, 12)]
    assert peaks[1] < peaks[0] + 150
