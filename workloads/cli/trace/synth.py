"""``symphony trace synth``: makes a trace of random arrivals."""

from __future__ import annotations

from typing import Any

import click

from symphony_dask.cli.command import command
from symphony_dask.cli.options import json_option, optional_duration_ns
from workloads.cli.options import models_option, popularity_option, shape_option
from workloads.cli.progress_bars import amount_bar
from workloads.cli.trace.options import new_slo_option, print_info, seed_option


@click.command()
@click.argument("target", metavar="OUT")
@click.option("--requests", type=int, required=True, help="Make this many requests.")
@click.option("--rate", "rate_hz", type=float, required=True, help="Make this many requests a second, on average.")
@shape_option
@models_option()
@popularity_option
@new_slo_option
@seed_option
@json_option
@command
def synth(target: str, requests: int, slo: str | None, as_json: bool, **options: Any) -> None:
    """Make a trace of random arrivals."""
    from workloads.traces import transform

    slo_ns = optional_duration_ns(slo, "--slo")
    with amount_bar("drawing", requests) as on_progress:
        found = transform.synth(target, requests=requests, slo_ns=slo_ns, **options, on_progress=on_progress)
    print_info(found, as_json)
