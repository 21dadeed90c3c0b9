from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.helpers.engines.scenario import digest, digests


def test_the_same_events_give_the_same_decisions_bit_for_bit() -> None:
    assert digests() == digests()


def test_other_events_give_other_decisions() -> None:
    assert digest(1, "deferred", exact=False) != digest(2, "deferred", exact=False)


def test_the_compiled_engine_decides_as_plain_python_does() -> None:
    plain = subprocess.run(
        [sys.executable, "-m", "tests.helpers.engines.scenario"],
        env={**os.environ, "NUMBA_DISABLE_JIT": "1"},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    assert plain.stdout.split() == digests()
