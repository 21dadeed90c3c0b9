"""``symphony top``: shows the models and GPUs of a cluster in the terminal, and keeps the view up to date."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from symphony_dask.cli.command import command
from symphony_dask.cli.options import json_option
from symphony_dask.cli.output import print_json
from symphony_dask.cli.scheduler_address import scheduler_option

if TYPE_CHECKING:
    from rich.console import RenderableType


@click.command()
@scheduler_option()
@click.option("--interval", default="1s", show_default=True, metavar="DURATION", help="Refresh the view this often.")
@click.option("--once", is_flag=True, help="Print the view once and end.")
@json_option
@command
def top(scheduler: str, interval: str, once: bool, as_json: bool) -> None:
    """Watch a cluster's models and GPUs in the terminal.

    Runs until Ctrl-C. Rates and shares are those of the last ten seconds. With --json, it prints one object and ends.
    """
    import time

    from rich.console import Console
    from rich.live import Live

    from symphony_dask.cli.scheduler_check import connected
    from symphony_dask.units import NS_PER_S, parse_duration_ns

    pause_s = parse_duration_ns(interval, "--interval") / NS_PER_S
    with connected(scheduler) as serving:
        overview = serving.overview()
        if as_json:
            print_json(overview)
            return
        console = Console()
        if once:
            console.print(view(overview, scheduler))
            return
        with Live(view(overview, scheduler), console=console, screen=True, auto_refresh=False) as live:
            try:
                while True:
                    time.sleep(pause_s)
                    live.update(view(serving.overview(), scheduler), refresh=True)
            except KeyboardInterrupt:
                pass


def view(overview: dict[str, Any], scheduler: str) -> RenderableType:
    """What ``Serving.overview`` says, for rich to print."""
    from rich.console import Group
    from rich.text import Text

    from symphony_dask.observe.overview_text import fleet_lines

    parts: list[Any] = [_headline(overview, scheduler), Text("")]
    if overview["models"]:
        parts.append(_models(overview["models"]))
    else:
        parts.append(Text('No model is deployed: Serving(client).deploy("name", model, slo="25ms", example=x)'))
    for name in overview.get("loading", []):
        parts.append(Text(f"{name} is being loaded and profiled", style="yellow"))
    parts.append(Text(""))
    if overview["gpus"]:
        parts.append(_gpus(overview["gpus"]))
    else:
        parts.append(
            Text('No GPU serves: start a worker with dask worker SCHEDULER --resources "GPU=1"', style="yellow")
        )
    parts += map(Text, fleet_lines(overview))
    return Group(*parts)


def _headline(overview: dict[str, Any], scheduler: str) -> RenderableType:
    from rich.text import Text

    from symphony_dask.observe.overview_text import percent, several

    goodput = sum(m["goodput_hz"] for m in overview["models"])
    ended = sum(m["ended_hz"] for m in overview["models"])
    busy = sum(g["busy"] for g in overview["gpus"])
    text = Text("Symphony", style="bold")
    text.append(f" {scheduler}  policy {overview['policy']}\n", style="not bold")
    text.append(f"{goodput:,.0f}", style="bold green")
    text.append(" req/s in time, ", style="not bold")
    text.append(f"{percent(goodput / ended if ended else None)} %", style="bold")
    text.append(" attained, ", style="not bold")
    text.append(f"{busy:.1f} of {len(overview['gpus'])}", style="bold")
    text.append(f" GPUs busy, {several(overview['workers'], 'worker')}", style="not bold")
    text.append(f", {several(overview['clients'], 'client')}", style="not bold")
    return text


def _models(models: list[dict[str, Any]]) -> RenderableType:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    from symphony_dask.observe.overview_text import MODEL_COLUMNS, by_activity, model_row

    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for name, title in MODEL_COLUMNS:
        table.add_column(title, justify="left" if name == "model" else "right", no_wrap=name != "model")
    for model in by_activity(models):
        row: dict[str, Any] = dict(model_row(model))
        row["attainment"] = Text(row["attainment"], style=_mark(model["attainment"]))
        if model["p99_ns"] is not None and model["p99_ns"] > model["slo_ns"]:
            row["p99"] = Text(row["p99"], style="red")
        table.add_row(*(row[name] for name, _ in MODEL_COLUMNS))
    return table


def _mark(attainment: float | None) -> str:
    """The colour of an attainment: well, less so, badly."""
    if attainment is None:
        return ""
    return "green" if attainment >= 0.99 else "yellow" if attainment >= 0.9 else "red"


def _gpus(gpus: list[dict[str, Any]]) -> RenderableType:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    from symphony_dask.observe.overview_text import gpu_state

    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for title, justify in (
        ("rank", "right"),
        ("busy", "left"),
        ("class", "left"),
        ("worker", "left"),
        ("state", "left"),
    ):
        table.add_column(title, justify=justify, no_wrap=True)  # type: ignore[arg-type]
    for gpu in gpus:
        bar = Text("█" * round(20 * gpu["busy"]), style="cyan")
        bar.append("░" * (20 - round(20 * gpu["busy"])), style="bright_black")
        bar.append(f" {100 * gpu['busy']:3.0f} %", style="default")
        table.add_row(str(gpu["rank"]), bar, gpu["gpu_class"], gpu["worker"], gpu_state(gpu))
    return table
