"""``symphony bench gateway``: measures requests a second and goodput over HTTP."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import click

from symphony_dask.cli.command import command
from symphony_dask.cli.options import gathered, json_option
from symphony_dask.cli.output import print_json, show_progress
from workloads.cli.bench.options import PEER_SETTINGS, chosen_settings, peers_folder_option, seconds_option


@dataclass(frozen=True)
class GatewayOptions:
    """What to measure, for how long, and beside which servers."""

    names: tuple[str, ...]
    seconds: float
    processes: int
    rounds: int
    with_peers: bool
    null_only: bool
    folder: str


@click.command()
@click.option(
    "--setting",
    "names",
    multiple=True,
    help="Measure goodput in this setting: resnet50-25ms, inception-70ms, resnet50-100ms. Repeat it. By default, in "
    "all.",
)
@seconds_option(5.0)
@click.option("--processes", default=1, show_default=True, help="Run the gateway in this many processes.")
@click.option(
    "--rounds", default=3, show_default=True, help="Take the median of this many measurements with a model of no time."
)
@click.option("--peers", "with_peers", is_flag=True, help="Measure Ray Serve and Mosec in the same way.")
@click.option("--null-only", is_flag=True, help="Measure only the model that takes no time, and no goodput.")
@peers_folder_option
@json_option
@gathered(GatewayOptions)
@command
def gateway(options: GatewayOptions, as_json: bool) -> None:
    """Measure requests a second and goodput over HTTP.

    The first with a model that takes no time. Goodput is the rate of requests in time, here on 4 emulated GPUs.
    """
    from workloads.bench.gateway import bench_gateway

    settings = chosen_settings(options.names, PEER_SETTINGS)
    found = bench_gateway(
        [] if options.null_only else settings,
        seconds=options.seconds,
        processes=options.processes,
        rounds=options.rounds,
        peers=("ray-serve", "mosec") if options.with_peers else (),
        folder=options.folder,
        on_progress=show_progress,
    )
    if as_json:
        print_json(found)
    else:
        show(found)


def show(found: Mapping[str, Any]) -> None:
    click.echo(f"l(b)=0       {found['rate_hz']:8,.0f} req/s  p50 {found['p50_ms']:.2f}  p99 {found['p99_ms']:.2f} ms")
    for row in found["open_loop"]:
        click.echo(f"  offered    {row['offered_hz']:8,.0f} req/s  p50 {row['p50_ms']:.2f}  p99 {row['p99_ms']:.2f} ms")
    for row in found["peers"]:
        click.echo(
            f"{row['system']:12} {row['rate_hz']:8,.0f} req/s  p50 {row['p50_ms']:.2f}  p99 {row['p99_ms']:.2f} ms"
        )
    for row in found["rows"]:
        click.echo(f"{row['setting']:16} {row['goodput_hz']:8,.0f} req/s good")
