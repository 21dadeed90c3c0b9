"""``symphony autoscale run``: runs the controller that makes a fleet follow the load."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING

import click

from autoscale.cli.fleet_options import (
    Caps,
    WhichFleet,
    caps_options,
    drain_option,
    dry_run_option,
    fleet_options,
    settings_of,
    settle_option,
)  # fmt: skip
from autoscale.cli.fleet_text import counts, usd_per_hour
from symphony_dask.cli.command import command
from symphony_dask.cli.options import gathered, json_option, seconds, yes_option
from symphony_dask.cli.output import print_json, show_progress
from symphony_dask.cli.scheduler_address import scheduler_option
from symphony_dask.errors import BadInput
from symphony_dask.text import did_you_mean

if TYPE_CHECKING:
    from autoscale.fleet.act import Cluster, Step
    from autoscale.fleet.controller import Controller, Decide, Decision
    from autoscale.fleet.fleet import FleetProtocol
    from autoscale.fleet.view import Settings
    from autoscale.policies.decision import Settings as PolicySettings


#: The names, for help that does not load them.
POLICIES = "load_proportional, dask_adaptive, ray_ongoing, gpu_utilization, fixed_peak"


@dataclass(frozen=True)
class RunOptions:
    """How the controller works and by what policy. Times in s."""

    scheduler: str
    settle_s: float
    drain_s: float
    join_timeout_s: float
    interval_s: float
    policy: str
    minimum: int
    maximum: int
    boot_s: float
    window_s: float
    last_s: float
    yes: bool
    dry_run: bool

    def policy_settings(self) -> PolicySettings:
        """Raises ``BadInput`` where there is no such policy."""
        from autoscale.policies.registry import POLICIES, Settings

        if self.policy not in POLICIES:
            hint = did_you_mean(self.policy, POLICIES)
            raise BadInput(f"policy {self.policy!r} is unknown: choose one of {', '.join(POLICIES)}{hint}")
        return Settings(
            boot_s=self.boot_s,
            scale_in_window_s=self.window_s,
            last_delay_s=self.last_s,
            minimum=self.minimum,
            maximum=self.maximum,
        )


@click.command()
@scheduler_option()
@fleet_options
@caps_options
@settle_option
@drain_option
@click.option(
    "--policy",
    default="load_proportional",
    show_default=True,
    help=f"Decide by this policy: {POLICIES}.",
)
@click.option(
    "--minimum", type=click.IntRange(min=0), default=0, show_default=True, help="Keep at least this many GPUs."
)
@click.option(
    "--maximum", type=click.IntRange(min=1), default=64, show_default=True, help="Keep at most this many GPUs."
)
@click.option(
    "--boot",
    "boot_s",
    default="120s",
    show_default=True,
    callback=seconds,
    metavar="DURATION",
    help="Expect an instance to serve this long after its launch.",
)
@click.option(
    "--scale-in-window",
    "window_s",
    default="5min",
    show_default=True,
    callback=seconds,
    metavar="DURATION",
    help="Shrink to the most GPUs that were wanted within this time.",
)
@click.option(
    "--last-delay",
    "last_s",
    default="15min",
    show_default=True,
    callback=seconds,
    metavar="DURATION",
    help="End the last GPU when no request came for this time.",
)
@click.option(
    "--join-timeout",
    "join_timeout_s",
    default="10min",
    show_default=True,
    callback=seconds,
    metavar="DURATION",
    help="Replace an instance whose worker has not joined by this time.",
)
@click.option(
    "--interval",
    "interval_s",
    default="2s",
    show_default=True,
    callback=seconds,
    metavar="DURATION",
    help="Look and decide this often.",
)
@yes_option
@dry_run_option
@json_option
@gathered(RunOptions)
@command
def run(options: RunOptions, which_fleet: WhichFleet, caps: Caps, as_json: bool) -> None:
    """Make the fleet follow the load, until SIGTERM.

    Leaves the instances running when it ends: "symphony down" ends them. With --dry-run, it shows one decision and
    what that would do. With --json, it prints one object a line, each time that it looks.
    """
    from autoscale.fleet.controller import Controller, by_policy
    from autoscale.fleet.scheduler_view import DaskCluster
    from symphony_dask.cli.scheduler_check import check

    wanted = options.policy_settings()
    settings = settings_of(
        which_fleet, caps,
        settle_s=options.settle_s, drain_s=options.drain_s, join_timeout_s=options.join_timeout_s,
    )  # fmt: skip
    check(options.scheduler)
    fleet = which_fleet.make(options.scheduler)
    with DaskCluster(options.scheduler) as cluster:
        decide = by_policy(options.policy, wanted, cluster.signals)
        if options.dry_run:
            show_decision(settings, fleet, cluster, decide, as_json)
            return
        usd = min(caps.max_usd_per_hour, caps.max_instances * max(o.usd_per_hour for o in fleet.offers()))
        limits = f"up to {caps.max_instances} instances, at most {usd_per_hour(usd)}"
        show_progress(f"fleet {fleet.name}: {limits}, by policy {options.policy}")
        if not options.yes:
            click.confirm("Follow the load?", abort=True, err=True)
        notices, show = which_fleet.notices(), step_shown(as_json)
        controller = Controller(
            settings, fleet, cluster, decide, options.interval_s, notices, cluster.record_scaling, show
        )
        stop_on_signals(controller)
        controller.run()


def stop_on_signals(controller: Controller) -> None:
    """End the loop, not the step under way, on SIGTERM and Control-C."""

    def stop(number: int, frame: FrameType | None) -> None:
        controller.stopped = True

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)


def step_shown(as_json: bool) -> Callable[[Step, Decision], None]:
    """What shows each step: all of it as JSON, or what was done."""

    def show(step: Step, decision: Decision) -> None:
        if as_json:
            print_json({"time_s": time.time(), "gpus": decision.gpus, "policy": decision.why, **step.summary()})
            return
        for text in [*step.actions, *step.faults]:
            click.echo(f"{time.strftime('%H:%M:%S')}  {text}")

    return show


def show_decision(settings: Settings, fleet: FleetProtocol, cluster: Cluster, decide: Decide, as_json: bool) -> None:
    """One decision, and what it would have done."""
    from autoscale.fleet.act import Step
    from autoscale.fleet.reconcile import phases, plan
    from autoscale.fleet.view import Memory

    instances, view = fleet.list(), cluster.view(fleet.name)
    now = Step(instances, phases(instances, view), Memory())
    decision = decide(now.gpus("joined"), now.gpus("launching", "booting"), now.gpus("draining", "terminating"))
    made = plan(settings, time.time(), instances, view, fleet.offers(), Memory(), decision.gpus)
    actions = [f"{type(a).__name__.lower()} {getattr(a, 'id', None) or getattr(a, 'offer', '')}" for a in made.actions]
    if as_json:
        found = {"gpus": decision.gpus, "policy": decision.why, "actions": actions, "why": made.why}
        print_json({**now.summary(), **found})
        return
    click.echo(f"fleet {fleet.name}: {counts(now)}; {decision.gpus} GPUs wanted: {decision.why}")
    for text in [*actions, made.why]:
        if text:
            click.echo(f"  {text}")
