"""``symphony trace scale``: gives a trace another rate."""

from __future__ import annotations

import click

from symphony_dask.cli.command import command
from symphony_dask.cli.options import json_option
from symphony_dask.cli.output import note_partial
from workloads.cli.progress_bars import reading_bar
from workloads.cli.trace.options import print_info, seed_option


@click.command()
@click.argument("path", metavar="TRACE")
@click.argument("target", metavar="OUT")
@click.option("--rate", "factor", type=float, required=True, help="Multiply the rate of requests by this.")
@click.option(
    "--method",
    type=click.Choice(["time", "thin"]),
    default="time",
    show_default=True,
    help="Make gaps shorter or longer, which keeps bursts (time), or leave requests out at random (thin).",
)
@seed_option
@json_option
@command
def scale(path: str, target: str, factor: float, method: str, seed: int, as_json: bool) -> None:
    """Give a trace another rate."""
    from workloads.traces import transform

    note_partial(path)
    with reading_bar(path) as on_progress:
        found = transform.scale(path, target, factor, method=method, seed=seed, on_progress=on_progress)
    print_info(found, as_json)
