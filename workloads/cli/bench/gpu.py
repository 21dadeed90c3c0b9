"""``symphony bench gpu``: profiles and serves ResNet-50 on this machine's GPU."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from symphony_dask.cli.command import command
from symphony_dask.cli.options import json_option
from symphony_dask.cli.output import print_json, show_progress
from workloads.cli.bench.options import seconds_option


@click.command()
@click.option(
    "--slo",
    default="25ms",
    show_default=True,
    metavar="DURATION",
    help="Finish each request within this latency objective; it is raised where even a batch of one takes too long.",
)
@click.option("--max-batch", default=64, show_default=True, help="Measure and form batches up to this size.")
@seconds_option(5.0)
@json_option
@command
def gpu(slo: str, max_batch: int, seconds: float, as_json: bool) -> None:
    """Profile and serve ResNet-50 on this machine's GPU.

    Uses the CPU where there is no GPU.
    """
    from symphony_dask.units import NS_PER_MS, parse_duration_ns
    from workloads.bench.gpu import bench_gpu

    slo_ms = parse_duration_ns(slo, "--slo") / NS_PER_MS
    found = bench_gpu(slo_ms=slo_ms, seconds=seconds, max_batch=max_batch, on_progress=show_progress)
    if as_json:
        print_json(found)
    else:
        show(found)


def show(found: Mapping[str, Any]) -> None:
    click.echo(found["label"])
    click.echo(f"l(b), ms    {', '.join(f'{b}: {ms:.2f}' for b, ms in found['profile_ms'])}")
    click.echo(f"SLO         {found['slo_ms']:.1f} ms (asked: {found['slo_asked_ms']:.1f})")
    click.echo(f"goodput     {found['goodput_hz']:,.1f} req/s of {found['bound_hz']:,.1f}")
    click.echo(f"batches     {found['mean_batch'] or 0:.1f} requests; device busy {found['gpu_busy'] or 0:.0%}")
    click.echo(f"answers     in batches and alone differ by at most {found['largest_difference']:.1e} of the largest")
