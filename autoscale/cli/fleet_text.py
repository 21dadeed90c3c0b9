"""Shows fleets and plans to a person: counts of instances, a table of launches, and what they cost."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from autoscale.fleet.act import Step


def usd_per_hour(amount: float) -> str:
    return f"{amount:,.2f} USD an hour"


def finite(amount: float) -> float | None:
    """A cap as JSON has it."""
    return None if math.isinf(amount) else amount


def counts(step: Step) -> str:
    by_phase = step.summary()["instances"]
    return ", ".join(f"{n} {phase}" for phase, n in by_phase.items() if n) or "no instances"


def show_launches(title: str, rows: Sequence[Mapping[str, Any]], *, err: bool) -> None:
    """Print a table of what would be launched; err: on standard error."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title)
    for column in ("slot", "type", "market", "zone", "GPUs", "USD/h at most"):
        table.add_column(column)
    for r in rows:
        table.add_row(
            str(r["slot"]), r["instance_type"], r["market"], r["zone"], str(r["gpus"]), f"{r['usd_per_hour']:.3f}"
        )
    console = Console(stderr=err)
    console.print(table if rows else f"{title}; nothing to launch")
