"""Drains this instance's workers when AWS announces that it takes the spot instance back (two minutes before)."""

from __future__ import annotations

import asyncio
import logging

import click

from infra.worker import imds, scheduler
from infra.worker.watchdog import duration
from symphony_dask.units import NS_PER_S

logger = logging.getLogger(__name__)


async def watch(address: str, host: str, every_s: float) -> list[str]:
    """Wait for the notice, have the scheduler drain the workers of ``host``, and return their addresses."""
    while True:
        try:
            notice = imds.spot_notice()
        except (OSError, ValueError) as error:
            logger.warning("the instance's metadata cannot be read: %s", error)
            notice = None
        if notice is not None:
            logger.warning("this instance is taken back: %s", notice)
            try:
                workers = await scheduler.workers_here(address, host)
                await scheduler.drain(address, workers)
            except Exception as error:  # two minutes are left: ask again
                logger.warning("the scheduler at %s did not drain: %s", address, error)
            else:
                return workers
        await asyncio.sleep(every_s)


@click.command()
@click.option("--scheduler", "address", envvar="SYMPHONY_SCHEDULER", required=True, help="The scheduler's address.")
@click.option("--every", default="5s", callback=duration, help="How often to look for the notice.")
def main(address: str, every: int) -> None:
    """Drain this instance's workers as soon as AWS announces its interruption."""
    logging.basicConfig(level="INFO", format="%(message)s")
    workers = asyncio.run(watch(address, imds.must_read("local-ipv4"), every / NS_PER_S))
    logger.warning("draining: %s", ", ".join(workers) or "no worker was here")


if __name__ == "__main__":
    main()
