"""``symphony explain`` and ``symphony report``: what a run tells of one request, and of all of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

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


price_option = click.option(
    "--price",
    "price_texts",
    multiple=True,
    metavar="CLASS=USD",
    help="USD an hour of an instance or GPU; can be repeated.",
)


@click.command("report")
@click.argument("paths", metavar="RUN...", nargs=-1, required=True, type=click.Path(exists=True, file_okay=False))
@click.option("--out", default="report.html", show_default=True, type=click.Path(dir_okay=False), help="The page.")
@click.option("--png", type=click.Path(dir_okay=False), help='The figures as one picture; needs the extra "plot".')
@click.option("--from", "from_text", help="Where the timeline of GPUs begins, after the first arrival: 10s.")
@click.option("--seconds", type=float, help="How long that timeline is.")
@price_option
@json_option
@command
def report_(
    paths: tuple[str, ...],
    out: str,
    png: str | None,
    from_text: str | None,
    seconds: float | None,
    price_texts: tuple[str, ...],
    as_json: bool,
) -> None:
    """Write one HTML page on one or more RUNs, side by side: latency, goodput, batches, GPUs, causes and cost.

    The page needs no network. Runs are recorded or simulated (symphony simulate --folder). --json prints the figures.
    """
    from symphony_dask.errors import BadInput
    from symphony_dask.trace import open_run
    from symphony_dask.units import NS_PER_S, parse_duration_ns
    from workloads import figures
    from workloads.prices import prices
    from workloads.report import names, report
    from workloads.report_page import page

    if png is not None:
        figures.require_matplotlib()
    if seconds is not None and not 0 < seconds < 1e9:
        raise BadInput(f"--seconds {seconds}: give how long the timeline is, above 0")
    at: dict[str, Any] = {
        "from_ns": 0 if from_text is None else parse_duration_ns(from_text, "--from"),
        "length_ns": None if seconds is None else round(seconds * NS_PER_S),
    }
    table = prices(price_texts)
    reports = [report(open_run(path), table, name=name, **at) for path, name in zip(paths, names(paths), strict=True)]
    Path(out).write_text(page(reports), encoding="utf-8")
    files = [out]
    if png is not None:
        from workloads.report_png import draw

        draw(reports, png)
        files.append(png)
    if as_json:
        print_json({"files": files, "runs": reports})
        return
    for r in reports:
        s = r["summary"]
        cost = "" if r["cost"]["usd"] is None else f", {r['cost']['usd']:,.4g} USD"
        click.echo(
            f"{r['name']} ({r['label']}): {s['requests']:,} requests, {s['attainment']:.2%} in time, "
            f"goodput {s['goodput_hz']:,.0f} req/s, {r['cost']['gpu_hours']:,.3g} GPU-hours{cost}"
        )
    click.echo(f"written: {', '.join(files)}")


COMMANDS = [explain_, report_]
