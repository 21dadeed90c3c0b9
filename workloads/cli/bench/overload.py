"""``symphony bench overload``: offers far more than the GPUs can serve."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import click

from symphony_dask.cli.command import command
from symphony_dask.cli.options import gathered, json_option
from symphony_dask.cli.output import print_json, show_progress
from workloads.cli.bench.options import seconds_option
from workloads.cli.options import profile_option


@dataclass(frozen=True)
class OverloadOptions:
    """What is offered, to which model on how many GPUs."""

    times: tuple[float, ...]
    profile_text: str
    slo: str
    gpus: int
    seconds: float
    png: str | None


@click.command()
@click.option(
    "--times", multiple=True, type=float, help="Offer this many times the capacity. Repeat it. By default, 0.5 to 20."
)
@profile_option("5.09,18.368")
@click.option(
    "--slo",
    default="100ms",
    show_default=True,
    metavar="DURATION",
    help="Finish each request within this latency objective.",
)
@click.option("--gpus", default=4, show_default=True, help="Use this many emulated GPUs.")
@seconds_option(6.0)
@click.option(
    "--png",
    type=click.Path(dir_okay=False),
    help='Draw goodput against offered load to this file (needs the extra "plot").',
)
@json_option
@gathered(OverloadOptions)
@command
def overload(options: OverloadOptions, as_json: bool) -> None:
    """Offer far more than the GPUs can serve.

    Shows goodput (the rate of requests in time), refusals and memory; how an interactive model fares beside a flood;
    and how fast all recovers.
    """
    found = measured(options)
    if as_json:
        print_json(found)
    else:
        show(found)


def measured(options: OverloadOptions) -> dict[str, Any]:
    """What the loads gave, drawn too where that is asked; raises ``BadInput``."""
    from symphony_dask.units import parse_duration_ns
    from workloads.bench import overload as bench
    from workloads.traces.zoo import parse_profile

    profile = parse_profile(options.profile_text)
    found = bench.bench_overload(
        times=options.times or bench.TIMES,
        alpha_ms=profile.alpha_ms,
        beta_ms=profile.beta_ms,
        slo_ns=parse_duration_ns(options.slo, "slo"),
        gpus=options.gpus,
        seconds=options.seconds,
        on_progress=show_progress,
    )
    if options.png is not None:
        bench.draw(found, options.png)
    return found


def show(found: Mapping[str, Any]) -> None:
    click.echo(f"peak {found['peak_hz']:,.0f} req/s, bound {found['capacity_hz']:,.0f}; {found['label']}")
    for row in found["rows"]:
        refused = f"refused in {row['rejection_p99_ms']:.1f} ms (p99)" if row["rejected"] else "none refused"
        share = f"{row['share_of_peak']:.1%} of the peak"
        memory = f"scheduler {row['scheduler_mib']:.0f} MiB"
        click.echo(f"  {row['times']:5g} times: {row['goodput_hz']:8,.0f} req/s in time, {share}, {refused}, {memory}")
    fairness, recovery = found["fairness"], found["recovery"]
    click.echo(f"an interactive model beside {fairness['flood_times']:g} times: {fairness['attainment']:.2%} in time")
    back = recovery["back_ms"]
    click.echo("after the flood: " + ("never in time again" if back is None else f"in time again within {back:.0f} ms"))
