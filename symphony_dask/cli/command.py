"""Ends a command by one line when an error or a signal stops it."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec

import click

from symphony_dask.cli.error_line import debugging, in_one_line, is_panic
from symphony_dask.cli.partial_files import farewell, interruptible, interruption

P = ParamSpec("P")


def command(function: Callable[P, None]) -> Callable[P, None]:
    """Have the command end by an error or a signal in one line that says what was wrong, or what is left.

    The exit status is then 1, 130 (Ctrl-C) or 143 (SIGTERM). With SYMPHONY_DEBUG set, errors are raised on.
    """

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            with interruptible():
                function(*args, **kwargs)
        except (click.ClickException, click.Abort, click.exceptions.Exit, BrokenPipeError):
            raise  # click's own, and a reader of the output that wants no more
        except BaseException as error:
            if debugging() or not (isinstance(error, (Exception, KeyboardInterrupt)) or is_panic(error)):
                raise
            interrupted = interruption(error)
            if interrupted is None:
                raise click.ClickException(in_one_line(error)) from error
            text, status = farewell(interrupted)
            click.echo(text, err=True)
            raise SystemExit(status) from None

    return run
