"""``symphony trace import``: reads a trace of some format into a run folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from symphony_dask.cli.command import command
from symphony_dask.cli.options import json_option
from symphony_dask.cli.output import show_progress
from workloads.cli.options import POPULARITIES
from workloads.cli.progress_bars import amount_bar
from workloads.cli.trace.options import end_option, print_info, seed_option, start_option, window


@click.command("import")
@click.argument("format_name", metavar="FORMAT")
@click.argument("source", metavar="IN", type=click.Path(exists=True, dir_okay=False))
@click.argument("target", metavar="OUT")
@click.option("--models", type=int, help="Make this many models. By default, each function of the trace is one.")
@click.option(
    "--map",
    "rule",
    type=click.Choice(["popularity", "round-robin", "stripe"]),
    help="Deal functions to --models in turn: those with most requests first (the default), or as they appear; or give "
    "each model as many functions that follow each other.",
)
@click.option(
    "--popularity",
    type=POPULARITIES,
    default="equal",
    show_default=True,
    help="Draw each request's model equally, or by Zipf's law, where the trace has no functions.",
)
@start_option
@end_option
@seed_option
@click.option("--strict", is_flag=True, help="Stop at the first row that cannot be read.")
@click.option("--time", help='Read times from this column or key of csv, parquet or jsonl. By default, "timestamp".')
@click.option("--unit", help="Read times in s (the default), ms, us, ns, or iso: 2023-11-16 18:17:03.98 (UTC).")
@click.option("--model", help="Read models from this column or key of csv, parquet or jsonl.")
@click.option("--bytes", "bytes_", help="Read sizes of payloads from this column or key of csv, parquet or jsonl.")
@json_option
@command
def import_(
    format_name: str, source: str, target: str, start: str | None, end: str | None, as_json: bool, **options: Any
) -> None:
    """Read the trace IN, of some FORMAT, into the folder OUT.

    FORMAT is azure-llm, azure-functions-2019, azure-functions-2021, mooncake, rate (requests of each second, one number
    a line), jsonl, csv or parquet. Rows that cannot be read are counted, and the first few shown.
    """
    from workloads.traces.importers import import_trace

    def on_bad(examples: tuple[str, ...]) -> None:
        for example in examples:
            show_progress(example)

    times = window(start, end)
    with amount_bar("reading", Path(source).stat().st_size, in_bytes=True) as on_progress:
        found = import_trace(format_name, source, target, **times, **options, on_progress=on_progress, on_bad=on_bad)
    print_info(found, as_json)
