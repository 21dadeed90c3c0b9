"""``symphony trace diurnal``: makes a trace whose rate follows the hours of the day."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from symphony_dask.cli.command import command
from symphony_dask.cli.options import json_option, optional_duration_ns
from workloads.cli.options import models_option, popularity_option
from workloads.cli.progress_bars import amount_bar
from workloads.cli.trace.options import new_slo_option, print_info, seed_option


@click.command()
@click.argument("target", metavar="OUT")
@click.option(
    "--length",
    default="24h",
    show_default=True,
    metavar="DURATION",
    help="Make a trace of this length, from midnight on.",
)
@click.option(
    "--peak", "peak_hz", type=float, required=True, help="Make this many requests a second at noon, without bursts."
)
@click.option("--trough", default=0.1, show_default=True, help="Lower the rate to this part of it at midnight.")
@click.option(
    "--bursts", "bursts_per_day", default=12.0, show_default=True, help="Add this many bursts a day, on average."
)
@click.option("--burst", default=1.6, show_default=True, help="Multiply the rate by this in a burst, on average.")
@click.option("--wobble", default=0.05, show_default=True, help="Add slow noise of this part of the rate.")
@models_option()
@popularity_option
@new_slo_option
@seed_option
@json_option
@command
def diurnal(target: str, length: str, slo: str | None, as_json: bool, **options: Any) -> None:
    """Make a trace whose rate follows the hours of the day.

    The rate rises until noon and falls until midnight, with bursts at random.
    """
    from symphony_dask.units import NS_PER_S, parse_duration_ns
    from workloads.traces import diurnal as traces

    seconds = parse_duration_ns(length, "--length") // NS_PER_S
    slo_ns = optional_duration_ns(slo, "--slo")
    with amount_bar("drawing", seconds) as on_progress:
        found = traces.diurnal(Path(target), seconds=seconds, slo_ns=slo_ns, **options, on_progress=on_progress)
    print_info(found, as_json)
