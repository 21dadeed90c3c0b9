"""What the help of commands names is what there is."""

from __future__ import annotations

from symphony_dask.engine.engine import POLICIES
from workloads import baselines
from workloads.cli.options import BASELINES, ENGINE_POLICIES


def test_help_names_every_policy_and_baseline() -> None:
    assert ENGINE_POLICIES.split(", ") == list(POLICIES)
    assert BASELINES.split(", ") == list(baselines.BASELINES)
