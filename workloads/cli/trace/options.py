"""Options that commands on traces share, and what they print of a trace."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from symphony_dask.cli.output import print_json

start_option = click.option(
    "--start", metavar="DURATION", help="Leave out what arrives before this time, which becomes time 0."
)
end_option = click.option("--end", metavar="DURATION", help="Leave out what arrives at this time or later.")
seed_option = click.option("--seed", default=0, show_default=True, help="Draw what is random from this seed.")
new_slo_option = click.option(
    "--slo", metavar="DURATION", help="Set each deadline this long after arrival, such as 25ms. By default, none."
)


def time_ns(text: str | None, what: str) -> int | None:
    """A time of a trace in ns, which may be 0; None where none is given. Raises ``BadInput``."""
    from symphony_dask.units import parse_duration_ns

    if text is None:
        return None
    return 0 if text.strip() in ("0", "0s") else parse_duration_ns(text, what)


def window(start: str | None, end: str | None) -> dict[str, Any]:
    """The times that --start and --end give, as the functions on traces take them; raises ``BadInput``."""
    return {"start_ns": time_ns(start, "--start") or 0, "end_ns": time_ns(end, "--end")}


def print_info(found: Mapping[str, Any], as_json: bool) -> None:
    """What a trace is like."""
    if as_json:
        print_json(found)
        return
    for key, value in found.items():
        text = value if isinstance(value, str) else f"{value:,.3f}" if isinstance(value, float) else f"{value:,}"
        click.echo(f"{key:10} {text}")
