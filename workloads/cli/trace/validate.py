"""``symphony trace validate``: checks that the folder of a run or trace keeps the rules of the format."""

from __future__ import annotations

import click

from symphony_dask.cli.command import command
from symphony_dask.cli.options import json_option
from symphony_dask.cli.output import note_partial, print_json
from workloads.cli.progress_bars import amount_bar


@click.command()
@click.argument("path", metavar="RUN")
@json_option
@command
def validate(path: str, as_json: bool) -> None:
    """Check that a run or trace keeps the rules of the format.

    Exits with 1 if it does not.
    """
    from symphony_dask.trace.validate import problems

    with amount_bar("checking", None) as on_progress:
        found = problems(path, on_progress)
    partial = note_partial(path).get(path)
    if as_json:
        print_json({"valid": not found, "problems": found, "partial": partial})
    else:
        for text in found or ["the folder is as it should be"]:
            click.echo(text)
    if found:
        raise click.exceptions.Exit(1)
