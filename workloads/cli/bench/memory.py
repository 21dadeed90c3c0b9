"""``symphony bench memory``: measures how memory grows over millions of requests."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from symphony_dask.cli.command import command
from symphony_dask.cli.options import json_option
from symphony_dask.cli.output import print_json, show_progress
from workloads.cli.bench.options import batch_option, payload_option


@click.command()
@click.option("--requests", default=2_000_000, show_default=True, help="Send this many requests in all.")
@batch_option(32)
@payload_option(100)
@json_option
@command
def memory(requests: int, batch: int, payload_bytes: int, as_json: bool) -> None:
    """Measure how memory grows over millions of requests.

    That is the resident memory of scheduler, workers and client.
    """
    from workloads.bench.memory import bench_memory

    found = bench_memory(requests=requests, batch=batch, payload_bytes=payload_bytes, on_progress=show_progress)
    if as_json:
        print_json(found)
    else:
        show(found)


def show(found: Mapping[str, Any]) -> None:
    click.echo(f"{found['requests']:,} requests at {found['rate_hz']:,.0f} a second; MiB after the first tenth")
    for row in found["rows"]:
        click.echo(
            f"  {row['process']:10} {row['begin_mib']:7.1f}, at most {row['most_mib']:7.1f} ({row['growth']:+.1%}), "
            f"at the end {row['end_mib']:7.1f}"
        )
