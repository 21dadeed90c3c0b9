"""Rows as the recorder takes them, and a way to wait for its writer thread."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from symphony_dask.trace import SCHEMAS

Columns = dict[str, npt.NDArray[np.int64]]


def columns(table: str, **given: list[int]) -> Columns:
    """Columns of ``table`` as long as those ``given``; the others are -1 where they may be null, else 0."""
    rows = len(next(iter(given.values())))
    return {
        field.name: np.array(given.get(field.name, [-1 if field.nullable else 0] * rows), dtype=np.int64)
        for field in SCHEMAS[table]
    }


def wait_until(condition: Callable[[], object], timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true"
        time.sleep(0.002)
