"""``symphony bench recording``: measures what recording a run costs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from symphony_dask.cli.command import command
from symphony_dask.cli.options import json_option
from symphony_dask.cli.output import print_json, show_progress
from workloads.cli.bench.options import batch_option, seconds_option
from workloads.cli.options import profile_option


@click.command()
@click.option("--pairs", default=8, show_default=True, help="Measure this many times with and without recording.")
@seconds_option(3.0)
@batch_option(8)
@profile_option("0,0")
@json_option
@command
def recording(pairs: int, seconds: float, batch: int, profile_text: str, as_json: bool) -> None:
    """Measure what recording a run costs, in requests a second."""
    from workloads.bench.recording import bench_recording
    from workloads.traces.zoo import parse_profile

    profile = parse_profile(profile_text)
    found = bench_recording(
        pairs=pairs,
        seconds=seconds,
        batch=batch,
        alpha_ms=profile.alpha_ms,
        beta_ms=profile.beta_ms,
        on_progress=show_progress,
    )
    if as_json:
        print_json(found)
    else:
        show(found)


def show(found: Mapping[str, Any]) -> None:
    click.echo(
        f"plain     {found['plain_hz']:10,.0f} req/s  {found['plain_cpu_us']:6.1f} us of scheduler CPU a request"
    )
    click.echo(f"recorded  {found['recorded_hz']:10,.0f} req/s  {found['recorded_cpu_us']:6.1f} us")
    click.echo(f"cost      {found['cost']:10.1%}")
