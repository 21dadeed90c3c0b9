"""`symphony up`, `down`, `orphans`, `autoscale run`, `autoscale prices`: what costs money shows a plan first."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import click

from autoscale.cli.fleet_options import Which, caps_options, seconds, which_options
from symphony_dask.cli.partial_files import write_whole
from symphony_dask.cli.scheduler_address import check, scheduler_option
from symphony_dask.cli.serve import command, json_option, print_json
from symphony_dask.text import did_you_mean

yes_option = click.option("--yes", is_flag=True, help="Do not ask.")
dry_run_option = click.option("--dry-run", is_flag=True, help="Show the plan and do nothing.")
settle_option = click.option(
    "--settle", "settle_s", default="90s", show_default=True, callback=seconds,
    help="How long EC2 may take to list what it launched; nothing is launched until the scheduler is that old.",
)  # fmt: skip
drain_option = click.option(
    "--drain", "drain_s", default="60s", show_default=True, callback=seconds,
    help="How long batches in flight on a worker that goes may take; then they run elsewhere.",
)  # fmt: skip


def _settings(which: Which, max_instances: int, max_usd_per_hour: float, **options: Any) -> Any:
    from autoscale.fleet.reconcile import Settings

    # A new process is listed at once, so nothing has to settle.
    quick = {"settle_s": 5.0, "retry_s": 1.0} if which.provider == "local" else {}
    return Settings(max_instances, max_usd_per_hour, **{**options, **quick})


def _usd(amount: float) -> str:
    return f"{amount:,.2f} USD an hour"


def _cap(amount: float) -> float | None:
    """As JSON has it."""
    return None if math.isinf(amount) else amount


@click.command()
@click.option("--gpus", type=click.IntRange(min=1), required=True, help="So many GPUs there are to be.")
@scheduler_option()
@which_options
@caps_options
@settle_option
@click.option("--wait/--no-wait", default=True, help="Whether to wait until their workers have joined.")
@click.option("--timeout", "timeout_s", default="20min", show_default=True, callback=seconds, help="Of that wait.")
@yes_option
@dry_run_option
@json_option
@command
def up(
    gpus: int,
    scheduler: str,
    which: Which,
    max_instances: int,
    max_usd_per_hour: float,
    settle_s: float,
    wait: bool,
    timeout_s: float,
    yes: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Launch GPU instances until there are so many GPUs. Shows what that costs, and asks.

    Nothing is ended. `symphony autoscale` afterwards follows the load; `symphony down` ends all.
    """
    from autoscale.fleet.act import Step, step
    from autoscale.fleet.fleet import Launch
    from autoscale.fleet.reconcile import Memory, phases, plan
    from autoscale.fleet.scheduler_view import DaskCluster

    settings = _settings(which, max_instances, max_usd_per_hour, settle_s=settle_s)
    check(scheduler)
    fleet = which.make(scheduler)
    with DaskCluster(scheduler) as cluster:
        instances, view = fleet.list(), cluster.view(fleet.name)
        now = Step(instances, phases(instances, view), Memory())
        old = replace(view, age_s=math.inf)  # to show what will be launched, not when
        made = plan(settings, time.time(), instances, old, fleet.offers(), Memory(), gpus, shrink=False)
        launches = [a for a in made.actions if isinstance(a, Launch)]
        usd = now.usd_per_hour + sum(a.offer.usd_per_hour for a in launches)
        rows = [{"slot": a.slot, **asdict(a.offer)} for a in launches]
        found: dict[str, Any] = {
            "fleet": fleet.name,
            "planned": rows,
            "usd_per_hour": usd,
            "max_usd_per_hour": _cap(max_usd_per_hour),
            "why": made.why,
            "launched": [],
        }
        _show_plan(f"fleet {fleet.name}: {_counts(now)}", rows, err=as_json)
        click.echo(f"then at most {_usd(usd)}" + (f"; {made.why}" if made.why else ""), err=as_json)
        if not dry_run and (launches or wait):
            if launches and not yes:
                click.confirm(f"Launch {len(launches)} instances?", abort=True, err=as_json)
            memory, end = Memory(), time.monotonic() + timeout_s
            while True:
                done = step(settings, fleet, cluster, memory, gpus, shrink=False)
                memory = done.memory
                found["launched"] += [a.split()[1].rstrip(":") for a in done.actions if a.startswith("launch ")]
                for text in [*done.actions, *done.faults]:
                    click.echo(text, err=True)
                ready, coming = done.gpus("joined"), done.gpus("launching", "booting", "joined")
                found |= {"gpus_ready": ready, "gpus": coming, "why": done.why}
                if ready >= gpus or (coming >= gpus and not wait) or time.monotonic() > end or _stuck(done.why):
                    break
                time.sleep(1.0 if which.provider == "local" else 5.0)
        if as_json:
            print_json(found)
        elif not dry_run:
            click.echo(f"{found.get('gpus_ready', 0)} of {gpus} GPUs ready {found['why']}".rstrip())


def _stuck(why: str) -> bool:
    """Whether waiting will not help: caps, but not what lacks now."""
    return why.startswith("the cap")


def _counts(step: Any) -> str:
    counts = step.summary()["instances"]
    return ", ".join(f"{n} {phase}" for phase, n in counts.items() if n) or "no instances"


def _show_plan(title: str, rows: Sequence[dict[str, Any]], *, err: bool) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title)
    for column in ("slot", "type", "market", "zone", "GPUs", "USD/h at most"):
        table.add_column(column)
    for r in rows:
        table.add_row(
            str(r["slot"]), r["instance_type"], r["market"], r["zone"], str(r["gpus"]), f"{r['usd_per_hour']:.3f}"
        )
    console = Console(stderr=err)
    console.print(table if rows else f"{title}; nothing to launch")


@click.command()
@scheduler_option(required=False, purpose="not needed with --now")
@which_options
@drain_option
@click.option("--now", is_flag=True, help="End the instances without draining them: what they run is lost.")
@click.option("--timeout", "timeout_s", default="20min", show_default=True, callback=seconds)
@yes_option
@dry_run_option
@json_option
@command
def down(
    scheduler: str | None,
    which: Which,
    drain_s: float,
    now: bool,
    timeout_s: float,
    yes: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Drain and end all instances of a fleet. Stop its controller first: it would launch others."""
    from autoscale.fleet.act import step
    from autoscale.fleet.reconcile import Memory, unlisted
    from autoscale.fleet.scheduler_view import DaskCluster
    from symphony_dask.errors import BadInput

    if scheduler is None and not now:
        raise BadInput("give --scheduler, so that workers can be drained, or --now to end them as they are")
    if scheduler is not None and not now:
        check(scheduler)
    fleet = which.make(scheduler)
    live = [i for i in fleet.list() if i.live]
    found = {"fleet": fleet.name, "ended": [i.id for i in live], "left": [i.id for i in live]}
    usd = sum(i.usd_per_hour for i in live)
    for i in live:
        text = f"{i.id}  slot {i.slot}  {i.instance_type} {i.market} in {i.zone}  {i.state}  {i.gpus} GPUs"
        click.echo(text, err=as_json)
    click.echo(f"fleet {fleet.name}: {len(live)} instances, at most {_usd(usd)}", err=as_json)
    if live and not dry_run:
        if not yes:
            click.confirm(f"End {len(live)} instances?", abort=True, err=as_json)
        end = time.monotonic() + timeout_s
        memory = Memory()
        cluster = DaskCluster(scheduler) if scheduler is not None and not now else None
        try:
            if cluster is None:
                fleet.terminate([i.id for i in live])
            settings, coming = _settings(which, 0, 0.0, drain_s=drain_s), True
            while (live or coming) and time.monotonic() < end:
                if cluster is not None:
                    done = step(settings, fleet, cluster, memory, 0)
                    memory = done.memory
                    for text in [*done.actions, *done.faults]:
                        click.echo(text, err=True)
                instances = fleet.list()
                live = [i for i in instances if i.live]
                # What was launched a moment ago may not be listed yet.
                coming = cluster is not None and bool(unlisted(settings, instances, cluster.view(fleet.name)))
                found["left"] = [i.id for i in live]
                if live or coming:
                    time.sleep(0.5 if which.provider == "local" else 5.0)
        finally:
            if cluster is not None:
                cluster.close()
    if as_json:
        print_json(found)
    elif not dry_run:
        click.echo(f"{len(found['left'])} instances left")
    if live and not dry_run:
        raise SystemExit(1)


@click.command()
@scheduler_option(required=False, purpose="to know who has joined")
@which_options
@click.option(
    "--join-timeout", "join_timeout_s", default="10min", show_default=True, callback=seconds,
    help="An instance whose worker has not joined by then is an orphan.",
)  # fmt: skip
@click.option("--terminate", is_flag=True, help="End them.")
@yes_option
@json_option
@command
def orphans(
    scheduler: str | None, which: Which, join_timeout_s: float, terminate: bool, yes: bool, as_json: bool
) -> None:
    """List instances of a fleet that cost money and serve nobody: they have no worker at the scheduler.

    Without a scheduler, all instances of the fleet. A running controller ends orphans by itself.
    """
    from autoscale.fleet.reconcile import phases
    from autoscale.fleet.scheduler_view import DaskCluster

    if scheduler is not None:
        check(scheduler)
    fleet = which.make(scheduler)
    live = [i for i in fleet.list() if i.live]
    if scheduler is not None:
        with DaskCluster(scheduler) as cluster:
            phase_of = phases(live, cluster.view(fleet.name))
        old_s = time.time() - join_timeout_s
        found = [i for i in live if phase_of[i.id] in ("launching", "booting") and i.launched_s < old_s]
    else:
        found = [i for i in live if i.up]
    rows = [
        {
            "id": i.id,
            "slot": i.slot,
            "type": i.instance_type,
            "zone": i.zone,
            "age_s": round(time.time() - i.launched_s),
        }
        | {"usd_per_hour": i.usd_per_hour}
        for i in found
    ]
    for r in rows:
        click.echo(f"{r['id']}  slot {r['slot']}  {r['type']} in {r['zone']}  {r['age_s']} s old", err=as_json)
    usd = sum(i.usd_per_hour for i in found)
    text = f"{len(found)} orphans of {len(live)} instances of fleet {fleet.name}, at most {_usd(usd)}"
    click.echo(text, err=as_json)
    ended = False
    if terminate and found:
        if not yes:
            click.confirm(f"End {len(found)} instances?", abort=True, err=as_json)
        fleet.terminate([i.id for i in found])
        ended = True
    if as_json:
        print_json({"fleet": fleet.name, "instances": len(live), "orphans": rows, "terminated": ended})


@click.command()
@scheduler_option()
@which_options
@caps_options
@settle_option
@drain_option
@click.option(
    "--policy", default="load_proportional", show_default=True, help="One of autoscale.policies.registry.POLICIES."
)
@click.option("--minimum", type=click.IntRange(min=0), default=0, show_default=True, help="GPUs, at least.")
@click.option("--maximum", type=click.IntRange(min=1), default=64, show_default=True, help="GPUs, at most.")
@click.option("--boot", "boot_s", default="120s", show_default=True, callback=seconds, help="From launch to serving.")
@click.option(
    "--scale-in-window", "window_s", default="5min", show_default=True, callback=seconds,
    help="The fleet shrinks to the most that was wanted in so long a time.",
)  # fmt: skip
@click.option(
    "--last-delay", "last_s", default="15min", show_default=True, callback=seconds,
    help="The last GPU goes when there was no request for so long.",
)  # fmt: skip
@click.option("--join-timeout", "join_timeout_s", default="10min", show_default=True, callback=seconds)
@click.option("--interval", "interval_s", default="2s", show_default=True, callback=seconds, help="Between looks.")
@yes_option
@dry_run_option
@json_option
@command
def run(
    scheduler: str,
    which: Which,
    max_instances: int,
    max_usd_per_hour: float,
    settle_s: float,
    drain_s: float,
    policy: str,
    minimum: int,
    maximum: int,
    boot_s: float,
    window_s: float,
    last_s: float,
    join_timeout_s: float,
    interval_s: float,
    yes: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Have the fleet follow the load, until SIGTERM. The instances stay; `symphony down` ends them.

    --dry-run shows one decision and what it would do. With --json, one object a look, a line each.
    """
    from autoscale.fleet.controller import Controller, by_policy
    from autoscale.fleet.scheduler_view import DaskCluster
    from autoscale.policies.registry import POLICIES
    from autoscale.policies.registry import Settings as PolicySettings
    from symphony_dask.errors import BadInput

    if policy not in POLICIES:
        raise BadInput(
            f"policy {policy!r} is unknown: choose one of {', '.join(POLICIES)}{did_you_mean(policy, POLICIES)}"
        )
    settings = _settings(
        which, max_instances, max_usd_per_hour, settle_s=settle_s, drain_s=drain_s, join_timeout_s=join_timeout_s
    )
    wanted = PolicySettings(
        boot_s=boot_s, scale_in_window_s=window_s, last_delay_s=last_s, minimum=minimum, maximum=maximum
    )
    check(scheduler)
    fleet = which.make(scheduler)
    with DaskCluster(scheduler) as cluster:
        decide = by_policy(policy, wanted, cluster.signals)
        if dry_run:
            _show_decision(settings, fleet, cluster, decide, as_json)
            return
        usd = min(max_usd_per_hour, max_instances * max(o.usd_per_hour for o in fleet.offers()))
        text = f"fleet {fleet.name}: up to {max_instances} instances, at most {_usd(usd)}, by policy {policy}"
        click.echo(text, err=True)
        if not yes:
            click.confirm("Follow the load?", abort=True, err=True)
        controller = Controller(
            settings, fleet, cluster, decide, interval_s, which.notices(), cluster.record_scaling, _teller(as_json)
        )
        _stop_on_signals(controller)
        controller.run()


def _stop_on_signals(controller: Any) -> None:
    """End the loop, not the step under way, on SIGTERM and Control-C."""
    import signal

    def stop(number: int, frame: Any) -> None:
        controller.stopped = True

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)


def _teller(as_json: bool) -> Any:
    """Tells of each step: all of it as JSON, or what was done."""

    def tell(step: Any, decision: Any) -> None:
        if as_json:
            print_json({"time_s": time.time(), "gpus": decision.gpus, "policy": decision.why, **step.summary()})
            return
        for text in [*step.actions, *step.faults]:
            click.echo(f"{time.strftime('%H:%M:%S')}  {text}")

    return tell


def _show_decision(settings: Any, fleet: Any, cluster: Any, decide: Any, as_json: bool) -> None:
    """One decision, and what it would have done."""
    from autoscale.fleet.act import Step
    from autoscale.fleet.reconcile import Memory, phases, plan

    instances, view = fleet.list(), cluster.view(fleet.name)
    now = Step(instances, phases(instances, view), Memory())
    decision = decide(now.gpus("joined"), now.gpus("launching", "booting"), now.gpus("draining", "terminating"))
    made = plan(settings, time.time(), instances, view, fleet.offers(), Memory(), decision.gpus)
    actions = [f"{type(a).__name__.lower()} {getattr(a, 'id', None) or getattr(a, 'offer', '')}" for a in made.actions]
    found = {**now.summary(), "gpus": decision.gpus, "policy": decision.why, "actions": actions, "why": made.why}
    if as_json:
        print_json(found)
        return
    click.echo(f"fleet {fleet.name}: {_counts(now)}; {decision.gpus} GPUs wanted: {decision.why}")
    for text in [*actions, made.why]:
        if text:
            click.echo(f"  {text}")


@click.command()
@click.option("--refresh", is_flag=True, help="Read AWS's price list now (needs pricing:GetProducts).")
@click.option("--region", default="us-east-1", show_default=True, help="Whose prices to read.")
@click.option("--out", type=click.Path(dir_okay=False), help="Write the table here; then set symphony.prices to it.")
@json_option
@command
def prices(refresh: bool, region: str, out: str | None, as_json: bool) -> None:
    """Show the price table that caps, plans and reports go by, or make a new one."""
    from autoscale.providers.price_refresh import LIST_REGION, as_text, refreshed
    from autoscale.providers.prices import table

    if refresh:
        from autoscale.providers.ec2 import check_reachable

        check_reachable("pricing", region=LIST_REGION)
    found = refreshed(table(), region) if refresh else table()
    if out is not None:
        write_whole(out, as_text(found))
    if as_json:
        print_json(found)
        return
    click.echo(f"{found['region']}, as of {found['as_of']}: {found['source']}")
    for row in found["instances"]:
        click.echo(f"{row['instance']:16} {row['gpus']} x {row['gpu']:6} {row['usd_per_hour']:9.4f} USD/h")


class RunByDefault(click.Group):
    """`symphony autoscale --scheduler ...` is `symphony autoscale run --scheduler ...`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0].startswith("-") and args[0] not in ctx.help_option_names:
            args = ["run", *args]
        return super().parse_args(ctx, args)


#: Of the group ``symphony autoscale``.
AUTOSCALE = [run, prices]

COMMANDS = [up, down, orphans]
