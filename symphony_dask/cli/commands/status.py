"""``symphony status``: prints the models, workers, drains and fleets of a cluster once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from symphony_dask.cli.command import command
from symphony_dask.cli.options import json_option
from symphony_dask.cli.output import print_json
from symphony_dask.cli.scheduler_address import scheduler_option

if TYPE_CHECKING:
    from rich.table import Table

#: What ``Serving.status`` gives, and its parts.
Status = Mapping[str, Any]


@click.command()
@scheduler_option()
@json_option
@command
def status(scheduler: str, as_json: bool) -> None:
    """Show a cluster's models, workers, outcomes and fleets.

    A fleet is shown as its controller (symphony autoscale) last saw it.
    """
    from symphony_dask.cli.scheduler_check import connected

    with connected(scheduler) as serving:
        found = serving.status()
    if as_json:
        print_json(found)
    else:
        show(found)


def show(found: Status) -> None:
    """Print tables of models and workers, and a line for each problem, drain and fleet."""
    from rich.console import Console

    console = Console()
    console.print(models_table(found))
    console.print(workers_table(found["workers"]))
    for text in found["problems"]:
        click.echo(text)
    for key, drain in found["drains"].items():
        text = f"{drain['state']} for {drain['age_s']:.0f} s, {drain['in_flight']} batches in flight: {drain['why']}"
        click.echo(f"{key}: {text}")
    for name, fleet in found["fleets"].items():
        show_fleet(name, fleet)


def models_table(found: Status) -> Table:
    from rich.table import Table

    from symphony_dask.units import format_duration

    table = Table(title=f"Models (policy {found['policy']})")
    for column in ("model", "SLO", "queued", "target batch", "mean batch", "rate", "outcomes"):
        table.add_column(column, justify="left" if column in ("model", "outcomes") else "right")
    for name, m in found["models"].items():
        outcomes = ", ".join(f"{k} {v:,}" for k, v in m["outcomes"].items() if v) or "none"
        mean = "-" if m["mean_batch"] is None else f"{m['mean_batch']:.1f}"
        rate = f"{m['rate_hz']:,.0f}/s"
        table.add_row(
            name, format_duration(m["slo_ns"]), str(m["queued"]), str(m["target_batch"]), mean, rate, outcomes
        )
    return table


def workers_table(workers: Status) -> Table:
    from rich.table import Table

    from symphony_dask.units import format_duration

    table = Table(title="Workers")
    for column in ("worker", "GPU class", "slots", "in flight", "control latency", "state"):
        table.add_column(column)
    for address, w in workers.items():
        if "slots" not in w:  # it has just gone
            continue
        takes = "serving" if w["answering"] else "stalled" if w["serving"] else "loading"
        state = w.get("error") or ("draining" if w["draining"] else takes)
        latency = format_duration(w["control_ns"])
        table.add_row(address, w["gpu_class"], str(w["slots"]), str(w["in_flight"]), latency, state)
    return table


def show_fleet(name: str, fleet: Status) -> None:
    instances = ", ".join(f"{n} {phase}" for phase, n in fleet["instances"].items() if n) or "no instances"
    most_usd = fleet["max_usd_per_hour"]
    cost = f"{fleet['usd_per_hour']:.2f}{'' if most_usd is None else f' of {most_usd:g}'} USD an hour at most"
    click.echo(f"fleet {name}, {fleet['age_s']:.0f} s ago: {instances}; {fleet['gpus']} GPUs wanted; {cost}")
    click.echo(f"  {fleet['policy']}")
    for text in [fleet["why"], *fleet["faults"]]:
        if text:
            click.echo(f"  {text}")
