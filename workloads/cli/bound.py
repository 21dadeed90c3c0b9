"""``symphony bound``: computes the goodput that no scheduler can pass, and what perfect knowledge reaches."""

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
    shape_option,
    slo_option,
)  # fmt: skip

if TYPE_CHECKING:
    from workloads.compare.bound import BoundModel, BoundResult
    from workloads.compare.goodput import Goodput
    from workloads.simulation.fleet import Gpus


@dataclass(frozen=True)
class BoundOptions:
    """The models and the GPUs; and for ``offline``, how long and often to simulate."""

    profile_texts: tuple[str, ...]
    slo: str
    models: int
    gpus_text: str
    popularity: str
    offline: bool
    shape: float
    seconds: float
    seeds: int


@click.command()
@profiles_option(required=True)
@slo_option
@models_option()
@gpus_option
@popularity_option
@click.option("--offline", is_flag=True, help="Search for what a schedule reaches that knows all arrivals beforehand.")
@shape_option
@click.option(
    "--seconds", default=2.0, show_default=True, help="For --offline, simulate this many seconds at each rate."
)
@click.option("--seeds", default=3, show_default=True, help="For --offline, take the mean of this many searches.")
@json_option
@gathered(BoundOptions)
@command
def bound(options: BoundOptions, as_json: bool) -> None:
    """Compute the highest goodput that any scheduler could reach.

    Goodput is the rate of requests that finish within their latency objective, in requests a second. No scheduler
    passes the bound where arrivals are even; bursts may. With --offline, a figure from below stands beside it: the
    goodput of the best schedules that a search finds for simulated arrivals, all known beforehand. It takes minutes.
    """
    found = bound_of(options)
    known = offline_of(options) if options.offline else None
    if as_json:
        figures = {"bound_hz": found.bound_hz, "batch": found.batch_sizes[0]}
        if known is not None:
            figures |= {
                "offline_hz": known.goodput_hz,
                "offline_low_hz": known.low_hz,
                "offline_high_hz": known.high_hz,
                "offline_batch": known.mean_batch,
            }
        print_json(figures)
    else:
        least = "" if options.popularity == "equal" else f" to {found.batch_sizes[-1]:.1f}"
        click.echo(f"{found.bound_hz:,.0f} req/s, in batches of {found.batch_sizes[0]:.1f}{least}")
        if known is not None:
            click.echo(
                f"{known.goodput_hz:,.0f} req/s ({known.low_hz:,.0f} to {known.high_hz:,.0f}) by the best offline "
                f"schedules found (simulated; the optimum is no lower), in batches of {known.mean_batch:.1f}"
            )


def bound_of(options: BoundOptions) -> BoundResult:
    """Raises ``BadInput`` where options cannot be used."""
    from workloads.compare.bound import goodput_bound

    return goodput_bound(*_mix(options))


def offline_of(options: BoundOptions) -> Goodput:
    """Raises ``BadInput`` where options cannot be used, or the cell is too large to search."""
    from workloads.compare.goodput import goodput
    from workloads.simulation.result import SimModel

    mix, gpus = _mix(options)
    models = [SimModel(f"model-{m}", model.profile, model.slo_ns, model.profiles) for m, model in enumerate(mix)]
    return goodput(
        models,
        gpus,
        policy="offline",
        shape=options.shape,
        seconds=options.seconds,
        seeds=options.seeds,
        shares=[model.share for model in mix],
    )


def _mix(options: BoundOptions) -> tuple[list[BoundModel], Gpus]:
    from symphony_dask.units import parse_duration_ns
    from workloads.compare.bound import BoundModel
    from workloads.traces.zoo import POPULARITIES

    gpus, profile, by_class = fleet_of(options.gpus_text, options.profile_texts)
    require_profiles(gpus, profile, by_class)
    if options.models < 1 or gpus == 0:
        raise BadInput(f"models={options.models}, gpus={options.gpus_text}: both must be at least 1")
    default = profile or next(iter(by_class.values()))
    slo_ns = parse_duration_ns(options.slo, "slo")
    shares = POPULARITIES[options.popularity](options.models)
    return [BoundModel(default, slo_ns, share, by_class) for share in shares], gpus
