"""``symphony bound``: computes the highest goodput that any scheduler could reach."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from symphony_dask.cli.command import command
from symphony_dask.cli.options import gathered, json_option
from symphony_dask.cli.output import print_json
from symphony_dask.errors import BadInput
from workloads.cli.options import (
    fleet_of,
    gpus_option,
    models_option,
    popularity_option,
    profiles_option,
    require_profiles,
    slo_option,
)  # fmt: skip

if TYPE_CHECKING:
    from workloads.compare.bound import BoundResult


@dataclass(frozen=True)
class BoundOptions:
    """The models and the GPUs."""

    profile_texts: tuple[str, ...]
    slo: str
    models: int
    gpus_text: str
    popularity: str


@click.command()
@profiles_option(required=True)
@slo_option
@models_option()
@gpus_option
@popularity_option
@json_option
@gathered(BoundOptions)
@command
def bound(options: BoundOptions, as_json: bool) -> None:
    """Compute the highest goodput that any scheduler could reach.

    Goodput is the rate of requests that finish within their latency objective, in requests a second.
    """
    found = bound_of(options)
    if as_json:
        print_json({"bound_hz": found.bound_hz, "batch": found.batch_sizes[0]})
    else:
        least = "" if options.popularity == "equal" else f" to {found.batch_sizes[-1]:.1f}"
        click.echo(f"{found.bound_hz:,.0f} req/s, in batches of {found.batch_sizes[0]:.1f}{least}")


def bound_of(options: BoundOptions) -> BoundResult:
    """Raises ``BadInput`` where options cannot be used."""
    from symphony_dask.units import parse_duration_ns
    from workloads.compare.bound import BoundModel, goodput_bound
    from workloads.traces.zoo import POPULARITIES

    gpus, profile, by_class = fleet_of(options.gpus_text, options.profile_texts)
    require_profiles(gpus, profile, by_class)
    if options.models < 1 or gpus == 0:
        raise BadInput(f"models={options.models}, gpus={options.gpus_text}: both must be at least 1")
    default = profile or next(iter(by_class.values()))
    slo_ns = parse_duration_ns(options.slo, "slo")
    shares = POPULARITIES[options.popularity](options.models)
    return goodput_bound([BoundModel(default, slo_ns, share, by_class) for share in shares], gpus)
