"""``symphony demo``: compares ways of batching on a cluster that it starts on this machine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from symphony_dask.cli.command import command
from symphony_dask.cli.options import json_option
from symphony_dask.cli.output import print_json
from workloads.cli.progress_bars import bars_by_name


@click.command()
@click.option("--torch", is_flag=True, help="Serve a torch network on the CPU, and check each answer.")
@click.option(
    "--folder", type=click.Path(), help="Record the runs in this folder. By default, symphony-runs/demo-TIME."
)
@json_option
@command
def demo(torch: bool, folder: str | None, as_json: bool) -> None:
    """Compare ways of batching on a local cluster.

    Starts Dask processes with emulated GPUs on this machine, and replays a part of a recorded trace of LLM requests
    (Azure, 2023) under each policy. Eager batching runs whatever waits as soon as a GPU is free; deferred batching
    waits for as long as the deadlines allow, and so needs fewer GPUs. Adaptive batching, the default, sends a batch at
    once while few GPUs are at work, and waits where more would be needed.
    """
    from workloads.live import demo as demos

    with bars_by_name() as on_progress:
        results = demos.demo(folder, torch=torch, on_progress=on_progress)
    if as_json:
        print_json(results)
        return
    show(results, f"Azure LLM trace at {demos.SPEED:g}x", torch=torch)
    if any(result["wrong_answers"] for result in results.values()):
        raise click.ClickException("some answers differ from the network run alone")


def show(results: Mapping[str, Mapping[str, Any]], title: str, *, torch: bool) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{title}, {next(iter(results.values()))['label']}")
    heads = ("policy", "offered\nreq/s", "SLO attain-\nment", "goodput\nreq/s", "p50\nms", "p99\nms")
    for head in (*heads, "mean\nbatch", "busy\nGPUs"):
        table.add_column(head, justify="left" if head == "policy" else "right", no_wrap=True)
    for policy, r in results.items():
        rates = (f"{r['offered_hz']:,.0f}", f"{r['attainment']:.2%}", f"{r['goodput_hz']:,.0f}")
        times = (f"{r['p50_ms']:.1f}", f"{r['p99_ms']:.1f}")
        table.add_row(policy, *rates, *times, f"{r['mean_batch']:.1f}", f"{r['busy_gpus']:.2f}")
    console = Console()
    console.print(table)
    for policy, r in results.items():
        if torch:
            console.print(f"{policy}: {r['wrong_answers']} answers differ from the network run alone")
        console.print(f"{policy} run: {r['run']}", soft_wrap=True)
