"""``symphony plan``: finds by simulation how many GPUs of each class a trace needs, and what they cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from symphony_dask.cli.command import command
from symphony_dask.cli.options import gathered, json_option, optional_duration_ns
from symphony_dask.cli.output import note_partial, print_json, show_progress
from workloads.cli.options import PROFILE, policy_option, price_option, rate_factor_option, trace_slo_option

if TYPE_CHECKING:
    from workloads.simulation.workload import Workload


@dataclass(frozen=True)
class PlanOptions:
    """The trace, what is to be attained, and on which GPUs."""

    path: str
    attainment: float
    slo: str | None
    profile_texts: tuple[str, ...]
    policy: str
    scale: float
    price_texts: tuple[str, ...]


@click.command()
@click.argument("path", metavar="TRACE")
@click.option("--attainment", default=0.99, show_default=True, help="Finish this share of the requests in time.")
@trace_slo_option
@click.option(
    "--profile",
    "profile_texts",
    multiple=True,
    metavar="CLASS=A,B",
    help=f"Plan with this GPU class, whose times of batches are {PROFILE}. Repeat it for several classes.",
)
@policy_option
@rate_factor_option
@price_option
@json_option
@gathered(PlanOptions)
@command
def plan(options: PlanOptions, as_json: bool) -> None:
    """Find how many GPUs a trace needs, and what they cost.

    Simulates TRACE on GPUs of each class and on mixes of two, and names the cheapest. A CLASS that is an EC2 instance
    type (g4dn.xlarge, g5.xlarge, p4d.24xlarge) has its GPUs and price. Without --profile, it takes the classes of a
    recorded run, else ResNet-50 on g4dn.xlarge, p3.2xlarge and p4d.24xlarge.
    """
    found, assumed = planned(options)
    if as_json:
        print_json({**found, "profiles": "assumed: ResNet-50" if assumed else "given"})
    else:
        show(found, options)


def planned(options: PlanOptions) -> tuple[dict[str, Any], bool]:
    """The plan, and whether profiles had to be assumed; raises ``SymphonyError``."""
    from autoscale.providers.prices import prices
    from workloads.analysis import plan as analysis
    from workloads.compare.policies import compile_policies

    table = prices(options.price_texts)
    work, classes, assumed = _workload(options)
    compile_policies([options.policy])
    found = analysis.plan(
        work, classes, table, attainment=options.attainment, policy=options.policy, on_progress=show_progress
    )
    return found, assumed


def _workload(options: PlanOptions) -> tuple[Workload, Sequence[str], bool]:
    """The requests, the GPU classes, and whether their profiles are assumed."""
    from workloads.analysis.plan import DEFAULT_CLASSES, on_classes, scaled
    from workloads.simulation.fleet import GPU
    from workloads.simulation.workload import read_workload
    from workloads.traces.zoo import parse_profiles

    profile, by_class = parse_profiles(options.profile_texts)
    note_partial(options.path)
    slo_ns = optional_duration_ns(options.slo, "--slo")
    work = scaled(read_workload(options.path, slo_ns=slo_ns), options.scale)
    if profile is not None:
        by_class = {GPU: profile, **by_class}
    if by_class:
        return on_classes(work, by_class), list(by_class), False
    recorded = [c for c in work.models[0].profiles if all(c in model.profiles for model in work.models)]
    if recorded:
        return work, recorded, False
    show_progress("no profile is known: assuming ResNet-50 (published by NVIDIA, workloads/traces/zoo.py)")
    return on_classes(work, DEFAULT_CLASSES), list(DEFAULT_CLASSES), True


def show(found: Mapping[str, Any], options: PlanOptions) -> None:
    in_time = f"{options.attainment:.2%} of {found['requests']:,} requests in time"
    click.echo(f"GPUs for {in_time}, policy {options.policy}, simulated")
    for row in found["rows"]:
        usd = "" if row["usd_per_hour"] is None else f"{row['usd_per_hour']:10,.2f} USD/h"
        mark = "  enough" if row["enough"] else ""
        click.echo(f"{row['gpu_class']:16} {row['gpus']:6,} GPUs {row['attainment']:9.3%} {usd}{mark}")
    for row in found["needed"]:
        if row["gpus"] is None:
            click.echo(f"{row['gpu_class']}: {row['gpus_tried']:,} GPUs are not enough ({row['attainment']:.2%})")
        elif not row["monotone"]:
            click.echo(f"{row['gpu_class']}: attainment does not always rise with GPUs; some larger number was worse")
    for row in found["mixes"]:
        click.echo(f"mix {fleet_text(row['mix'])}: {row['attainment']:.3%}, {row['usd_per_hour']:,.2f} USD/h")
    best = found["cheapest"]
    if best is None:
        click.echo("no class attains the target: allow a longer SLO, or give a faster class with --profile")
        return
    usd_per_hour = best["usd_per_hour"]
    usd = "its price is not known: give --price" if usd_per_hour is None else f"{usd_per_hour:,.2f} USD/h"
    click.echo(f"cheapest: {fleet_text(best['mix'])}, {best['attainment']:.3%} in time, {usd}")
    click.echo(f"prices: {found['prices']}")


def fleet_text(fleet: Mapping[str, int]) -> str:
    return " + ".join(f"{n:,} {name}" for name, n in fleet.items()) or "unknown"
