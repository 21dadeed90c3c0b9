"""Options that several of these commands share, and the fleets and profiles that they describe."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from symphony_dask.errors import BadInput

if TYPE_CHECKING:
    from symphony_dask.engine.latency_profile import LatencyProfile
    from workloads.simulation.fleet import Gpus

#: What a profile is, for the help of commands.
PROFILE = '"ALPHA,BETA" in ms (a batch of b requests takes ALPHA * b + BETA)'

#: The names, for help that loads neither the engine nor the baselines.
ENGINE_POLICIES = "deferred, adaptive, eager, latest, timeout, target"
BASELINES = "clockwork, nexus, shepherd, replica-timeout, clipper, offline"

POPULARITIES = click.Choice(["equal", "zipf"])

Option = Callable[[Any], Any]


def profiles_option(*, required: bool) -> Option:
    text = (
        f"Take the times of batches from this profile: {PROFILE}, or CLASS=ALPHA,BETA for one of several GPU classes."
    )
    return click.option("--profile", "profile_texts", multiple=True, required=required, help=f"{text} Repeat it.")


def profile_option(default: str | None = None, *, required: bool = False) -> Option:
    """One profile for all models."""
    text = f"Take the times of batches from this profile: {PROFILE}, or the name of a published model."
    return click.option(
        "--profile", "profile_text", default=default, required=required, show_default=default is not None, help=text
    )


def models_option(default: int = 1) -> Option:
    return click.option("--models", default=default, show_default=True, help="Use this many models that are alike.")


gpus_option = click.option(
    "--gpus", "gpus_text", required=True, help='Use this many GPUs, or this many of each class: "4xfast,8xslow".'
)
popularity_option = click.option(
    "--popularity",
    type=POPULARITIES,
    default="equal",
    show_default=True,
    help="Spread the requests over the models equally, or by Zipf's law.",
)
shape_option = click.option(
    "--shape",
    default=1.0,
    show_default=True,
    help="Draw the gaps between arrivals from a gamma distribution of this shape; below 1 they come in bursts.",
)
policy_option = click.option(
    "--policy",
    default="adaptive",
    show_default=True,
    help=f"Schedule by this policy: {ENGINE_POLICIES}; or by a baseline: {BASELINES}.",
)
prefer_option = click.option(
    "--prefer",
    metavar="latency|gpus",
    help="Under policy adaptive, start batches at once while few GPUs are at work (latency), or wait for the window, "
    "which saves GPU time (gpus). By default, latency.",
)
slo_option = click.option(
    "--slo", required=True, metavar="DURATION", help="Finish each request within this latency objective, such as 25ms."
)
trace_slo_option = click.option(
    "--slo",
    metavar="DURATION",
    help="Finish each request within this latency objective. By default, the trace's own, or 50ms.",
)
rate_factor_option = click.option(
    "--scale", default=1.0, show_default=True, help="Multiply the rate of requests by this."
)
price_option = click.option(
    "--price",
    "price_texts",
    multiple=True,
    metavar="CLASS=USD",
    help="Take this as the price of an hour of an instance or GPU. Repeat it for several.",
)


def fleet_of(
    gpus_text: str, profile_texts: Sequence[str]
) -> tuple[Gpus, LatencyProfile | None, Mapping[str, LatencyProfile]]:
    """GPUs, the default profile (None where none is given) and profiles by class, as --gpus and --profile give them."""
    from workloads.simulation.fleet import groups, parse_gpus
    from workloads.traces.zoo import parse_profiles

    gpus = parse_gpus(gpus_text)
    profile, by_class = parse_profiles(profile_texts)
    classes = [group.gpu_class for group in groups(gpus)]
    if unknown := [name for name in by_class if name not in classes]:
        raise BadInput(f"--profile {unknown[0]}=...: --gpus {gpus_text} has no GPU class {unknown[0]!r}")
    return gpus, profile, by_class


def require_profiles(gpus: Gpus, profile: LatencyProfile | None, named: Collection[str]) -> None:
    """Raise ``BadInput`` for a GPU class that nothing gives a profile."""
    from workloads.simulation.fleet import groups

    missing = [group.gpu_class for group in groups(gpus) if group.gpu_class not in named]
    if missing and profile is None:
        raise BadInput(f"no profile for GPU class {missing[0]!r}: give --profile {missing[0]}=ALPHA,BETA")
