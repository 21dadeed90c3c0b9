"""Options that say which cells ``symphony compare`` simulates: combinations of models, GPUs, SLOs and arrivals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

import click

from symphony_dask.cli.options import gathered
from symphony_dask.errors import BadInput
from workloads.cli.options import PROFILE

if TYPE_CHECKING:
    from workloads.compare.cells import Cell

R = TypeVar("R")
T = TypeVar("T")

_OPTIONS = [
    click.option(
        "--grid",
        type=click.Choice(["default", "gpus", "small"]),
        help="Start from this grid of 108, 24 or 4 cells; the options below replace parts of it. By default, 108 for "
        "goodput, else 24.",
    ),
    click.option(
        "--profile",
        multiple=True,
        help=f"Take the times of batches from these profiles: {PROFILE}, or names of published models.",
    ),
    click.option("--models", multiple=True, help="Use this many models that are alike."),
    click.option("--gpus", multiple=True, help="Use this many GPUs; for gpus-needed, those whose bound is the load."),
    click.option(
        "--slo", multiple=True, help="Use latency objectives such as 25ms,50ms. By default, the profile's own."
    ),
    click.option(
        "--shape",
        multiple=True,
        help="Draw the gaps between arrivals from gamma distributions of these shapes; below 1 they come in bursts.",
    ),
    click.option(
        "--popularity",
        multiple=True,
        help="Spread requests over the models equally (equal) or by Zipf's law (zipf).",
    ),
]


@dataclass(frozen=True)
class GridOptions:
    """The grid, and the dimensions that are given in place of its own."""

    grid: str | None
    profile: tuple[str, ...]
    models: tuple[str, ...]
    gpus: tuple[str, ...]
    slo: tuple[str, ...]
    shape: tuple[str, ...]
    popularity: tuple[str, ...]

    def cells(self, default_grid: str) -> list[Cell]:
        """Raises ``BadInput`` where a value cannot be read."""
        from symphony_dask.units import parse_duration_ns
        from workloads.compare.cells import GRIDS
        from workloads.traces.zoo import POPULARITIES

        given: dict[str, Any] = {
            "profiles": listed_profiles(self.profile),
            "models": listed(self.models, int, "models"),
            "gpus": listed(self.gpus, int, "gpus"),
            "slos_ns": listed(self.slo, lambda text: parse_duration_ns(text, "slo"), "slo"),
            "shapes": listed(self.shape, float, "shape"),
            "popularities": listed(self.popularity, str, "popularity"),
        }
        for name in given["popularities"]:
            if name not in POPULARITIES:
                raise BadInput(f"popularity {name!r} is unknown: choose one of {', '.join(POPULARITIES)}")
        grid = GRIDS[self.grid or default_grid]
        return replace(grid, **{name: values for name, values in given.items() if values}).cells()


def grid_options(function: Callable[..., R]) -> Callable[..., R]:
    """Add the options of ``GridOptions``; the command takes it as ``grid_options``."""
    decorated = gathered(GridOptions, "grid_options")(function)
    for option in reversed(_OPTIONS):
        decorated = option(decorated)
    return decorated


def listed(texts: Sequence[str], parse: Callable[[str], T], what: str) -> list[T]:
    """Every part between commas, parsed; raises ``BadInput``."""
    values = []
    for part in ",".join(texts).split(",") if texts else ():
        try:
            values.append(parse(part.strip()))
        except BadInput:
            raise
        except ValueError:
            raise BadInput(f"{what} {part!r} cannot be read: give numbers, separated by commas") from None
    return values


def listed_profiles(texts: Sequence[str]) -> list[str]:
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
