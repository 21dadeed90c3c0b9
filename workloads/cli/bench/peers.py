"""``symphony bench peers``: compares goodput with that of other model servers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from symphony_dask.cli.command import command
from symphony_dask.cli.options import json_option
from symphony_dask.cli.output import print_json, show_progress
from workloads.cli.bench.options import PEER_SETTINGS, chosen_settings, peers_folder_option, seconds_option


@click.command()
@click.option(
    "--setting",
    "names",
    multiple=True,
    help="Measure in this setting: resnet50-25ms, inception-70ms, resnet50-100ms. Repeat it. By default, in all.",
)
@click.option(
    "--peer", "peers_", multiple=True, help="Measure this server: mosec, ray-serve, litserve. By default, all."
)
@peers_folder_option
@seconds_option(5.0)
@json_option
@command
def peers(names: tuple[str, ...], peers_: tuple[str, ...], folder: str, seconds: float, as_json: bool) -> None:
    """Compare goodput with Ray Serve, Mosec and LitServe.

    Goodput is the rate of requests in time, here on 4 emulated GPUs. Installs each server into an environment of its
    own. Takes a minute or more for each of a server's settings.
    """
    from workloads.bench.peers import PEERS, bench_peers

    settings = chosen_settings(names, PEER_SETTINGS)
    found = bench_peers(settings, peers_ or tuple(PEERS), folder=folder, seconds=seconds, on_progress=show_progress)
    if as_json:
        print_json(found)
    else:
        show(found)


def show(found: Mapping[str, Any]) -> None:
    for row in found["rows"]:
        knobs = f"  batch {row['max_batch']}, wait {row['wait_ms']:g} ms" if "max_batch" in row else ""
        click.echo(f"{row['setting']:16} {row['system']:14} {row['goodput_hz']:10,.0f} req/s{knobs}")
