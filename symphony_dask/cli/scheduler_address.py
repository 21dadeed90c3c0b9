"""Names the scheduler that a command is about: the option ``--scheduler``, and addresses that are well formed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click

from symphony_dask.errors import BadInput

_SCHEMES = ("tcp", "tls", "ws", "wss", "ucx")

_EXAMPLE = "tcp://127.0.0.1:8786"


def scheduler_option(*, required: bool = True, note: str = "") -> Callable[[Any], Any]:
    """``--scheduler``; by default the address in Dask's configuration. The command gets an address that is well formed.

    required: whether there must be one; note: a sentence for the help, such as when there need not be one.
    """

    def resolved(context: click.Context, parameter: click.Parameter, given: str | None) -> str | None:
        address = default_scheduler() if given is None else given
        if address is None:
            if required and not context.resilient_parsing:
                text = f"no scheduler is named: give --scheduler {_EXAMPLE}, or set DASK_SCHEDULER_ADDRESS"
                raise click.UsageError(text, context)
            return None
        try:
            return address_of(address)
        except BadInput as error:
            raise click.ClickException(str(error)) from None

    what = f"Use the Dask scheduler at this address, such as {_EXAMPLE}, or the one that a scheduler file names."
    default = "By default, use the one in Dask's configuration (DASK_SCHEDULER_ADDRESS)."
    text = " ".join(filter(None, (what, default, note)))
    return click.option("--scheduler", metavar="ADDRESS", callback=resolved, help=text)


def default_scheduler() -> str | None:
    """The address in Dask's configuration, None where there is none."""
    import dask.config

    address = dask.config.get("scheduler-address", None)
    return None if address is None else str(address)


def address_of(text: str) -> str:
    """The address that ``text`` is, or that is in the scheduler file it names, as Dask writes it.

    Raises ``BadInput`` if it is neither.
    """
    if "://" not in text and (text.endswith(".json") or Path(text).is_file()):
        text = _in_file(text)
    remedy = f"write it as {_EXAMPLE}"
    address = text if "://" in text else f"tcp://{text}"
    scheme = address.partition("://")[0]
    if scheme not in _SCHEMES:
        raise BadInput(
            f"scheduler address {text!r:.200} begins with {scheme!r:.40}: {remedy} (or tls://, ws://, wss://)"
        )
    try:
        parts = urlsplit(address)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise BadInput(f"scheduler address {text!r:.200} cannot be read ({error}): {remedy}") from None
    if not host or any(c.isspace() or not c.isprintable() for c in address):
        raise BadInput(f"scheduler address {text!r:.200} names no host: {remedy}")
    if not port:
        raise BadInput(f"scheduler address {text!r:.200} names no port: {remedy} (8786 is Dask's usual one)")
    return address


def _in_file(path: str) -> str:
    remedy = "give the one that dask scheduler --scheduler-file wrote, or an address"
    try:
        return str(json.loads(Path(path).read_bytes())["address"])
    except OSError as error:
        raise BadInput(f"scheduler file {path!r:.200} cannot be read ({error.strerror}): {remedy}") from None
    except (ValueError, TypeError, KeyError):
        raise BadInput(f"scheduler file {path!r:.200} holds no address of a scheduler: {remedy}") from None
