"""``symphony compare``: schedulers side by side over a grid of cells, simulated on all cores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from symphony_dask.cli.partial_files import whole_file
from symphony_dask.cli.serve import command, json_option, print_json

if TYPE_CHECKING:
    from workloads.compare.cells import Cell

T = TypeVar("T")

_POLICIES = ("adaptive", "deferred", "eager")

#: How wide tables are where standard output is not a terminal.
_WIDTH = 180


@click.command()
@click.option(
    "--measure",
    type=click.Choice(["goodput", "gpus-needed", "gpus-used"]),
    default="goodput",
    show_default=True,
    help="Goodput on given GPUs; GPUs needed for given loads; GPUs used at 10 to 100 % of a policy's own goodput.",
)
@click.option(
    "--grid",
    type=click.Choice(["default", "gpus", "small"]),
    help="The cells, of which the options below replace parts: 108, 24 or 4. By default 108 for goodput, else 24.",
)
@click.option("--profile", multiple=True, help='Names of the zoo, or "alpha,beta" in ms.')
@click.option("--models", multiple=True, help="How many models alike.")
@click.option("--gpus", multiple=True, help="How many GPUs; for gpus-needed, those whose bound is the load.")
@click.option("--slo", multiple=True, help="Latency objectives, such as 25ms,50ms; by default the profile's own.")
@click.option("--shape", multiple=True, help="Of the gamma distributed gaps; below 1 they burst.")
@click.option("--popularity", multiple=True, help="Of the models: equal, zipf.")
@click.option("--load", multiple=True, help="For gpus-needed: requests/s.")
@click.option(
    "--policy", multiple=True, help=f"Policies of the engine and baselines, or all; by default {','.join(_POLICIES)}."
)
@click.option("--requests", default=200_000, show_default=True, help="Aimed at in each simulation, 60 s at most.")
@click.option("--seconds", type=float, help="Length of each simulation, instead of --requests.")
@click.option("--seeds", default=1, show_default=True, help="How many draws of arrivals the figures are means of.")
@click.option("--processes", type=int, help="By default one for each core.")
@click.option("--out", type=click.Path(file_okay=False), help="A folder for compare.parquet and the PNG figures.")
@click.option("--markdown", is_flag=True, help="Print the tables as Markdown.")
@json_option
@command
def compare(
    measure: str,
    grid: str | None,
    load: tuple[str, ...],
    policy: tuple[str, ...],
    requests: int,
    seconds: float | None,
    seeds: int,
    processes: int | None,
    out: str | None,
    markdown: bool,
    as_json: bool,
    **dimensions: tuple[str, ...],
) -> None:
    """Compare schedulers over a grid of cells, by simulation on all cores.

    Every option that names things takes several, separated by commas or by repeating it. --out needs matplotlib, the
    extra "plot".
    """
    import time

    from symphony_dask.errors import BadInput
    from workloads.baselines import BASELINES
    from workloads.compare import compare as goodput
    from workloads.compare import figures, gpus_needed, gpus_used, tables

    if out is not None:
        figures.require_matplotlib()
    cells = _cells(grid or ("default" if measure == "goodput" else "gpus"), dimensions)
    policies = _listed(policy, str, "policy") or list(_POLICIES)
    if "all" in policies:
        policies = [*_POLICIES, *BASELINES]
    policies = list(dict.fromkeys(policies))
    loads_hz = _listed(load, float, "load")
    if loads_hz and measure != "gpus-needed":
        raise BadInput(f"loads are given for --measure {measure}: they go with gpus-needed only")
    options: dict[str, Any] = {"seeds": seeds, "requests": requests, "seconds": seconds, "processes": processes}
    began = time.perf_counter()
    with _progress(f"{len(cells)} cells, {len(policies)} policies") as on_progress:
        options["on_progress"] = on_progress
        if measure == "goodput":
            frame = goodput.compare_goodput(cells, policies, **options)
            summary, table, draw = goodput.summary(frame), tables.goodput_tables, figures.goodput_figures
        elif measure == "gpus-needed":
            frame = gpus_needed.gpus_needed(cells, policies, loads_hz=loads_hz, **options)
            summary, table, draw = gpus_needed.summary(frame), tables.needed_tables, figures.needed_figures
        else:
            frame = gpus_used.gpus_used(cells, policies, **options)
            summary, table, draw = gpus_used.summary(frame), tables.used_tables, figures.used_figures
    took_s = time.perf_counter() - began
    files = []
    if out is not None:
        folder = Path(out)
        folder.mkdir(parents=True, exist_ok=True)
        with whole_file(folder / "compare.parquet") as beside:
            frame.write_parquet(beside)
        files = [str(path) for path in (folder / "compare.parquet", *draw(frame, folder))]
    if as_json:
        found = {"label": "simulated", "measure": measure, "policies": policies, "seeds": seeds, "took_s": took_s}
        print_json({**found, "files": files, "summary": summary.to_dicts(), "rows": frame.to_dicts()})
        return
    shown = table(frame, summary)
    if markdown:
        click.echo("\n\n".join(each.markdown() for each in shown))
    else:
        from rich.console import Console

        console = Console()
        if not console.is_terminal:
            console = Console(width=_WIDTH)
        for each in shown:
            console.print(each.rich())
    for file in files:
        click.echo(file, err=True)


def _cells(grid: str, dimensions: dict[str, tuple[str, ...]]) -> list[Cell]:
    """The cells of the grid, with the dimensions that are given in place of its own; raises ``BadInput``."""
    from dataclasses import replace

    from symphony_dask.errors import BadInput
    from symphony_dask.units import parse_duration_ns
    from workloads.compare.cells import GRIDS
    from workloads.traces.zoo import POPULARITIES

    given: dict[str, Any] = {
        "profiles": _profiles(dimensions["profile"]),
        "models": _listed(dimensions["models"], int, "models"),
        "gpus": _listed(dimensions["gpus"], int, "gpus"),
        "slos_ns": _listed(dimensions["slo"], lambda text: parse_duration_ns(text, "slo"), "slo"),
        "shapes": _listed(dimensions["shape"], float, "shape"),
        "popularities": _listed(dimensions["popularity"], str, "popularity"),
    }
    for name in given["popularities"]:
        if name not in POPULARITIES:
            raise BadInput(f"popularity {name!r} is unknown: choose one of {', '.join(POPULARITIES)}")
    return replace(GRIDS[grid], **{name: values for name, values in given.items() if values}).cells()


def _listed(texts: Sequence[str], parse: Callable[[str], T], what: str) -> list[T]:
    """Every part between commas, parsed; raises ``BadInput``."""
    from symphony_dask.errors import BadInput

    values = []
    for part in ",".join(texts).split(",") if texts else ():
        try:
            values.append(parse(part.strip()))
        except BadInput:
            raise
        except ValueError:
            raise BadInput(f"{what} {part!r} cannot be read: give numbers, separated by commas") from None
    return values


def _profiles(texts: Sequence[str]) -> list[str]:
    """Names, and pairs of numbers, of each text: "resnet50,1.0,5" is two profiles."""
    profiles: list[str] = []
    for text in texts:
        parts = [part.strip() for part in text.split(",")]
        while parts:
            taken = 2 if _is_number(parts[0]) else 1
            profiles.append(",".join(parts[:taken]))
            del parts[:taken]
    return profiles


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _progress(title: str) -> Any:
    """A context manager that shows a progress bar on standard error, and gives what to call with the progress."""
    from contextlib import contextmanager

    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    @contextmanager
    def shown() -> Any:
        columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
        with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as progress:
            task = progress.add_task(f"{title}: compiling", total=None)

            def on_progress(done: float, total: float) -> None:
                progress.update(task, description=title, completed=done, total=total)

            yield on_progress

    return shown()
