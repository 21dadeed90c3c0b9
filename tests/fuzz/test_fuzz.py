"""Hostile bytes never crash, leak or stall what reads them. Longer: `python -m tests.fuzz --seconds 600`."""

from __future__ import annotations

import pytest

pytest.importorskip("uvicorn")

from tests.fuzz.campaign import Target, run, targets


@pytest.mark.parametrize("target", targets(), ids=lambda target: target.name)
def test_a_few_thousand_inputs_are_taken_or_refused(target: Target) -> None:
    assert run(target, inputs=3_000).inputs == 3_000


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("target", targets(), ids=lambda target: target.name)
def test_a_minute_and_a_half_of_inputs_are_taken_or_refused(target: Target) -> None:
    assert run(target, seed=1, seconds=90).inputs > 10_000
