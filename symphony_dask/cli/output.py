"""Writes what commands print: JSON on standard output, progress and warnings on standard error."""

from __future__ import annotations

import json
from collections.abc import Mapping

import click


def print_json(value: object) -> None:
    """One JSON object on standard output."""
    click.echo(json.dumps(value))


def show_progress(text: str) -> None:
    """One line on standard error."""
    click.echo(text, err=True)


def print_values(values: Mapping[str, object], width: int, digits: int = 3) -> None:
    """One line a value, after its name in a column of that width; floats with so many digits."""
    for name, value in values.items():
        click.echo(f"{name:{width}} {value:,.{digits}f}" if isinstance(value, float) else f"{name:{width}} {value}")


def note_partial(*paths: str) -> dict[str, str]:
    """Say on standard error which of the runs at ``paths`` are partial, and why; gives these by path."""
    from symphony_dask.errors import SymphonyError
    from symphony_dask.trace import open_run
    from symphony_dask.trace.folder import is_file, place

    found = {}
    for path in paths:
        try:
            why = None if is_file(place(path)) else open_run(path).partial
        except SymphonyError:  # the command itself will say
            continue
        if why is not None:
            found[path] = why
            click.echo(f"{path} is partial: {why}", err=True)
    return found
