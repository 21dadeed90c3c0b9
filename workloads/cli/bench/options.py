"""Options that benchmarks share, and the settings that they name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from symphony_dask.errors import BadInput
from workloads.cli.options import Option

if TYPE_CHECKING:
    from workloads.bench.fidelity import Setting

#: Of ``fidelity.SETTINGS``, so many are those in which other servers are measured too.
PEER_SETTINGS = 3

max_batch_help = "Form batches of at most this many requests."
peers_folder_option = click.option(
    "--folder",
    default="~/.cache/symphony-dask/peers",
    show_default=True,
    help="Install the other servers in this folder, each in an environment of its own.",
)


def batch_option(default: int) -> Option:
    return click.option("--batch", default=default, show_default=True, help=max_batch_help)


def payload_option(default: int) -> Option:
    return click.option(
        "--payload", "payload_bytes", default=default, show_default=True, help="Send this many bytes with each request."
    )


def seconds_option(default: float) -> Option:
    return click.option(
        "--seconds", default=default, show_default=True, help="Measure for this many seconds each time."
    )


def chosen_settings(names: Sequence[str], number: int | None = None) -> list[Setting]:
    """The settings of those names, by default all of the first ``number``; raises ``BadInput``."""
    from workloads.bench.fidelity import SETTINGS

    known = {setting.name: setting for setting in SETTINGS[:number]}
    for name in names:
        if name not in known:
            raise BadInput(f"setting {name!r} is unknown: choose of {', '.join(known)}")
    return [known[name] for name in names or known]
