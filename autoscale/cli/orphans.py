"""``symphony orphans``: lists instances of a fleet that cost money and serve nobody, and can end them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from autoscale.cli.fleet_options import WhichFleet, fleet_options
from autoscale.cli.fleet_text import usd_per_hour
from symphony_dask.cli.command import command
from symphony_dask.cli.options import gathered, json_option, seconds, yes_option
from symphony_dask.cli.output import print_json
from symphony_dask.cli.scheduler_address import scheduler_option

if TYPE_CHECKING:
    from autoscale.fleet.fleet import FleetProtocol, Instance


@dataclass(frozen=True)
class OrphansOptions:
    """Which instances are orphans, and whether they end. Times in s."""

    scheduler: str | None
    join_timeout_s: float
    terminate: bool
    yes: bool


@click.command()
@scheduler_option(required=False, note="Without any, all instances of the fleet are listed.")
@fleet_options
@click.option(
    "--join-timeout",
    "join_timeout_s",
    default="10min",
    show_default=True,
    callback=seconds,
    metavar="DURATION",
    help="List instances whose worker has not joined by this time.",
)
@click.option("--terminate", is_flag=True, help="End the instances that are listed.")
@yes_option
@json_option
@gathered(OrphansOptions)
@command
def orphans(options: OrphansOptions, which_fleet: WhichFleet, as_json: bool) -> None:
    """List instances that cost money but serve nobody.

    These are instances of the fleet that have no worker at the scheduler. A running controller (symphony autoscale)
    ends them by itself.
    """
    from symphony_dask.cli.scheduler_check import check

    if options.scheduler is not None:
        check(options.scheduler)
    fleet = which_fleet.make(options.scheduler)
    live = [i for i in fleet.list() if i.live]
    found = orphans_of(fleet, live, options)
    show(fleet.name, found, of=len(live), err=as_json)
    ended = False
    if options.terminate and found:
        if not options.yes:
            click.confirm(f"End {len(found)} instances?", abort=True, err=as_json)
        fleet.terminate([i.id for i in found])
        ended = True
    if as_json:
        rows = [_row(i) for i in found]
        print_json({"fleet": fleet.name, "instances": len(live), "orphans": rows, "terminated": ended})


def orphans_of(fleet: FleetProtocol, live: Sequence[Instance], options: OrphansOptions) -> list[Instance]:
    """Those of the live instances that have no worker, and had the time to get one."""
    from autoscale.fleet.reconcile import phases
    from autoscale.fleet.scheduler_view import DaskCluster

    if options.scheduler is None:
        return [i for i in live if i.up]
    with DaskCluster(options.scheduler) as cluster:
        phase_of = phases(live, cluster.view(fleet.name))
    old_s = time.time() - options.join_timeout_s
    return [i for i in live if phase_of[i.id] in ("launching", "booting") and i.launched_s < old_s]


def show(fleet: str, found: Sequence[Instance], *, of: int, err: bool) -> None:
    for r in map(_row, found):
        click.echo(f"{r['id']}  slot {r['slot']}  {r['type']} in {r['zone']}  {r['age_s']} s old", err=err)
    usd = usd_per_hour(sum(i.usd_per_hour for i in found))
    click.echo(f"{len(found)} orphans of {of} instances of fleet {fleet}, at most {usd}", err=err)


def _row(instance: Instance) -> dict[str, str | int | float]:
    return {
        "id": instance.id,
        "slot": instance.slot,
        "type": instance.instance_type,
        "zone": instance.zone,
        "age_s": round(time.time() - instance.launched_s),
        "usd_per_hour": instance.usd_per_hour,
    }
