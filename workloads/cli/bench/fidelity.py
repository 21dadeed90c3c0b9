"""``symphony bench fidelity``: compares live runs with simulated ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from symphony_dask.cli.command import command
from symphony_dask.cli.options import json_option
from symphony_dask.cli.output import print_json, show_progress
from workloads.cli.bench.options import chosen_settings, seconds_option
from workloads.cli.options import ENGINE_POLICIES


@click.command()
@click.option("--setting", "names", multiple=True, help="Measure in this setting. Repeat it. By default, in all.")
@click.option("--policy", default="adaptive", show_default=True, help=f"Schedule by this policy: {ENGINE_POLICIES}.")
@seconds_option(8.0)
@json_option
@command
def fidelity(names: tuple[str, ...], policy: str, seconds: float, as_json: bool) -> None:
    """Compare live runs with simulated ones.

    Finds the goodput (the rate of requests in time) of both, and serves the same arrivals in both at 50, 80 and 95 %
    of it. Settings, on 4 emulated GPUs: resnet50-25ms, inception-70ms, resnet50-100ms, 8-models-100ms.
    """
    from workloads.bench.fidelity import bench_fidelity

    found = bench_fidelity(chosen_settings(names), policy=policy, seconds=seconds, on_progress=show_progress)
    if as_json:
        print_json(found)
    else:
        show(found)


def show(found: Mapping[str, Any]) -> None:
    for row in found["rows"]:
        if "share" in row:
            click.echo(
                f"{row['setting']:16} at {row['share']:.0%}: live {row['live_attainment']:.2%} good, "
                f"{row['live_mean_batch']:.2f} a batch; simulated {row['simulated_attainment']:.2%}, "
                f"{row['simulated_mean_batch']:.2f}"
            )
        else:
            click.echo(
                f"{row['setting']:16} {row['label']:10} {row['goodput_hz']:10,.0f} req/s of {row['bound_hz']:,.0f}"
            )
