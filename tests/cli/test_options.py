"""Options gathered in a dataclass, and durations."""

from __future__ import annotations

from dataclasses import dataclass

import click
from click.testing import CliRunner

from symphony_dask.cli.options import gathered, seconds


@dataclass(frozen=True)
class Size:
    width: int
    height: int


@click.command()
@click.option("--width", default=1, help="Be so wide.")
@click.option("--height", default=2, help="Be so high.")
@click.option("--wait", "wait_s", default="2min", callback=seconds, help="Wait so long.")
@gathered(Size, "size")
def show(size: Size, wait_s: float) -> None:
    """Show what was given."""
    click.echo(f"{size} {wait_s}")


def test_options_that_are_fields_of_a_dataclass_come_as_one_value() -> None:
    assert CliRunner().invoke(show, ["--height", "7"]).output == "Size(width=1, height=7) 120.0\n"


def test_a_duration_without_its_unit_is_an_error_of_usage() -> None:
    result = CliRunner().invoke(show, ["--wait", "5"])
    assert result.exit_code == 2
    assert "--wait='5' has no unit" in result.output
