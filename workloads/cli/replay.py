"""``symphony replay``: sends a trace's requests to a cluster, or to simulated GPUs, at their recorded times."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import click
from click.core import ParameterSource

from symphony_dask.cli.command import command
from symphony_dask.cli.options import gathered, json_option
from symphony_dask.cli.output import note_partial, print_json, print_values
from symphony_dask.cli.scheduler_address import scheduler_option
from symphony_dask.errors import BadInput


@dataclass(frozen=True)
class ReplayOptions:
    """How the requests are offered; see ``workloads.live.replay_trace``."""

    model_text: tuple[str, ...]
    speed: float
    slo: str | None
    policy: str | None
    gpus: int | None
    payload: str | None
    folder: str | None


@click.command()
@click.argument("path", metavar="TRACE", type=click.Path(exists=True))
@scheduler_option(required=False, note="With --simulate, none is needed.")
@click.option("--simulate", is_flag=True, help="Use simulated GPUs and simulated time in place of a cluster.")
@click.option(
    "--model",
    "model_text",
    multiple=True,
    metavar="NAME=A,B@SLO",
    help="Deploy an emulated model whose batches of b requests take A * b + B ms. Repeat it for several.",
)
@click.option("--speed", default=1.0, show_default=True, help="Send the requests this many times as fast as recorded.")
@click.option("--slo", metavar="DURATION", help="Give every model this latency objective in place of its own.")
@click.option(
    "--policy", help="Schedule by this policy of the engine. By default, the cluster's, or simulated the run's."
)
@click.option("--gpus", type=int, help="Simulate this many GPUs. By default, as many as the run had.")
@click.option(
    "--payload", help="Send this many bytes with each request, or 'trace' for each model's median. Not with --simulate."
)
@click.option(
    "--folder", type=click.Path(), help="Record the run in this folder. By default, symphony-runs/replay-TIME."
)
@json_option
@gathered(ReplayOptions)
@command
def replay(path: str, scheduler: str | None, simulate: bool, options: ReplayOptions, as_json: bool) -> None:
    """Send a trace's requests to a cluster at their recorded times.

    If TRACE is a recorded run, its models are deployed with emulated GPUs that take as long as they did. With --model
    (or for a trace without models: with one like ResNet-50), these serve the trace's models in turn.
    """
    from workloads.live.replay_trace import replay_live, replay_simulated

    if simulate and _is_given("scheduler"):
        raise BadInput("give either --scheduler ADDRESS or --simulate, not both")
    if not simulate and scheduler is None:
        raise BadInput("give --scheduler ADDRESS (or set DASK_SCHEDULER_ADDRESS), or --simulate")
    note_partial(path)
    if simulate or scheduler is None:
        found = replay_simulated(path, **asdict(options))
    else:
        found = replay_live(path, scheduler, **asdict(options))
    if as_json:
        print_json(found)
    else:
        print_values(found, width=17)


def _is_given(option: str) -> bool:
    """Whether the option was written, and is not a default."""
    return click.get_current_context().get_parameter_source(option) is ParameterSource.COMMANDLINE
