"""``symphony trace info``: shows how many requests a trace has, and how they come."""

from __future__ import annotations

import click

from symphony_dask.cli.command import command
from symphony_dask.cli.options import json_option
from symphony_dask.cli.output import note_partial
from workloads.cli.progress_bars import reading_bar
from workloads.cli.trace.options import print_info


@click.command()
@click.argument("path", metavar="TRACE")
@json_option
@command
def info(path: str, as_json: bool) -> None:
    """Show how many requests a trace has, and how they come."""
    from workloads.traces.info import trace_info

    with reading_bar(path) as on_progress:
        found = trace_info(path, on_progress)
    why = note_partial(path).get(path)
    print_info({**found, **({} if why is None else {"partial": why})}, as_json)
