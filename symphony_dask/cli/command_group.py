"""Collects the commands of all installed packages in one group, and lists them by purpose.

Each package names a mapping in the entry point group ``symphony_cli``: from a purpose (below) to click commands. So
this module, which is below those packages, imports none of them. Where two packages bring a ``click.Group`` of one
name, the group holds the commands of both: ``symphony autoscale`` has commands of ``autoscale`` and of ``workloads``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import click

SERVE = "Serve models"
WATCH = "Watch a cluster"
SCALE = "Scale the fleet of GPUs"
TRACES = "Use traces and recorded runs"
COMPARE = "Compare and measure"

#: In the order in which they are listed.
PURPOSES = (SERVE, WATCH, SCALE, TRACES, COMPARE)

ENTRY_POINTS = "symphony_cli"


class CommandsByPurpose(click.Group):
    """A group that loads its commands on first use."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.purpose_of: dict[str, str] = {}

    def list_commands(self, ctx: click.Context) -> list[str]:
        self._load()
        return sorted(self.commands)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        self._load()
        return self.commands.get(cmd_name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        names = self.list_commands(ctx)
        longest = max(map(len, names), default=0)
        for purpose in PURPOSES:
            rows = [
                (name.ljust(longest), self.commands[name].get_short_help_str(formatter.width - 6 - longest))
                for name in names
                if self.purpose_of[name] == purpose
            ]
            if rows:
                with formatter.section(purpose):
                    formatter.write_dl(rows)

    def add_by_purpose(self, commands: Mapping[str, Sequence[click.Command]]) -> None:
        """Add commands; a group whose name is taken by a group is merged with it."""
        for purpose, some in commands.items():
            if purpose not in PURPOSES:
                raise ValueError(f"purpose {purpose!r} is unknown: use one of {', '.join(PURPOSES)}")
            for command in some:
                name = command.name or ""
                self.add_command(merged(self.commands[name], command) if name in self.commands else command)
                self.purpose_of[name] = purpose

    def _load(self) -> None:
        if not self.commands:
            for entry in sorted(entry_points(group=ENTRY_POINTS), key=lambda entry: entry.name):
                self.add_by_purpose(_loaded(entry))


def merged(first: click.Command, second: click.Command) -> click.Group:
    """One group with the commands of both; the one that has a help text says what the group is for."""
    if not (isinstance(first, click.Group) and isinstance(second, click.Group)):
        raise ValueError(f"two packages bring a command {first.name!r}: only groups can be merged")
    group, added = (second, first) if first.help is None else (first, second)
    if taken := group.commands.keys() & added.commands.keys():
        raise ValueError(f"two packages bring a command {f'{group.name} {min(taken)}'!r}: rename one")
    for command in added.commands.values():
        group.add_command(command)
    return group


def _loaded(entry: EntryPoint) -> Mapping[str, Sequence[click.Command]]:
    try:
        commands: Mapping[str, Sequence[click.Command]] = entry.load()
    except (ImportError, AttributeError) as error:
        package = entry.dist.name if entry.dist is not None else entry.module
        text = f"the commands in {entry.value} cannot be loaded ({error}): install {package} again"
        raise click.ClickException(text) from error
    return commands
