"""``symphony autoscale run``: its policy, and one decision shown without acting."""

from __future__ import annotations

from autoscale.cli.run import POLICIES
from autoscale.policies import registry
from tests.helpers.command_line import refusal

CAPS = ("--max-instances", "1", "--provider", "local", "--fleet", "none")


def test_help_names_every_policy() -> None:
    assert POLICIES.split(", ") == list(registry.POLICIES)


def test_a_policy_that_is_none_is_answered_with_the_one_that_is_near() -> None:
    said = refusal("autoscale", "run", "--scheduler", "tcp://127.0.0.1:9", *CAPS, "--policy", "fixed_pea")
    assert "policy 'fixed_pea' is unknown: choose one of load_proportional" in said
    assert "did you mean 'fixed_peak'?" in said
