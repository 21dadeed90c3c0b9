"""``symphony report``: writes one HTML page on one or more runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import click

from symphony_dask.cli.command import command
from symphony_dask.cli.options import gathered, json_option
from symphony_dask.cli.output import note_partial, print_json
from symphony_dask.cli.partial_files import write_whole
from symphony_dask.errors import BadInput
from workloads.cli.options import price_option


@dataclass(frozen=True)
class ReportOptions:
    """The runs, the files to write, and the part of the runs whose timeline is drawn."""

    paths: tuple[str, ...]
    out: str
    png: str | None
    from_text: str | None
    seconds: float | None
    price_texts: tuple[str, ...]

    def timeline(self) -> dict[str, int | None]:
        """As ``workloads.analysis.report.report`` takes it; raises ``BadInput``."""
        from symphony_dask.units import NS_PER_S, parse_duration_ns

        if self.seconds is not None and not 0 < self.seconds < 1e9:
            raise BadInput(f"--seconds {self.seconds}: give how long the timeline is, above 0")
        return {
            "from_ns": 0 if self.from_text is None else parse_duration_ns(self.from_text, "--from"),
            "length_ns": None if self.seconds is None else round(self.seconds * NS_PER_S),
        }


@click.command()
@click.argument("paths", metavar="RUN...", nargs=-1, required=True)
@click.option(
    "--out", default="report.html", show_default=True, type=click.Path(dir_okay=False), help="Write the page here."
)
@click.option(
    "--png", type=click.Path(dir_okay=False), help='Write the figures as one picture too (needs the extra "plot").'
)
@click.option(
    "--from",
    "from_text",
    metavar="DURATION",
    help="Begin the timeline of GPUs this long after the first arrival, such as 10s.",
)
@click.option("--seconds", type=float, help="Draw this many seconds of the timeline of GPUs.")
@price_option
@json_option
@gathered(ReportOptions)
@command
def report(options: ReportOptions, as_json: bool) -> None:
    """Write one HTML page on one or more runs, side by side.

    Shows latency, goodput, batches, GPUs, causes of lateness and cost. Runs may be recorded or simulated (symphony
    simulate --folder). The page needs no network. With --json, it prints the figures too.
    """
    from workloads.compare import figures

    if options.png is not None:
        figures.require_matplotlib()
    reports = reports_on(options)
    files = written(reports, options)
    if as_json:
        print_json({"files": files, "runs": reports})
    else:
        show(reports)
        click.echo(f"written: {', '.join(files)}")


def reports_on(options: ReportOptions) -> list[dict[str, Any]]:
    """All figures of each run; raises ``SymphonyError``."""
    from autoscale.providers.prices import prices
    from symphony_dask.trace import open_run
    from workloads.analysis import report as analysis

    timeline: Any = options.timeline()
    table = prices(options.price_texts)
    note_partial(*options.paths)
    names = analysis.names(options.paths)
    return [
        analysis.report(open_run(path), table, name=name, **timeline)
        for path, name in zip(options.paths, names, strict=True)
    ]


def written(reports: Sequence[dict[str, Any]], options: ReportOptions) -> list[str]:
    """Write the page and the picture; gives their files."""
    from workloads.analysis.report_page import page

    write_whole(options.out, page(reports))
    if options.png is None:
        return [options.out]
    from workloads.analysis.report_png import draw

    draw(reports, options.png)
    return [options.out, options.png]


def show(reports: Sequence[Mapping[str, Any]]) -> None:
    for r in reports:
        s = r["summary"]
        cost = "" if r["cost"]["usd"] is None else f", {r['cost']['usd']:,.4g} USD"
        click.echo(
            f"{r['name']} ({r['label']}): {s['requests']:,} requests, {s['attainment']:.2%} in time, "
            f"goodput {s['goodput_hz']:,.0f} req/s, {r['cost']['gpu_hours']:,.3g} GPU-hours{cost}"
        )
