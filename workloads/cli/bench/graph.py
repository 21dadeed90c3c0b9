"""``symphony bench graph``: measures tasks a second of a model in a Dask graph."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from symphony_dask.cli.command import command
from symphony_dask.cli.options import json_option
from symphony_dask.cli.output import print_json, show_progress
from workloads.cli.bench.options import batch_option


@click.command()
@click.option("--tasks", default=1000, show_default=True, help="Map this many tasks each time.")
@click.option("--rounds", default=5, show_default=True, help="Take the best of this many maps of each kind.")
@batch_option(64)
@json_option
@command
def graph(tasks: int, rounds: int, batch: int, as_json: bool) -> None:
    """Measure client.map of a model, beside that of a function.

    Both take no time, so this is what the way there and back costs.
    """
    from workloads.bench.graph import bench_graph

    found = bench_graph(tasks=tasks, rounds=rounds, batch=batch, on_progress=show_progress)
    if as_json:
        print_json(found)
    else:
        show(found)


def show(found: Mapping[str, Any]) -> None:
    for row in found["rows"]:
        click.echo(f"{row['threads']} threads a worker: {row['ratio']:.2f} times plain tasks")
        for name in ("model", "function"):
            rate, scheduler, workers = (row[f"{name}_{key}"] for key in ("hz", "scheduler_cpu_us", "worker_cpu_us"))
            cpu = f"CPU for each: {scheduler:.0f} us scheduler, {workers:.0f} us workers"
            click.echo(f"  client.map({name}, ...)".ljust(28) + f"{rate:8,.0f} tasks/s  {cpu}")
