"""`symphony autoscale`: the group, and the commands that are in it."""

from __future__ import annotations

import click

from autoscale.fleet_commands import AUTOSCALE, RunByDefault
from autoscale.simulate_command import simulate


@click.group(cls=RunByDefault)
def autoscale() -> None:
    """Scale the fleet of GPUs with the load, and try out how that goes."""


for command in (simulate, *AUTOSCALE):
    autoscale.add_command(command)

COMMANDS = [autoscale]
