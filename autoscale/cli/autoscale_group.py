"""``symphony autoscale``: runs a fleet's controller unless another command is named."""

from __future__ import annotations

import click

from autoscale.cli.prices import prices
from autoscale.cli.run import run


class RunByDefault(click.Group):
    """`symphony autoscale --scheduler ...` is `symphony autoscale run --scheduler ...`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0].startswith("-") and args[0] not in ctx.help_option_names:
            args = ["run", *args]
        return super().parse_args(ctx, args)


@click.group(cls=RunByDefault)
def autoscale() -> None:
    """Scale the fleet of GPUs with the load, or simulate it.

    "symphony autoscale --scheduler ADDRESS ..." is short for "symphony autoscale run --scheduler ADDRESS ...".
    """


autoscale.add_command(prices)
autoscale.add_command(run)
