"""``symphony bench live``."""

from __future__ import annotations

import pytest

from tests.helpers.command_line import printed


@pytest.mark.slow
def test_the_lane_carries_ten_times_what_plain_dask_does() -> None:
    found = printed("bench", "live", "--seconds", "2", "--json")
    assert found["ratio"] >= 10
