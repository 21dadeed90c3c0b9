"""Starts the command line: the group ``symphony``, which is also ``dask symphony``."""

from __future__ import annotations

import click

from symphony_dask import __version__
from symphony_dask.cli.command_group import CommandsByPurpose


@click.group(
    cls=CommandsByPurpose,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Run 'symphony COMMAND --help' to read about one command.",
)
@click.version_option(__version__, prog_name="symphony")
def symphony() -> None:
    """Serve deep-learning models with latency objectives on a Dask cluster."""


def main() -> None:
    """Entry point of the console script."""
    symphony(prog_name="symphony")
