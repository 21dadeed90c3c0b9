"""``symphony bench engine``: measures how many requests a second the scheduler alone can handle."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from symphony_dask.cli.command import command
from symphony_dask.cli.options import json_option
from symphony_dask.cli.output import print_json, show_progress
from symphony_dask.errors import BadInput
from workloads.cli.options import ENGINE_POLICIES, PROFILE, models_option, shape_option

if TYPE_CHECKING:
    from workloads.bench.engine import Setting


@click.command()
@models_option()
@click.option("--gpus", default=8, show_default=True, help="Use this many emulated GPUs.")
@click.option(
    "--rate", "rate_hz", type=float, help="Offer this many requests a second. By default, 90 % of the goodput bound."
)
@click.option(
    "--seconds", default=5.0, show_default=True, help="Offer requests for this long, by the clock or virtual."
)
@click.option(
    "--threads",
    default=1,
    show_default=True,
    help="Run the whole engine in one thread, or N - 1 threads for models and one that ranks GPUs.",
)
@click.option("--virtual", is_flag=True, help="Jump from event to event, as fast as one core can.")
@click.option("--policy", default="deferred", show_default=True, help=f"Schedule by this policy: {ENGINE_POLICIES}.")
@click.option(
    "--profile",
    "profile_text",
    help=f"Take the times of batches from this profile: {PROFILE}. By default, ResNet-50's, with ALPHA as the rate "
    "needs.",
)
@click.option(
    "--slo",
    default="25ms",
    show_default=True,
    metavar="DURATION",
    help="Finish each request within this latency objective.",
)
@shape_option
@click.option("--search", is_flag=True, help="Find the highest rate, from --rate on, with less than 0.1 % late.")
@click.option("--growth", is_flag=True, help="Measure in virtual time, from 1 model on 8 GPUs to 1,000 on 5,000.")
@json_option
@command
def engine(profile_text: str | None, slo: str, search: bool, growth: bool, as_json: bool, **options: Any) -> None:
    """Measure how many requests a second the scheduler handles.

    Only the scheduler runs, without a network. Shows how late its decisions are too.
    """
    from symphony_dask.units import parse_duration_ns
    from workloads.bench import engine as bench
    from workloads.traces.zoo import parse_profile

    profile = None if profile_text is None else parse_profile(profile_text)
    setting = bench.Setting(profile=profile, slo_ns=parse_duration_ns(slo, "slo"), **options)
    found = measured(setting, search=search, growth=growth)
    if as_json:
        print_json(found)
    else:
        show(found)


def measured(setting: Setting, *, search: bool, growth: bool) -> dict[str, Any]:
    """The figures of one run, of a search or of growing sizes; raises ``BadInput``."""
    from workloads.bench import engine as bench

    if search and (growth or setting.virtual):
        raise BadInput("--search is for real time: leave out --virtual and --growth")
    if growth:
        return bench.growth(setting, show_progress)
    if search:
        return bench.search(setting, show_progress)
    return bench.bench_engine(setting)


def show(found: Mapping[str, Any]) -> None:
    click.echo(found["label"])
    for row in found.get("rows", [found]):
        lateness = " / ".join("-" if us is None else f"{us:,.0f}" for us in row["lateness_us"].values())
        click.echo(
            f"{row['models']:,} models, {row['gpus']:,} GPUs: {row['rate_hz']:,.0f} req/s, "
            f"{row['late_fraction']:.3%} late, decisions late by {lateness} us (p50 / p99 / p99.9), "
            f"{row['cpu_us_per_request']:.2f} us CPU a request, mean batch {row['mean_batch']:.1f}, "
            f"{row['gpus_used']:,} GPUs used, {row['busy_gpus']:,.1f} busy"
        )
