"""``symphony autoscale prices``: shows the price table, or makes a new one from AWS's price list."""

from __future__ import annotations

import click

from symphony_dask.cli.command import command
from symphony_dask.cli.options import json_option
from symphony_dask.cli.output import print_json
from symphony_dask.cli.partial_files import write_whole


@click.command()
@click.option("--refresh", is_flag=True, help="Read AWS's price list now (needs pricing:GetProducts).")
@click.option("--region", default="us-east-1", show_default=True, help="Read the prices of this region.")
@click.option(
    "--out", type=click.Path(dir_okay=False), help="Write the table to this file, then set symphony.prices to it."
)
@json_option
@command
def prices(refresh: bool, region: str, out: str | None, as_json: bool) -> None:
    """Show the price table of instances, or make a new one.

    Caps, plans and reports go by this table.
    """
    from autoscale.providers.price_refresh import LIST_REGION, as_text, refreshed
    from autoscale.providers.prices import table

    if refresh:
        from autoscale.providers.ec2 import check_reachable

        check_reachable("pricing", region=LIST_REGION)
    found = refreshed(table(), region) if refresh else table()
    if out is not None:
        write_whole(out, as_text(found))
    if as_json:
        print_json(found)
        return
    click.echo(f"{found['region']}, as of {found['as_of']}: {found['source']}")
    for row in found["instances"]:
        click.echo(f"{row['instance']:16} {row['gpus']} x {row['gpu']:6} {row['usd_per_hour']:9.4f} USD/h")
