"""Lists the commands of this package by purpose, for the entry point group ``symphony_cli``."""

from __future__ import annotations

from autoscale.cli.autoscale_group import autoscale
from autoscale.cli.down import down
from autoscale.cli.orphans import orphans
from autoscale.cli.up import up
from symphony_dask.cli.command_group import SCALE

COMMANDS = {SCALE: [autoscale, down, orphans, up]}
