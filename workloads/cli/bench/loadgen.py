"""``symphony bench loadgen``: has MLCommons' LoadGen judge latencies."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from symphony_dask.cli.command import command
from symphony_dask.cli.options import json_option
from symphony_dask.cli.output import print_json, show_progress
from workloads.cli.bench.options import seconds_option
from workloads.cli.options import profile_option


@click.command()
@click.option(
    "--rate",
    "rates_hz",
    type=float,
    multiple=True,
    help="Offer this many requests a second. Repeat it. By default, 900.",
)
@click.option(
    "--slo",
    default="50ms",
    show_default=True,
    metavar="DURATION",
    help="Answer 99 % of the requests within this latency; it is the SLO of the model and the latency of LoadGen.",
)
@click.option("--gpus", default=2, show_default=True, help="Use this many emulated GPUs.")
@profile_option("1.053,5.072")
@click.option("--runs", default=5, show_default=True, help="Make this many runs at each rate.")
@seconds_option(10.0)
@json_option
@command
def loadgen(
    rates_hz: tuple[float, ...], slo: str, gpus: int, profile_text: str, runs: int, seconds: float, as_json: bool
) -> None:
    """Have MLCommons' LoadGen judge latencies.

    It offers requests in its Server scenario, and says whether a run is valid. Needs the extra "loadgen" (pip install
    'symphony-dask[loadgen]').
    """
    from symphony_dask.backends import Emulated
    from symphony_dask.units import parse_duration_ns
    from workloads.bench.loadgen import bench_loadgen
    from workloads.traces.zoo import parse_profile

    profile = parse_profile(profile_text)
    found = bench_loadgen(
        rates_hz or (900.0,),
        slo_ns=parse_duration_ns(slo, "--slo"),
        profile=Emulated(profile.alpha_ms, profile.beta_ms),
        gpus=gpus,
        runs=runs,
        seconds=seconds,
        on_progress=show_progress,
    )
    if as_json:
        print_json(found)
    else:
        show(found)


def show(found: Mapping[str, Any]) -> None:
    click.echo(f"{found['label']}; 99 % within {found['slo_ms']:g} ms")
    for row in found["rows"]:
        click.echo(
            f"{row['rate_hz']:8g} req/s  {'VALID  ' if row['valid'] else 'INVALID'}  LoadGen's p50 "
            f"{row['loadgen_p50_ms']:6.2f}, p99 {row['loadgen_p99_ms']:6.2f} ms; the client's {row['p50_ms']:6.2f}, "
            f"{row['p99_ms']:6.2f} ms"
        )
    click.echo(f"{found['valid']} of {found['runs']} runs are valid")
