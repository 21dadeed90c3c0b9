"""``symphony up``: launches instances until a fleet has so many GPUs, after it has shown what they cost."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import click

from autoscale.cli.fleet_options import (
    Caps,
    WhichFleet,
    caps_options,
    dry_run_option,
    fleet_options,
    settings_of,
    settle_option,
)  # fmt: skip
from autoscale.cli.fleet_text import counts, finite, show_launches, usd_per_hour
from symphony_dask.cli.command import command
from symphony_dask.cli.options import gathered, json_option, seconds, yes_option
from symphony_dask.cli.output import print_json, show_progress
from symphony_dask.cli.scheduler_address import scheduler_option

if TYPE_CHECKING:
    from autoscale.fleet.act import Cluster, Step
    from autoscale.fleet.fleet import FleetProtocol, Launch
    from autoscale.fleet.view import Settings


@dataclass(frozen=True)
class UpOptions:
    """How many GPUs there are to be, and how long to wait for them. Times in s."""

    gpus: int
    scheduler: str
    settle_s: float
    wait: bool
    timeout_s: float
    yes: bool
    dry_run: bool


@click.command()
@click.option("--gpus", type=click.IntRange(min=1), required=True, help="Launch until the fleet has this many GPUs.")
@scheduler_option()
@fleet_options
@caps_options
@settle_option
@click.option(
    "--wait/--no-wait", default=True, help="Wait until the workers of the instances have joined, or end before."
)
@click.option(
    "--timeout",
    "timeout_s",
    default="20min",
    show_default=True,
    callback=seconds,
    metavar="DURATION",
    help="Wait no longer than this.",
)
@yes_option
@dry_run_option
@json_option
@gathered(UpOptions)
@command
def up(options: UpOptions, which_fleet: WhichFleet, caps: Caps, as_json: bool) -> None:
    """Launch instances until the fleet has enough GPUs.

    Shows what they cost, and asks before it launches any. It ends no instances: "symphony autoscale" makes the fleet
    follow the load, and "symphony down" ends all.
    """
    from autoscale.fleet.scheduler_view import DaskCluster
    from symphony_dask.cli.scheduler_check import check

    settings = settings_of(which_fleet, caps, settle_s=options.settle_s)
    check(options.scheduler)
    fleet = which_fleet.make(options.scheduler)
    with DaskCluster(options.scheduler) as cluster:
        launches, found = planned(settings, fleet, cluster, options.gpus, err=as_json)
        if not options.dry_run and (launches or options.wait):
            if launches and not options.yes:
                click.confirm(f"Launch {len(launches)} instances?", abort=True, err=as_json)
            poll_s = 1.0 if which_fleet.provider == "local" else 5.0
            found |= launched(settings, fleet, cluster, options, poll_s)
        if as_json:
            print_json(found)
        elif not options.dry_run:
            click.echo(f"{found.get('gpus_ready', 0)} of {options.gpus} GPUs ready {found['why']}".rstrip())


def planned(
    settings: Settings, fleet: FleetProtocol, cluster: Cluster, gpus: int, *, err: bool
) -> tuple[Sequence[Launch], dict[str, Any]]:
    """Show what would be launched; gives the launches, and the same for JSON."""
    from autoscale.fleet.act import Step
    from autoscale.fleet.fleet import Launch
    from autoscale.fleet.reconcile import phases, plan
    from autoscale.fleet.view import Memory

    instances, view = fleet.list(), cluster.view(fleet.name)
    now = Step(instances, phases(instances, view), Memory())
    old = replace(view, age_s=math.inf)  # to show what will be launched, not when
    made = plan(settings, time.time(), instances, old, fleet.offers(), Memory(), gpus, shrink=False)
    launches = [action for action in made.actions if isinstance(action, Launch)]
    usd = now.usd_per_hour + sum(launch.offer.usd_per_hour for launch in launches)
    rows = [{"slot": launch.slot, **asdict(launch.offer)} for launch in launches]
    show_launches(f"fleet {fleet.name}: {counts(now)}", rows, err=err)
    click.echo(f"then at most {usd_per_hour(usd)}" + (f"; {made.why}" if made.why else ""), err=err)
    return launches, {
        "fleet": fleet.name,
        "planned": rows,
        "usd_per_hour": usd,
        "max_usd_per_hour": finite(settings.max_usd_per_hour),
        "why": made.why,
        "launched": [],
    }


def launched(
    settings: Settings, fleet: FleetProtocol, cluster: Cluster, options: UpOptions, poll_s: float
) -> dict[str, Any]:
    """Launch, and wait as the options say; gives what has become of it, for JSON."""
    from autoscale.fleet.act import step
    from autoscale.fleet.view import Memory

    memory, end = Memory(), time.monotonic() + options.timeout_s
    slots: list[str] = []
    while True:
        done = step(settings, fleet, cluster, memory, options.gpus, shrink=False)
        memory = done.memory
        slots += [action.split()[1].rstrip(":") for action in done.actions if action.startswith("launch ")]
        for text in [*done.actions, *done.faults]:
            show_progress(text)
        if _over(done, options) or time.monotonic() > end:
            coming = done.gpus("launching", "booting", "joined")
            return {"launched": slots, "gpus_ready": done.gpus("joined"), "gpus": coming, "why": done.why}
        time.sleep(poll_s)


def _over(done: Step, options: UpOptions) -> bool:
    """Whether there is nothing more to wait for: the GPUs are there, or the caps allow no more."""
    if done.gpus("joined") >= options.gpus or done.why.startswith("the cap"):
        return True
    return not options.wait and done.gpus("launching", "booting", "joined") >= options.gpus
