"""Commands of the serving layer: status and profile."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec

import click

from symphony_dask.errors import SymphonyError

P = ParamSpec("P")


def command(function: Callable[P, None]) -> Callable[P, None]:
    """Have errors of this package end the command with their message alone."""

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            function(*args, **kwargs)
        except SymphonyError as error:
            raise click.ClickException(str(error)) from error

    return run


def print_json(value: Any) -> None:
    """One JSON object on standard output."""
    click.echo(json.dumps(value))


json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object and nothing else.")


@click.command()
@click.option("--scheduler", required=True, help="Address of the Dask scheduler, such as tcp://127.0.0.1:8786.")
@json_option
@command
def status(scheduler: str, as_json: bool) -> None:
    """Show the models, workers and outcome counts of a cluster, and its fleet as a controller last saw it."""
    from distributed import Client

    from symphony_dask.client import Serving
    from symphony_dask.units import format_duration

    with Client(scheduler) as client, Serving(client) as serving:
        found = serving.status()
    if as_json:
        print_json(found)
        return
    from rich.console import Console
    from rich.table import Table

    models = Table(title=f"Models (policy {found['policy']})")
    for column in ("model", "SLO", "queued", "target batch", "mean batch", "rate", "outcomes"):
        models.add_column(column, justify="left" if column in ("model", "outcomes") else "right")
    for name, m in found["models"].items():
        outcomes = ", ".join(f"{k} {v:,}" for k, v in m["outcomes"].items() if v) or "none"
        mean = "-" if m["mean_batch"] is None else f"{m['mean_batch']:.1f}"
        rate = f"{m['rate_hz']:,.0f}/s"
        models.add_row(
            name, format_duration(m["slo_ns"]), str(m["queued"]), str(m["target_batch"]), mean, rate, outcomes
        )
    workers = Table(title="Workers")
    for column in ("worker", "GPU class", "slots", "in flight", "control latency", "state"):
        workers.add_column(column)
    for address, w in found["workers"].items():
        if "slots" not in w:  # it has just gone
            continue
        state = w.get("error") or ("draining" if w["draining"] else "serving" if w["serving"] else "loading")
        latency = format_duration(w["control_ns"])
        workers.add_row(address, w["gpu_class"], str(w["slots"]), str(w["in_flight"]), latency, state)
    console = Console()
    console.print(models)
    console.print(workers)
    for key, drain in found["drains"].items():
        text = f"{drain['state']} for {drain['age_s']:.0f} s, {drain['in_flight']} batches in flight: {drain['why']}"
        click.echo(f"{key}: {text}")
    for name, fleet in found["fleets"].items():
        instances = ", ".join(f"{n} {phase}" for phase, n in fleet["instances"].items() if n) or "no instances"
        most_usd = fleet["max_usd_per_hour"]
        cost = f"{fleet['usd_per_hour']:.2f}{'' if most_usd is None else f' of {most_usd:g}'} USD an hour at most"
        click.echo(f"fleet {name}, {fleet['age_s']:.0f} s ago: {instances}; {fleet['gpus']} GPUs wanted; {cost}")
        click.echo(f"  {fleet['policy']}")
        for text in [fleet["why"], *fleet["faults"]]:
            if text:
                click.echo(f"  {text}")


@click.command()
@click.argument("model")
@click.option("--example", required=True, help="A sample, as dtype and shape: float32:3,224,224.")
@click.option("--max-batch", default=128, show_default=True, help="Largest batch to measure.")
@click.option("--device", help='Where a torch model runs, such as "cuda:0"; by default a GPU if there is one.')
@click.option("--optimize", type=click.Choice(["compile", "cuda-graphs"]), help="Of a torch module, as in deploy().")
@json_option
@command
def profile(model: str, example: str, max_batch: int, device: str | None, optimize: str | None, as_json: bool) -> None:
    """Measure l(b) of MODEL on this machine.

    MODEL is "module:attribute" of a torch module, a callable on a batch, or a loader of either.
    """
    import sys

    from symphony_dask.backends import as_spec, load
    from symphony_dask.profiling import profile_runner

    sys.path.insert(0, "")
    sample = _sample(example)
    runner = load(as_spec(_attribute(model), optimize, max_batch), device, sample)
    measured = profile_runner(runner, sample, max_batch)
    if as_json:
        print_json({"model": model, "label": "measured", **measured.to_dict()})
        return
    click.echo(f"l(b) = {measured.alpha_ms:.4g} ms * b + {measured.beta_ms:.4g} ms")
    for size, ms in measured.table:
        click.echo(f"  batch {size:4d}: {ms:10.3f} ms  {size / ms * 1000:10,.0f} samples/s")
    click.echo(f'deploy(..., profile="{measured.alpha_ms:.4g},{measured.beta_ms:.4g}")')


def _attribute(path: str) -> Any:
    """What "module:attribute" names; raises ``BadInput``."""
    from importlib import import_module

    from symphony_dask.errors import BadInput

    module, _, name = path.partition(":")
    try:
        return getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise BadInput(f'model {path!r} cannot be found ({error}): write "module:attribute"') from None


def _sample(text: str) -> Any:
    """Zeros of the dtype and shape written "float32:3,224,224"; raises ``BadInput``."""
    import numpy as np

    from symphony_dask.errors import BadInput

    dtype, _, shape = text.partition(":")
    try:
        return np.zeros(tuple(int(n) for n in shape.split(",") if n), dtype)
    except (TypeError, ValueError) as error:
        raise BadInput(f'example {text!r} cannot be read ({error}): write "float32:3,224,224"') from None


COMMANDS = [status, profile]
