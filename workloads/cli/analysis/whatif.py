"""``symphony whatif``: simulates a run again with another policy, fleet, SLO or rate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import click

from symphony_dask.cli.command import command
from symphony_dask.cli.options import gathered, json_option, optional_duration_ns
from symphony_dask.cli.output import note_partial, print_json
from workloads.cli.analysis.plan import fleet_text
from workloads.cli.options import price_option, profiles_option, rate_factor_option

#: Title, key of a row, and format of each line of the table.
_LINES = (
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


@dataclass(frozen=True)
class WhatIfOptions:
    """The run, and what is to be otherwise."""

    path: str
    policy: str | None
    gpus_text: str | None
    slo: str | None
    scale: float
    profile_texts: tuple[str, ...]
    price_texts: tuple[str, ...]


@click.command()
@click.argument("path", metavar="TRACE_OR_RUN")
@click.option("--policy", help="Schedule by this policy of the engine or baseline. By default, the run's.")
@click.option(
    "--gpus",
    "gpus_text",
    help='Use this many GPUs, or this many of each class: "4xfast,8xslow". By default, the run\'s.',
)
@click.option("--slo", metavar="DURATION", help="Finish each request within this latency objective.")
@rate_factor_option
@profiles_option(required=False)
@price_option
@json_option
@gathered(WhatIfOptions)
@command
def whatif(options: WhatIfOptions, as_json: bool) -> None:
    """Simulate a run again with another policy, fleet or rate.

    Shows the figures of TRACE_OR_RUN as it was, as it was but simulated, and with the options given here.
    """
    rows = rows_of(options)
    if as_json:
        print_json({"rows": rows})
    else:
        show(rows)


def rows_of(options: WhatIfOptions) -> list[dict[str, Any]]:
    """What was and what would have been; raises ``SymphonyError``."""
    from autoscale.providers.prices import prices
    from workloads.analysis import whatif as analysis
    from workloads.simulation.fleet import parse_gpus
    from workloads.traces.zoo import parse_profiles

    profile, by_class = parse_profiles(options.profile_texts)
    note_partial(options.path)
    return analysis.whatif(
        options.path,
        prices(options.price_texts),
        policy=options.policy,
        gpus=None if options.gpus_text is None else parse_gpus(options.gpus_text),
        slo_ns=optional_duration_ns(options.slo, "--slo"),
        scale=options.scale,
        profile=profile,
        profiles=by_class,
    )


def show(rows: Sequence[Mapping[str, Any]]) -> None:
    from rich.console import Console

    from workloads.compare.tables import NONE, Table

    flat = [{**row, "gpus": fleet_text(row["gpus"])} for row in rows]
    cells = [
        [title, *(NONE if row[key] is None else form.format(row[key]) for row in flat)] for title, key, form in _LINES
    ]
    Console().print(Table("", ["", *(f"{row['name']}\n({row['label']})" for row in rows)], cells).rich())
