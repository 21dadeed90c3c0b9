"""`symphony autoscale`: the group, and the commands that are in it."""

from __future__ import annotations

import click

from autoscale.cli.fleet import AUTOSCALE, RunByDefault
from workloads.cli.autoscale_simulate import simulate


@click.group(cls=RunByDefault)
def autoscale() -> None:
    """Scale the fleet of GPUs with the load, and try out how that goes."""


for command in (simulate, *AUTOSCALE):
    autoscale.add_command(command)

COMMANDS = [autoscale]
