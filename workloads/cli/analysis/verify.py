"""``symphony verify``: checks that the engine decides today as a recorded run did."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from symphony_dask.cli.command import command
from symphony_dask.cli.options import json_option
from symphony_dask.cli.output import note_partial, print_json

if TYPE_CHECKING:
    from workloads.analysis.verify import Verified


@click.command()
@click.argument("run")
@json_option
@command
def verify(run: str, as_json: bool) -> None:
    """Check that the engine repeats a recorded run's decisions.

    Leads the engine once more through the events of RUN, and shows the first decision that differs. There must be
    none: exits with 1 if there is.
    """
    from workloads.analysis import verify as analysis

    note_partial(run)
    found = analysis.verify(run)
    if as_json:
        print_json(found.to_dict())
    else:
        show(found)
    if found.differing:
        raise SystemExit(1)


def show(found: Verified) -> None:
    first = found.first
    if first is None:
        click.echo(f"{found.decisions:,} decisions at {found.events:,} events, all as recorded")
        return
    click.echo(f"event {first.event} at {first.time_ns / 1e6:.3f} ms differs, after {found.decisions:,} decisions")
    for name, decided in (("recorded", first.recorded), ("replayed", first.replayed)):
        for batch, model, gpu, slots in decided.batches:
            click.echo(f"  {name}: batch {batch} of model {model} on GPU {gpu}, requests in slots {slots}")
        if decided.drops:
            click.echo(f"  {name}: drops slots {decided.drops}")
