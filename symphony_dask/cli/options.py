"""Options that many commands share, and options gathered in a dataclass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from functools import wraps
from typing import TypeVar

import click

from symphony_dask.errors import BadInput

R = TypeVar("R")

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object and nothing else.")
yes_option = click.option("--yes", is_flag=True, help="Go on without asking.")


def gathered(kind: type, into: str = "options") -> Callable[[Callable[..., R]], Callable[..., R]]:
    """Have a command take the options that are fields of the dataclass ``kind`` as one argument, ``into``."""
    names = [field.name for field in fields(kind)]

    def gather(function: Callable[..., R]) -> Callable[..., R]:
        @wraps(function)
        def run(**given: object) -> R:
            value = kind(**{name: given.pop(name) for name in names})
            return function(**{into: value}, **given)

        return run

    return gather


def seconds(ctx: click.Context, parameter: click.Parameter, value: str) -> float:
    """Callback of an option whose value is a duration, "60s" or "2min"; the command gets it in s."""
    from symphony_dask.units import NS_PER_S, parse_duration_ns

    try:
        return parse_duration_ns(value, parameter.opts[0]) / NS_PER_S
    except BadInput as error:
        raise click.BadParameter(str(error)) from None


def optional_duration_ns(text: str | None, what: str) -> int | None:
    """The duration that an option gives, in ns; None where it is not given. Raises ``BadInput``."""
    from symphony_dask.units import parse_duration_ns

    return None if text is None else parse_duration_ns(text, what)
