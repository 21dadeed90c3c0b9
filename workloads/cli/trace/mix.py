"""``symphony trace mix``: puts several traces on one clock."""

from __future__ import annotations

import click

from symphony_dask.cli.command import command
from symphony_dask.cli.options import json_option
from symphony_dask.cli.output import note_partial
from workloads.cli.progress_bars import reading_bar
from workloads.cli.trace.options import print_info


@click.command()
@click.argument("paths", metavar="TRACE...", nargs=-1, required=True)
@click.argument("target", metavar="OUT")
@click.option("--separate", is_flag=True, help="Name models 1/NAME, 2/NAME by their trace.")
@json_option
@command
def mix(paths: tuple[str, ...], target: str, separate: bool, as_json: bool) -> None:
    """Put several traces on one clock.

    Models of one name become one model, unless --separate is given.
    """
    from workloads.traces import transform

    note_partial(*paths)
    with reading_bar(*paths) as on_progress:
        found = transform.mix(paths, target, separate=separate, on_progress=on_progress)
    print_info(found, as_json)
