"""`symphony trace`: import, info, scale, slice, mix, synth, diurnal, validate."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import click

from symphony_dask.cli.serve import command, json_option, note_partial, print_json

_POPULARITIES = click.Choice(["equal", "zipf"])


@click.group()
def trace() -> None:
    """Import traces, look at them, and make others of them.

    A TRACE is a run folder (also a recorded run) or a Parquet file of requests, local or s3://BUCKET/FOLDER; OUT is a
    new run folder. Durations are written 25ms, 1.5s, 2h.
    """


@contextmanager
def _progress(what: str, total: int | None, *, in_bytes: bool = False) -> Iterator[Callable[[int], None]]:
    """A bar on standard error, and what tells it how much is done."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    amount = DownloadColumn() if in_bytes else MofNCompleteColumn()
    columns = (TextColumn("{task.description}"), BarColumn(), amount, TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(what, total=total)
        yield lambda done: progress.update(task, completed=done)


@contextmanager
def _reading(*paths: str) -> Iterator[Callable[[int], None]]:
    from symphony_dask.trace import count_requests

    with _progress("reading", sum(count_requests(path) for path in paths)) as on_progress:
        yield on_progress


def _print_info(found: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(found)
    else:
        for key, value in found.items():
            text = value if isinstance(value, str) else f"{value:,.3f}" if isinstance(value, float) else f"{value:,}"
            click.echo(f"{key:10} {text}")


def _since(text: str | None, what: str) -> int | None:
    """A time of a trace in ns, which may be 0; None where none is given. Raises ``BadInput``."""
    from symphony_dask.units import parse_duration_ns

    if text is None:
        return None
    return 0 if text.strip() in ("0", "0s") else parse_duration_ns(text, what)


start_option = click.option("--start", help="Leave out what arrives before; becomes time 0.")
end_option = click.option("--end", help="Leave out what arrives then or later.")
seed_option = click.option("--seed", default=0, show_default=True, help="Of what is drawn.")


@trace.command("import")
@click.argument("format_name", metavar="FORMAT")
@click.argument("source", metavar="IN", type=click.Path(exists=True, dir_okay=False))
@click.argument("target", metavar="OUT")
@click.option("--models", type=int, help="How many models; by default each function of the trace is one.")
@click.option(
    "--map",
    "rule",
    type=click.Choice(["popularity", "round-robin", "stripe"]),
    help="Of functions to --models: dealt in turn, most requests first (the default); dealt in turn as they appear; or "
    "as many that follow each other to each.",
)
@click.option(
    "--popularity",
    type=_POPULARITIES,
    default="equal",
    show_default=True,
    help="Of --models, where the trace has no functions: each request's is drawn.",
)
@start_option
@end_option
@seed_option
@click.option("--strict", is_flag=True, help="Stop at the first row that cannot be read.")
@click.option("--time", help='csv, parquet, jsonl: the column or key of the time; by default "timestamp".')
@click.option("--unit", help="Of the time: s (the default), ms, us, ns, or iso for 2023-11-16 18:17:03.98 (UTC).")
@click.option("--model", help="csv, parquet, jsonl: the column or key of the model.")
@click.option("--bytes", "bytes_", help="csv, parquet, jsonl: the column or key of the size of the payload.")
@json_option
@command
def import_(
    format_name: str,
    source: str,
    target: str,
    start: str | None,
    end: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Read the trace IN, of some FORMAT, into the folder OUT.

    FORMAT: azure-llm, azure-functions-2019, azure-functions-2021, mooncake, rate (requests of each second, one number a
    line), jsonl, csv or parquet. Rows that cannot be read are counted, and the first few shown.
    """
    from pathlib import Path

    from workloads.traces.importers import import_trace

    def on_bad(examples: tuple[str, ...]) -> None:
        for example in examples:
            click.echo(example, err=True)

    window: dict[str, Any] = {"start_ns": _since(start, "--start") or 0, "end_ns": _since(end, "--end")}
    with _progress("reading", Path(source).stat().st_size, in_bytes=True) as on_progress:
        found = import_trace(format_name, source, target, **window, **options, on_progress=on_progress, on_bad=on_bad)
    _print_info(found, as_json)


@trace.command("info")
@click.argument("path", metavar="TRACE")
@json_option
@command
def info_(path: str, as_json: bool) -> None:
    """Show how many requests a trace or run has, and how they come."""
    from workloads.traces.info import trace_info

    with _reading(path) as on_progress:
        found = trace_info(path, on_progress)
    _print_info({**found, **({"partial": why} if (why := note_partial(path).get(path)) else {})}, as_json)


@trace.command("scale")
@click.argument("path", metavar="TRACE")
@click.argument("target", metavar="OUT")
@click.option(
    "--rate", "factor", type=float, required=True, help="How many times the rate: 2 is twice as many a second."
)
@click.option(
    "--method",
    type=click.Choice(["time", "thin"]),
    default="time",
    show_default=True,
    help="time: gaps become shorter or longer, as bursty as before; thin: requests are left out at random.",
)
@seed_option
@json_option
@command
def scale_(path: str, target: str, factor: float, method: str, seed: int, as_json: bool) -> None:
    """Give TRACE another rate."""
    from workloads.traces.transform import scale

    note_partial(path)
    with _reading(path) as on_progress:
        found = scale(path, target, factor, method=method, seed=seed, on_progress=on_progress)
    _print_info(found, as_json)


@trace.command("slice")
@click.argument("path", metavar="TRACE")
@click.argument("target", metavar="OUT")
@start_option
@end_option
@click.option("--model", "models", multiple=True, help="Only this model; can be repeated.")
@json_option
@command
def slice_(path: str, target: str, start: str | None, end: str | None, models: tuple[str, ...], as_json: bool) -> None:
    """Keep what arrives in a window of time, or for some models."""
    from workloads.traces.transform import cut

    note_partial(path)
    window: dict[str, Any] = {"start_ns": _since(start, "--start") or 0, "end_ns": _since(end, "--end")}
    with _reading(path) as on_progress:
        found = cut(path, target, **window, models=models, on_progress=on_progress)
    _print_info(found, as_json)


@trace.command("mix")
@click.argument("paths", metavar="TRACE...", nargs=-1, required=True)
@click.argument("target", metavar="OUT")
@click.option("--separate", is_flag=True, help="Name models 1/NAME, 2/NAME by their trace.")
@json_option
@command
def mix_(paths: tuple[str, ...], target: str, separate: bool, as_json: bool) -> None:
    """Put several traces on one clock. Models of one name are one model."""
    from workloads.traces.transform import mix

    note_partial(*paths)
    with _reading(*paths) as on_progress:
        found = mix(paths, target, separate=separate, on_progress=on_progress)
    _print_info(found, as_json)


@trace.command("synth")
@click.argument("target", metavar="OUT")
@click.option("--requests", type=int, required=True, help="How many.")
@click.option("--rate", "rate_hz", type=float, required=True, help="Requests a second, on average.")
@click.option("--shape", default=1.0, show_default=True, help="Of the gamma distributed gaps; below 1 they burst.")
@click.option("--models", default=1, show_default=True, help="How many models.")
@click.option("--popularity", type=_POPULARITIES, default="equal", show_default=True, help="Of the models.")
@click.option("--slo", help="From arrival to deadline, such as 25ms; by default none is known.")
@seed_option
@json_option
@command
def synth_(target: str, requests: int, slo: str | None, as_json: bool, **options: Any) -> None:
    """Make a trace of random arrivals."""
    from symphony_dask.units import parse_duration_ns
    from workloads.traces.transform import synth

    slo_ns = None if slo is None else parse_duration_ns(slo, "--slo")
    with _progress("drawing", requests) as on_progress:
        found = synth(target, requests=requests, slo_ns=slo_ns, **options, on_progress=on_progress)
    _print_info(found, as_json)


@trace.command("diurnal")
@click.argument("target", metavar="OUT")
@click.option("--length", default="24h", show_default=True, help="From midnight on.")
@click.option("--peak", "peak_hz", type=float, required=True, help="Requests a second at noon, without bursts.")
@click.option("--trough", default=0.1, show_default=True, help="The rate at midnight over that at noon.")
@click.option("--bursts", "bursts_per_day", default=12.0, show_default=True, help="How many a day, on average.")
@click.option("--burst", default=1.6, show_default=True, help="What a burst multiplies the rate by, on average.")
@click.option("--wobble", default=0.05, show_default=True, help="Slow noise, relative to the rate.")
@click.option("--models", default=1, show_default=True, help="How many models.")
@click.option("--popularity", type=_POPULARITIES, default="equal", show_default=True, help="Of the models.")
@click.option("--slo", help="From arrival to deadline, such as 25ms; by default none is known.")
@seed_option
@json_option
@command
def diurnal_(target: str, length: str, slo: str | None, as_json: bool, **options: Any) -> None:
    """Make a trace whose rate rises and falls with the hours of the day, with bursts at random."""
    from pathlib import Path

    from symphony_dask.units import NS_PER_S, parse_duration_ns
    from workloads.traces.diurnal import diurnal

    seconds = parse_duration_ns(length, "--length") // NS_PER_S
    slo_ns = None if slo is None else parse_duration_ns(slo, "--slo")
    with _progress("drawing", seconds) as on_progress:
        found = diurnal(Path(target), seconds=seconds, slo_ns=slo_ns, **options, on_progress=on_progress)
    _print_info(found, as_json)


@trace.command("validate")
@click.argument("path", metavar="RUN")
@json_option
@command
def validate_(path: str, as_json: bool) -> None:
    """Check that the folder of a run or trace keeps the rules of the format; exits with 1 if it does not."""
    from symphony_dask.trace.validate import problems

    with _progress("checking", None) as on_progress:
        found = problems(path, on_progress)
    partial = note_partial(path).get(path)
    if as_json:
        print_json({"valid": not found, "problems": found, "partial": partial})
    else:
        for text in found or ["the folder is as it should be"]:
            click.echo(text)
    if found:
        raise click.exceptions.Exit(1)
