"""``symphony explain``: tells what happened to a request of a run, or why requests were late or dropped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import click

from symphony_dask.cli.command import command
from symphony_dask.cli.options import json_option
from symphony_dask.cli.output import note_partial, print_json
from symphony_dask.errors import BadInput


@click.command()
@click.argument("path", metavar="RUN")
@click.option("--request", type=int, help="Explain the request of this id, as in the requests table.")
@click.option(
    "--why", type=click.Choice(["late", "dropped"]), help="List why requests were late or dropped, by frequency."
)
@json_option
@command
def explain(path: str, request: int | None, why: str | None, as_json: bool) -> None:
    """Tell why requests of a run were late or dropped.

    With --request, it tells what happened to one request. RUN is the folder of a recorded run or of a simulated one
    (symphony simulate --folder).
    """
    from symphony_dask.trace import open_run
    from workloads.analysis import causes
    from workloads.analysis import explain as analysis

    if (request is None) == (why is None):
        raise BadInput("give either --request ID or --why late|dropped")
    note_partial(path)
    run = open_run(path)
    if request is not None:
        found = analysis.explain(run, request)
        if as_json:
            print_json(found)
        else:
            click.echo("\n".join(found["sentences"]))
        return
    assert why is not None
    label, rows = causes.label(run), causes.top(run, why)
    requests = sum(row["requests"] for row in rows)
    if as_json:
        print_json({"label": label, "outcome": why, "requests": requests, "rows": rows})
        return
    click.echo(f"{requests:,} requests were {why} in this {label} run")
    show_causes(path, rows)


def show_causes(path: str, rows: Sequence[Mapping[str, Any]]) -> None:
    for row in rows:
        models = ", ".join(f"{name} {n:,}" for name, n in list(row["models"].items())[:4])
        more = f" and {len(row['models']) - 4} more models" if len(row["models"]) > 4 else ""
        click.echo(f"{row['requests']:12,} {row['share']:7.1%}  {row['meaning']} ({row['cause']}): {models}{more}")
        click.echo(f"{'':22}for one: symphony explain {path} --request {row['example']}")
