"""``symphony bench pipeline``: measures pipelines of models beside a single model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from symphony_dask.cli.command import command
from symphony_dask.cli.options import json_option
from symphony_dask.cli.output import print_json, show_progress
from workloads.cli.bench.options import payload_option


@click.command()
@click.option("--requests", default=2000, show_default=True, help="Send this many requests of each kind.")
@payload_option(1024)
@click.option(
    "--split", is_flag=True, help="Compare how pipelines divide the SLO with halves, on two emulated models in a row."
)
@click.option(
    "--rate", "rates_hz", multiple=True, type=float, help="With --split, offer this many requests a second. Repeat it."
)
@click.option(
    "--seconds", default=10.0, show_default=True, help="With --split, measure for this many seconds each time."
)
@json_option
@command
def pipeline(
    requests: int, payload_bytes: int, split: bool, rates_hz: tuple[float, ...], seconds: float, as_json: bool
) -> None:
    """Measure a model, a chain of two and an ensemble of two.

    Shows the times of round trips and requests a second. The models take no time.
    """
    from workloads.bench.pipeline import bench_pipeline, bench_split

    if split:
        given: dict[str, Any] = {"rates_hz": rates_hz} if rates_hz else {}
        found = bench_split(seconds=seconds, on_progress=show_progress, **given)
    else:
        found = bench_pipeline(requests=requests, payload_bytes=payload_bytes, on_progress=show_progress)
    if as_json:
        print_json(found)
        return
    click.echo(found["label"])
    for row in found["rows"]:
        click.echo(_split_line(row) if split else _line(row))


def _split_line(row: Mapping[str, Any]) -> str:
    budgets = " + ".join(f"{budget:.0f} ms" for budget in row["budgets_ms"])
    return f"{row['rate_hz']:6g} req/s  {row['case']:7} {budgets:14} {row['attainment']:8.2%} in time"


def _line(row: Mapping[str, Any]) -> str:
    rate = f"{row['rate_hz']:8,.0f} req/s {row['client_cpu_us']:6.0f} us of client CPU" if "rate_hz" in row else ""
    return f"{row['case']:20} {row['p50_ms']:6.2f} ms, p99 {row['p99_ms']:6.2f} ms {rate}"
