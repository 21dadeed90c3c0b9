"""``symphony bench live``: measures requests a second beside those of plain Dask."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from symphony_dask.cli.command import command
from symphony_dask.cli.options import json_option
from symphony_dask.cli.output import print_json, show_progress
from workloads.cli.bench.options import batch_option, payload_option, seconds_option


@click.command()
@batch_option(8)
@payload_option(100)
@seconds_option(5.0)
@click.option(
    "--rate",
    "rates",
    type=float,
    multiple=True,
    help="Offer this many requests a second, whatever is answered. Repeat it. By default, 1,000 to 20,000.",
)
@json_option
@command
def live(batch: int, payload_bytes: int, seconds: float, rates: tuple[float, ...], as_json: bool) -> None:
    """Measure requests a second, beside plain client.submit.

    The model takes no time, so this is what the way to it and back costs.
    """
    from workloads.bench.live import OPEN_LOOP_HZ, bench_live

    found = bench_live(
        batch=batch, payload_bytes=payload_bytes, seconds=seconds, open_loop_hz=rates or OPEN_LOOP_HZ,
        on_progress=show_progress,
    )  # fmt: skip
    if as_json:
        print_json(found)
    else:
        show(found)


def show(found: Mapping[str, Any]) -> None:
    click.echo(f"lane, closed loop    {found['lane_hz']:12,.0f} req/s  (mean batch {found['mean_batch']:.1f})")
    click.echo(f"scheduler CPU        {found['scheduler_cpu_us']:12,.1f} us/req")
    click.echo(f"futures, closed loop {found['client_hz']:12,.0f} req/s")
    click.echo(f"plain client.submit  {found['dask_submit_hz']:12,.0f} tasks/s")
    click.echo(f"ratio                {found['ratio']:12.1f}")
    for row in found["open_loop"]:
        rate, p50, p99 = row["rate_hz"], row["p50_ms"], row["p99_ms"]
        click.echo(f"open loop            {rate:12,.0f} req/s  p50 {p50:.2f} ms  p99 {p99:.2f} ms")
