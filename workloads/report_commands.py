"""``symphony explain``: one request of a run, or why requests were late or dropped over all of it."""

from __future__ import annotations

import click

from symphony_dask.commands import command, json_option, print_json


@click.command("explain")
@click.argument("path", metavar="RUN", type=click.Path(exists=True, file_okay=False))
@click.option("--request", type=int, help="Id of the request, as in the requests table.")
@click.option("--why", type=click.Choice(["late", "dropped"]), help="The causes over the run, most frequent first.")
@json_option
@command
def explain_(path: str, request: int | None, why: str | None, as_json: bool) -> None:
    """Tell what happened to one request of RUN, or why requests of it were late or dropped.

    RUN is the folder of a recorded or simulated run (symphony simulate --folder).
    """
    from symphony_dask.errors import BadInput
    from symphony_dask.trace import open_run
    from workloads.causes import label, top
    from workloads.explain import explain

    if (request is None) == (why is None):
        raise BadInput("give either --request ID or --why late|dropped")
    run = open_run(path)
    if request is not None:
        found = explain(run, request)
        if as_json:
            print_json(found)
        else:
            click.echo("\n".join(found["sentences"]))
        return
    assert why is not None
    rows = top(run, why)
    requests = sum(row["requests"] for row in rows)
    if as_json:
        print_json({"label": label(run), "outcome": why, "requests": requests, "rows": rows})
        return
    click.echo(f"{requests:,} requests were {why} in this {label(run)} run")
    for row in rows:
        models = ", ".join(f"{name} {n:,}" for name, n in list(row["models"].items())[:4])
        more = f" and {len(row['models']) - 4} more models" if len(row["models"]) > 4 else ""
        click.echo(f"{row['requests']:12,} {row['share']:7.1%}  {row['meaning']} ({row['cause']}): {models}{more}")
        click.echo(f"{'':22}for one: symphony explain {path} --request {row['example']}")


COMMANDS = [explain_]
