"""Lists the commands of this package by purpose, for the entry point group ``symphony_cli``."""

from __future__ import annotations

from symphony_dask.cli.command_group import SERVE, WATCH
from symphony_dask.cli.commands.apply import apply
from symphony_dask.cli.commands.gateway import gateway
from symphony_dask.cli.commands.profile import profile
from symphony_dask.cli.commands.status import status
from symphony_dask.cli.commands.top import top

COMMANDS = {SERVE: [apply, gateway, profile], WATCH: [status, top]}
