"""Public names load when they are first asked for."""

from __future__ import annotations

import symphony_dask
from symphony_dask import as_completed, deadline


def test_the_public_names_load() -> None:
    assert symphony_dask.deadline is deadline
    assert symphony_dask.as_completed is as_completed
