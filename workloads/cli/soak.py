"""``symphony soak``: serves random load for hours, with random faults, and tells what grows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from symphony_dask.cli.command import command
from symphony_dask.cli.options import json_option
from symphony_dask.cli.output import print_json, show_progress


@click.command()
@click.option("--hours", required=True, type=float, help="Serve for this many hours.")
@click.option("--seed", default=0, show_default=True, help="Draw the faults and the load from this seed.")
@click.option(
    "--folder",
    type=click.Path(file_okay=False),
    help="Write the report and the samples to this folder. By default, symphony-soak-TIME.",
)
@click.option("--every", "every_s", default=60.0, show_default=True, help="Take a sample every this many seconds.")
@json_option
@command
def soak(hours: float, seed: int, folder: str | None, every_s: float, as_json: bool) -> None:
    """Serve random load with random faults for hours.

    Mixes models, bursts, roll-outs and scaling, and tells how fast memory, descriptors, threads and latencies grow.
    Each sample brings the report up to date: soak.json in the folder.
    """
    from workloads.live import soak as soaks

    found = soaks.soak(hours=hours, seed=seed, folder=folder, every_s=every_s, on_progress=show_progress)
    if as_json:
        print_json(found)
    else:
        show(found)


def show(found: Mapping[str, Any]) -> None:
    amounts = f"{found['hours']:.2f} h, {found['requests']:,} requests, {found['faults']} faults"
    click.echo(f"{amounts}; in {found['folder']}")
    for row in found["slopes"]:
        click.echo(f"  {row['process']:10} {row['what']:22} {row['last']:10.1f}, {row['per_hour']:+8.2f} an hour")
