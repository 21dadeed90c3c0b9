"""``symphony goodput``: finds by simulation the highest rate that a policy can serve."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import click

from symphony_dask.cli.command import command
from symphony_dask.cli.options import gathered, json_option
from symphony_dask.cli.output import print_json
from workloads.cli.options import (
    models_option,
    policy_option,
    popularity_option,
    prefer_option,
    profile_option,
    shape_option,
    slo_option,
)  # fmt: skip

if TYPE_CHECKING:
    from workloads.compare.goodput import Goodput


@dataclass(frozen=True)
class GoodputOptions:
    """The models, the GPUs, the policy, and how long and often to simulate."""

    profile_text: str
    slo: str
    models: int
    gpus: int
    policy: str
    prefer: str | None
    shape: float
    popularity: str
    seconds: float
    seeds: int


@click.command()
@profile_option(required=True)
@slo_option
@models_option()
@click.option("--gpus", required=True, type=int, help="Use this many GPUs.")
@policy_option
@prefer_option
@shape_option
@popularity_option
@click.option("--seconds", default=20.0, show_default=True, help="Simulate this many seconds at each rate.")
@click.option("--seeds", default=3, show_default=True, help="Take the mean of this many searches.")
@json_option
@gathered(GoodputOptions)
@command
def goodput(options: GoodputOptions, as_json: bool) -> None:
    """Find the highest rate that a policy can serve, by simulation.

    That is the highest rate of requests at which 99 % of them finish within their latency objective, in requests a
    second.
    """
    found = goodput_of(options)
    if as_json:
        print_json(asdict(found))
    else:
        click.echo(
            f"{found.goodput_hz:,.0f} req/s ({found.low_hz:,.0f} to {found.high_hz:,.0f}) simulated, "
            f"bound {found.bound_hz:,.0f}, mean batch {found.mean_batch:.1f}"
        )


def goodput_of(options: GoodputOptions) -> Goodput:
    """Raises ``BadInput`` where options cannot be used."""
    from symphony_dask.units import parse_duration_ns
    from workloads.compare import goodput as search
    from workloads.compare.policies import batching_of
    from workloads.simulation.result import SimModel
    from workloads.traces.zoo import POPULARITIES, parse_profile

    profile, slo_ns = parse_profile(options.profile_text), parse_duration_ns(options.slo, "slo")
    batching = batching_of(options.prefer, [options.policy])
    models = [SimModel(f"model-{m}", profile, slo_ns, batching=batching) for m in range(options.models)]
    return search.goodput(
        models,
        options.gpus,
        policy=options.policy,
        shape=options.shape,
        seconds=options.seconds,
        seeds=options.seeds,
        shares=POPULARITIES[options.popularity](options.models),
    )
