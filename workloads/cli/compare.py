"""``symphony compare``: compares schedulers over a grid of cells, simulated on all cores."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from symphony_dask.cli.command import command
from symphony_dask.cli.options import gathered, json_option
from symphony_dask.cli.output import print_json
from symphony_dask.cli.partial_files import whole_file
from symphony_dask.errors import BadInput
from workloads.cli.compare_grid import GridOptions, grid_options, listed
from workloads.cli.options import prefer_option
from workloads.cli.progress_bars import estimate_bar

if TYPE_CHECKING:
    import polars as pl

    from workloads.compare.cells import Cell
    from workloads.compare.tables import Table

_POLICIES = ("adaptive", "deferred", "eager")

#: How wide tables are where standard output is not a terminal.
_WIDTH = 180


@dataclass(frozen=True)
class CompareOptions:
    """What is measured, by which policies and how carefully, and where it is written."""

    measure: str
    load: tuple[str, ...]
    policy: tuple[str, ...]
    prefer: str | None
    requests: int
    seconds: float | None
    seeds: int
    processes: int | None
    out: str | None
    markdown: bool

    def policies(self) -> list[str]:
        """By name, each once."""
        from workloads.baselines import BASELINES

        given = listed(self.policy, str, "policy") or list(_POLICIES)
        online = [name for name in BASELINES if name != "offline"]  # which takes small cells only
        return list(dict.fromkeys([*_POLICIES, *online] if "all" in given else given))

    def loads_hz(self) -> list[float]:
        """Raises ``BadInput`` where the measure takes none."""
        loads_hz = listed(self.load, float, "load")
        if loads_hz and self.measure != "gpus-needed":
            raise BadInput(f"loads are given for --measure {self.measure}: they go with gpus-needed only")
        return loads_hz


class Comparison(NamedTuple):
    """Rows of every cell and policy, what they come to, the same as tables for a person, and files with figures."""

    rows: pl.DataFrame
    summary: pl.DataFrame
    tables: Sequence[Table]
    files: Sequence[str]


@click.command()
@click.option(
    "--measure",
    type=click.Choice(["goodput", "gpus-needed", "gpus-used"]),
    default="goodput",
    show_default=True,
    help="Measure goodput on given GPUs, the GPUs that given loads need, or the GPUs used at 10 to 100 % of a policy's "
    "own goodput.",
)
@grid_options
@click.option("--load", multiple=True, help="For gpus-needed, offer this many requests a second.")
@click.option(
    "--policy",
    multiple=True,
    help=f"Compare these policies of the engine and baselines, or all but offline. By default, {','.join(_POLICIES)}.",
)
@prefer_option
@click.option(
    "--requests",
    default=200_000,
    show_default=True,
    help="Simulate about this many requests each time, 60 s at most.",
)
@click.option("--seconds", type=float, help="Simulate this many seconds each time, in place of --requests.")
@click.option("--seeds", default=1, show_default=True, help="Take the mean of this many draws of arrivals.")
@click.option("--processes", type=int, help="Simulate in this many processes. By default, one for each core.")
@click.option(
    "--out",
    type=click.Path(file_okay=False),
    help='Write compare.parquet and PNG figures to this folder (needs the extra "plot").',
)
@click.option("--markdown", is_flag=True, help="Print the tables as Markdown.")
@json_option
@gathered(CompareOptions)
@command
def compare(options: CompareOptions, grid_options: GridOptions, as_json: bool) -> None:
    """Compare schedulers over a grid of settings, by simulation.

    Goodput is the rate of requests that finish in time. Every option that names things takes several, separated by
    commas or by repeating it.
    """
    from workloads.compare import figures
    from workloads.compare.policies import batching_of

    if options.out is not None:
        figures.require_matplotlib()
    policies = options.policies()
    batching = batching_of(options.prefer, policies)
    grid = grid_options.cells("default" if options.measure == "goodput" else "gpus")
    cells = [replace(cell, batching=batching) for cell in grid]
    began = time.perf_counter()
    found = compared(cells, policies, options)
    took_s = time.perf_counter() - began
    if as_json:
        about = {
            "label": "simulated",
            "measure": options.measure,
            "policies": policies,
            "prefer": options.prefer,
            "seeds": options.seeds,
        }
        frames = {"summary": found.summary.to_dicts(), "rows": found.rows.to_dicts()}
        print_json({**about, "took_s": took_s, "files": found.files, **frames})
    else:
        show(found, markdown=options.markdown)


def compared(cells: Sequence[Cell], policies: Sequence[str], options: CompareOptions) -> Comparison:
    """Simulate every cell under every policy, and write what is to be written; raises ``BadInput``."""
    from workloads.compare import compare as goodput
    from workloads.compare import figures, gpus_needed, gpus_used, tables

    loads_hz = options.loads_hz()
    with estimate_bar(f"{len(cells)} cells, {len(policies)} policies") as on_progress:
        given: dict[str, Any] = {
            "seeds": options.seeds, "requests": options.requests, "seconds": options.seconds,
            "processes": options.processes, "on_progress": on_progress,
        }  # fmt: skip
        if options.measure == "goodput":
            rows = goodput.compare_goodput(cells, policies, **given)
            summary, table, draw = goodput.summary(rows), tables.goodput_tables, figures.goodput_figures
        elif options.measure == "gpus-needed":
            rows = gpus_needed.gpus_needed(cells, policies, loads_hz=loads_hz, **given)
            summary, table, draw = gpus_needed.summary(rows), tables.needed_tables, figures.needed_figures
        else:
            rows = gpus_used.gpus_used(cells, policies, **given)
            summary, table, draw = gpus_used.summary(rows), tables.used_tables, figures.used_figures
    files: list[str] = []
    if options.out is not None:
        folder = Path(options.out)
        folder.mkdir(parents=True, exist_ok=True)
        with whole_file(folder / "compare.parquet") as beside:
            rows.write_parquet(beside)
        files = [str(path) for path in (folder / "compare.parquet", *draw(rows, folder))]
    return Comparison(rows, summary, table(rows, summary), files)


def show(found: Comparison, *, markdown: bool) -> None:
    """Print the tables, and on standard error the files."""
    if markdown:
        click.echo("\n\n".join(table.markdown() for table in found.tables))
    else:
        from rich.console import Console

        console = Console()
        if not console.is_terminal:
            console = Console(width=_WIDTH)
        for table in found.tables:
            console.print(table.rich())
    for file in found.files:
        click.echo(file, err=True)
