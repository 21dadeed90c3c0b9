"""``symphony down``: drains and ends all instances of a fleet."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from autoscale.cli.fleet_options import (
    Caps,
    WhichFleet,
    drain_option,
    dry_run_option,
    fleet_options,
    settings_of,
)  # fmt: skip
from autoscale.cli.fleet_text import usd_per_hour
from symphony_dask.cli.command import command
from symphony_dask.cli.options import gathered, json_option, seconds, yes_option
from symphony_dask.cli.output import print_json, show_progress
from symphony_dask.cli.scheduler_address import scheduler_option
from symphony_dask.errors import BadInput

if TYPE_CHECKING:
    from autoscale.fleet.fleet import FleetProtocol, Instance
    from autoscale.fleet.view import Settings


@dataclass(frozen=True)
class DownOptions:
    """How instances end. Times in s."""

    scheduler: str | None
    drain_s: float
    now: bool
    timeout_s: float
    yes: bool
    dry_run: bool


@click.command()
@scheduler_option(required=False, note="With --now, none is needed.")
@fleet_options
@drain_option
@click.option("--now", is_flag=True, help="End the instances without draining them, and lose what they run.")
@click.option(
    "--timeout",
    "timeout_s",
    default="20min",
    show_default=True,
    callback=seconds,
    metavar="DURATION",
    help="Give up after this time, and list the instances that are left.",
)
@yes_option
@dry_run_option
@json_option
@gathered(DownOptions)
@command
def down(options: DownOptions, which_fleet: WhichFleet, as_json: bool) -> None:
    """Drain and end all instances of a fleet.

    Stop the fleet's controller (symphony autoscale) first, or it launches others. Exits with 1 if instances are left.
    """
    from symphony_dask.cli.scheduler_check import check

    if options.scheduler is None and not options.now:
        raise BadInput("give --scheduler, so that workers can be drained, or --now to end them as they are")
    if options.scheduler is not None and not options.now:
        check(options.scheduler)
    fleet = which_fleet.make(options.scheduler)
    live = [i for i in fleet.list() if i.live]
    found = {"fleet": fleet.name, "ended": [i.id for i in live], "left": [i.id for i in live]}
    show_instances(fleet.name, live, err=as_json)
    if live and not options.dry_run:
        if not options.yes:
            click.confirm(f"End {len(live)} instances?", abort=True, err=as_json)
        settings = settings_of(which_fleet, Caps(0, 0.0), drain_s=options.drain_s)
        live = ended(settings, fleet, live, options, poll_s=0.5 if which_fleet.provider == "local" else 5.0)
        found["left"] = [i.id for i in live]
    if as_json:
        print_json(found)
    elif not options.dry_run:
        click.echo(f"{len(found['left'])} instances left")
    if live and not options.dry_run:
        raise SystemExit(1)


def show_instances(fleet: str, live: Sequence[Instance], *, err: bool) -> None:
    for i in live:
        text = f"{i.id}  slot {i.slot}  {i.instance_type} {i.market} in {i.zone}  {i.state}  {i.gpus} GPUs"
        click.echo(text, err=err)
    usd = usd_per_hour(sum(i.usd_per_hour for i in live))
    click.echo(f"fleet {fleet}: {len(live)} instances, at most {usd}", err=err)


def ended(
    settings: Settings, fleet: FleetProtocol, live: Sequence[Instance], options: DownOptions, *, poll_s: float
) -> list[Instance]:
    """Drain and end the instances, at most for the time of the options; gives those that are left."""
    from contextlib import nullcontext

    from autoscale.fleet.act import step
    from autoscale.fleet.reconcile import unlisted
    from autoscale.fleet.scheduler_view import DaskCluster
    from autoscale.fleet.view import Memory

    end = time.monotonic() + options.timeout_s
    memory, left, coming = Memory(), list(live), True
    drains = options.scheduler is not None and not options.now
    with DaskCluster(options.scheduler or "") if drains else nullcontext() as cluster:
        if cluster is None:
            fleet.terminate([i.id for i in live])
        while (left or coming) and time.monotonic() < end:
            if cluster is not None:
                done = step(settings, fleet, cluster, memory, 0)
                memory = done.memory
                for text in [*done.actions, *done.faults]:
                    show_progress(text)
            instances = fleet.list()
            left = [i for i in instances if i.live]
            # What was launched a moment ago may not be listed yet.
            coming = cluster is not None and bool(unlisted(settings, instances, cluster.view(fleet.name)))
            if left or coming:
                time.sleep(poll_s)
    return left
