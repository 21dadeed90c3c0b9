"""``symphony profile``: measures on this machine how long a model takes for each batch size."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from symphony_dask.cli.command import command
from symphony_dask.cli.options import gathered, json_option
from symphony_dask.cli.output import print_json

if TYPE_CHECKING:
    from symphony_dask.engine.latency_profile import LatencyProfile


@dataclass(frozen=True)
class ProfileOptions:
    """What to measure, and how the model is to run."""

    model: str
    examples: tuple[str, ...]
    max_batch: int
    device: str | None
    optimize: str | None
    collate: str | None


@click.command()
@click.argument("model")
@click.option(
    "--example",
    "examples",
    required=True,
    multiple=True,
    help="Describe a sample by dtype and shape, such as float32:3,224,224. Repeat it for several inputs, which may "
    "have names: input_ids=int64:12.",
)
@click.option("--max-batch", default=128, show_default=True, help="Measure batches up to this size.")
@click.option("--device", help='Run a torch model here, such as "cuda:0". By default, use a GPU if there is one.')
@click.option(
    "--optimize", type=click.Choice(["compile", "cuda-graphs"]), help="Optimize a torch module, as deploy() does."
)
@click.option("--collate", help='Make batches of samples with this "module:function", as deploy() does.')
@json_option
@gathered(ProfileOptions)
@command
def profile(options: ProfileOptions, as_json: bool) -> None:
    """Measure how long MODEL takes for each batch size.

    MODEL is "module:attribute" of a torch module, of a callable on a batch, or of a loader of either. The times give
    its latency profile l(b) = alpha * b + beta: the time for a batch of b requests.
    """
    measured = measure(options)
    if as_json:
        print_json({"model": options.model, "label": "measured", **measured.to_dict()})
    else:
        show(measured)


def measure(options: ProfileOptions) -> LatencyProfile:
    """Load the model and measure it; raises ``SymphonyError``."""
    from symphony_dask.backends import as_spec, load
    from symphony_dask.backends.named import attribute
    from symphony_dask.client.declarations import sample_of_options
    from symphony_dask.slot.profiling import profile_runner

    sys.path.insert(0, "")
    zeros = sample_of_options(options.examples)
    collate = attribute(options.collate, "collate") if options.collate is not None else None
    spec = as_spec(attribute(options.model), options.optimize, options.max_batch, collate)
    return profile_runner(load(spec, options.device, zeros), zeros, options.max_batch)


def show(measured: LatencyProfile) -> None:
    click.echo(f"l(b) = {measured.alpha_ms:.4g} ms * b + {measured.beta_ms:.4g} ms")
    for size, ms in measured.table:
        click.echo(f"  batch {size:4d}: {ms:10.3f} ms  {size / ms * 1000:10,.0f} samples/s")
    click.echo(f'deploy(..., profile="{measured.alpha_ms:.4g},{measured.beta_ms:.4g}")')
