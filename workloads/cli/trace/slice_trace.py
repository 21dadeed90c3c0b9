"""``symphony trace slice``: keeps the requests of a window of time, or of some models."""

from __future__ import annotations

import click

from symphony_dask.cli.command import command
from symphony_dask.cli.options import json_option
from symphony_dask.cli.output import note_partial
from workloads.cli.progress_bars import reading_bar
from workloads.cli.trace.options import end_option, print_info, start_option, window


@click.command("slice")
@click.argument("path", metavar="TRACE")
@click.argument("target", metavar="OUT")
@start_option
@end_option
@click.option("--model", "models", multiple=True, help="Keep only this model. Repeat it for several.")
@json_option
@command
def slice_(path: str, target: str, start: str | None, end: str | None, models: tuple[str, ...], as_json: bool) -> None:
    """Keep what arrives in a window of time, or for some models."""
    from workloads.traces.transform import cut

    note_partial(path)
    times = window(start, end)
    with reading_bar(path) as on_progress:
        found = cut(path, target, **times, models=models, on_progress=on_progress)
    print_info(found, as_json)
