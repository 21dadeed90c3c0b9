"""``symphony``, also as ``dask symphony``: a group whose commands come from the packages that know them.

Each package names a list of click commands in the entry point group ``symphony_cli``; so this module, which is below
them, imports none of them.
"""

from __future__ import annotations

from importlib.metadata import entry_points

import click

from symphony_dask import __version__


class _Commands(click.Group):
    """Finds the commands on first use."""

    def _load(self) -> None:
        if not self.commands:
            for entry in entry_points(group="symphony_cli"):
                for command in entry.load():
                    self.add_command(command)

    def list_commands(self, ctx: click.Context) -> list[str]:
        self._load()
        return sorted(self.commands)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        self._load()
        return self.commands.get(cmd_name)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="symphony")
def symphony() -> None:
    """Serve deep-learning models with latency objectives on a Dask cluster."""


def main() -> None:
    """Entry point of the console script; errors of ours are shown as one line."""
    symphony(prog_name="symphony")
