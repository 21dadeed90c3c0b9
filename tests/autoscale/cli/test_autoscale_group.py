"""``symphony autoscale`` runs a controller unless another command is named."""

from __future__ import annotations

import click
from click.testing import CliRunner

from autoscale.cli.autoscale_group import RunByDefault


def test_autoscale_without_a_subcommand_runs() -> None:
    group = RunByDefault("autoscale")
    given: list[str] = []

    @group.command()
    @click.option("--scheduler")
    def run(scheduler: str) -> None:
        given.append(scheduler)

    assert CliRunner().invoke(group, ["--scheduler", "tcp://a:1"]).exit_code == 0
    assert CliRunner().invoke(group, ["run", "--scheduler", "tcp://b:2"]).exit_code == 0
    assert CliRunner().invoke(group, ["--help"]).exit_code == 0
    assert given == ["tcp://a:1", "tcp://b:2"]
