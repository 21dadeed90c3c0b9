"""`symphony autoscale`: the group, and the commands that are in it."""

from __future__ import annotations

import click

from autoscale.simulate_command import simulate


@click.group()
def autoscale() -> None:
    """Scale the fleet of GPUs with the load, and try out how that goes."""


autoscale.add_command(simulate)

COMMANDS = [autoscale]
