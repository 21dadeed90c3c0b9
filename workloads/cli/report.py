"""What runs tell: ``symphony explain`` and ``report``; and what others would be like: ``plan`` and ``whatif``."""

from __future__ import annotations

from typing import Any

import click

from symphony_dask.cli.partial_files import write_whole
from symphony_dask.cli.serve import command, json_option, note_partial, print_json


@click.command("explain")
@click.argument("path", metavar="RUN")
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
    from workloads.analysis.causes import label, top
    from workloads.analysis.explain import explain

    if (request is None) == (why is None):
        raise BadInput("give either --request ID or --why late|dropped")
    note_partial(path)
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
@click.argument("paths", metavar="RUN...", nargs=-1, required=True)
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
    from autoscale.providers.prices import prices
    from symphony_dask.errors import BadInput
    from symphony_dask.trace import open_run
    from symphony_dask.units import NS_PER_S, parse_duration_ns
    from workloads.analysis.report import names, report
    from workloads.analysis.report_page import page
    from workloads.compare import figures

    if png is not None:
        figures.require_matplotlib()
    if seconds is not None and not 0 < seconds < 1e9:
        raise BadInput(f"--seconds {seconds}: give how long the timeline is, above 0")
    at: dict[str, Any] = {
        "from_ns": 0 if from_text is None else parse_duration_ns(from_text, "--from"),
        "length_ns": None if seconds is None else round(seconds * NS_PER_S),
    }
    table = prices(price_texts)
    note_partial(*paths)
    reports = [report(open_run(path), table, name=name, **at) for path, name in zip(paths, names(paths), strict=True)]
    write_whole(out, page(reports))
    files = [out]
    if png is not None:
        from workloads.analysis.report_png import draw

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


@click.command("plan")
@click.argument("path", metavar="TRACE")
@click.option("--attainment", default=0.99, show_default=True, help="Share of requests that must be in time.")
@click.option("--slo", help="Latency objective of every request; by default the trace's own, else 50ms.")
@click.option(
    "--profile", "profile_texts", multiple=True, metavar="CLASS=A,B", help="l(b) in ms on a GPU class; can be repeated."
)
@click.option("--policy", default="adaptive", show_default=True, help="A policy of the engine, or a baseline.")
@click.option("--scale", default=1.0, show_default=True, help="Factor for the rate of requests.")
@price_option
@json_option
@command
def plan_(
    path: str,
    attainment: float,
    slo: str | None,
    profile_texts: tuple[str, ...],
    policy: str,
    scale: float,
    price_texts: tuple[str, ...],
    as_json: bool,
) -> None:
    """Tell how many GPUs of each class TRACE needs, what they cost, and the cheapest mix, by simulation.

    A CLASS that is an EC2 instance type (g4dn.xlarge, g5.xlarge, p4d.24xlarge) has its GPUs and price. Without
    --profile: the classes of a recorded run, else ResNet-50 on g4dn.xlarge, p3.2xlarge and p4d.24xlarge.
    """
    from autoscale.providers.prices import prices
    from symphony_dask.units import parse_duration_ns
    from workloads.analysis.plan import DEFAULT_CLASSES, on_classes, plan, scaled
    from workloads.compare.policies import compile_policies
    from workloads.simulation.fleet import GPU
    from workloads.simulation.workload import read_workload
    from workloads.traces.zoo import parse_profiles

    profile, by_class = parse_profiles(profile_texts)
    table = prices(price_texts)
    note_partial(path)
    work = scaled(read_workload(path, slo_ns=None if slo is None else parse_duration_ns(slo, "--slo")), scale)
    if profile is not None:
        by_class = {GPU: profile, **by_class}
    classes = list(by_class) or [c for c in work.models[0].profiles if all(c in m.profiles for m in work.models)]
    assumed = not by_class and not classes
    if assumed:
        click.echo("no profile is known: assuming ResNet-50 (published by NVIDIA, workloads/traces/zoo.py)", err=True)
    if by_class or assumed:
        by_class = by_class or DEFAULT_CLASSES
        classes, work = list(by_class), on_classes(work, by_class)
    compile_policies([policy])
    found = plan(
        work, classes, table, attainment=attainment, policy=policy, on_progress=lambda text: click.echo(text, err=True)
    )
    if as_json:
        print_json({**found, "profiles": "assumed: ResNet-50" if assumed else "given"})
        return
    click.echo(f"GPUs for {attainment:.2%} of {found['requests']:,} requests in time, policy {policy}, simulated")
    for row in found["rows"]:
        usd = "" if row["usd_per_hour"] is None else f"{row['usd_per_hour']:10,.2f} USD/h"
        mark = "  enough" if row["enough"] else ""
        click.echo(f"{row['gpu_class']:16} {row['gpus']:6,} GPUs {row['attainment']:9.3%} {usd}{mark}")
    for row in found["needed"]:
        if row["gpus"] is None:
            click.echo(f"{row['gpu_class']}: {row['gpus_tried']:,} GPUs are not enough ({row['attainment']:.2%})")
        elif not row["monotone"]:
            click.echo(f"{row['gpu_class']}: attainment does not always rise with GPUs; some larger number was worse")
    for row in found["mixes"]:
        click.echo(f"mix {_fleet_text(row['mix'])}: {row['attainment']:.3%}, {row['usd_per_hour']:,.2f} USD/h")
    best = found["cheapest"]
    if best is None:
        click.echo("no class attains the target: allow a longer SLO, or give a faster class with --profile")
        return
    usd = (
        "its price is not known: give --price" if best["usd_per_hour"] is None else f"{best['usd_per_hour']:,.2f} USD/h"
    )
    click.echo(f"cheapest: {_fleet_text(best['mix'])}, {best['attainment']:.3%} in time, {usd}")
    click.echo(f"prices: {found['prices']}")


def _fleet_text(fleet: dict[str, int]) -> str:
    return " + ".join(f"{n:,} {name}" for name, n in fleet.items()) or "unknown"


@click.command("whatif")
@click.argument("path", metavar="TRACE_OR_RUN")
@click.option("--policy", help="A policy of the engine, or a baseline; by default the run's.")
@click.option("--gpus", "gpus_text", help='How many GPUs, or how many of each class: "4xfast,8xslow"; else the run\'s.')
@click.option("--slo", help="Latency objective of every request.")
@click.option("--scale", default=1.0, show_default=True, help="Factor for the rate of requests.")
@click.option("--profile", "profile_texts", multiple=True, help='l(b): "alpha,beta" in ms, or CLASS=alpha,beta.')
@price_option
@json_option
@command
def whatif_(
    path: str,
    policy: str | None,
    gpus_text: str | None,
    slo: str | None,
    scale: float,
    profile_texts: tuple[str, ...],
    price_texts: tuple[str, ...],
    as_json: bool,
) -> None:
    """Run TRACE_OR_RUN again with another policy, fleet, SLO or rate, simulated, beside what was."""
    from autoscale.providers.prices import prices
    from symphony_dask.units import parse_duration_ns
    from workloads.analysis.whatif import whatif
    from workloads.compare.tables import NONE, Table
    from workloads.simulation.fleet import parse_gpus
    from workloads.traces.zoo import parse_profiles

    profile, by_class = parse_profiles(profile_texts)
    note_partial(path)
    rows = whatif(
        path,
        prices(price_texts),
        policy=policy,
        gpus=None if gpus_text is None else parse_gpus(gpus_text),
        slo_ns=None if slo is None else parse_duration_ns(slo, "--slo"),
        scale=scale,
        profile=profile,
        profiles=by_class,
    )
    if as_json:
        print_json({"rows": rows})
        return
    from rich.console import Console

    shown = (
        ("policy", "policy", "{}"),
        ("GPUs", "gpus", "{}"),
        ("requests", "requests", "{:,}"),
        ("SLO attainment", "attainment", "{:.3%}"),
        ("goodput, req/s", "goodput_hz", "{:,.1f}"),
        ("p50, ms", "p50_ms", "{:.1f}"),
        ("p99, ms", "p99_ms", "{:.1f}"),
        ("mean batch", "mean_batch", "{:.2f}"),
        ("busy GPUs", "busy_gpus", "{:.2f}"),
        ("USD/h", "usd_per_hour", "{:,.2f}"),
    )
    flat = [{**row, "gpus": _fleet_text(row["gpus"])} for row in rows]
    cells = [
        [head, *(NONE if row[key] is None else form.format(row[key]) for row in flat)] for head, key, form in shown
    ]
    Console().print(Table("", ["", *(f"{row['name']}\n({row['label']})" for row in rows)], cells).rich())


COMMANDS = [explain_, report_, plan_, whatif_]
