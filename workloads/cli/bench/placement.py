"""``symphony bench placement``: serves more models than fit the GPUs."""

from __future__ import annotations

from typing import Any

import click

from symphony_dask.cli.command import command
from symphony_dask.cli.options import json_option
from symphony_dask.cli.output import print_json, show_progress
from workloads.cli.bench.options import seconds_option


@click.command()
@click.option("--models", default=30, show_default=True, help="Serve this many models, whose popularity is Zipf's.")
@click.option("--gpus", default=4, show_default=True, help="Use this many emulated GPUs.")
@click.option("--room", default=5, show_default=True, help="Keep at most this many models on a GPU.")
@click.option("--load", "load_ms", default=200.0, show_default=True, help="Take this many ms to load a model.")
@click.option(
    "--slo", "slo_ms", default=1000.0, show_default=True, help="Finish each request within this latency objective, ms."
)
@click.option("--rate", "rate_hz", default=100.0, show_default=True, help="Offer this many requests a second.")
@seconds_option(30.0)
@json_option
@command
def placement(as_json: bool, **options: Any) -> None:
    """Serve more models than fit the GPUs.

    Shows which share of requests was in time, and how often models were loaded.
    """
    from workloads.bench.placement import bench_placement

    found = bench_placement(**options, on_progress=show_progress)
    if as_json:
        print_json(found)
        return
    click.echo(f"{found['requests']:,} requests to {found['models']} models, {found['attainment']:.2%} within the SLO")
    per_request, share = found["loads_per_request"], found["loading_share"]
    click.echo(f"{found['loads']} loads: {per_request:.3f} a request, {share:.1%} of the GPUs' time")
