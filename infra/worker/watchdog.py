"""Shuts the instance down when nobody uses it, so that none is paid for because a controller died.

Two rules, both by a monotonic clock: the scheduler has not answered for ``unreachable``, or it answers, but has had no
worker of this instance for ``absent`` (it never joined, or was retired and nobody terminated the instance). The launch
template turns a shutdown into a termination.
"""

from __future__ import annotations

import asyncio
import logging
import shlex
import subprocess
import time
from dataclasses import dataclass

import click

from infra.worker import imds, scheduler
from symphony_dask.units import NS_PER_S, format_duration, parse_duration_ns

logger = logging.getLogger(__name__)


@dataclass
class Watch:
    """When the scheduler last answered, and last had a worker of this instance; the start counts as both."""

    unreachable_ns: int
    absent_ns: int
    answered_ns: int
    present_ns: int
    joined: bool = False

    def observe(self, now_ns: int, workers: int | None) -> str | None:
        """Why to shut down, or None. workers: how many the scheduler has on this instance, None: it did not answer."""
        if workers is not None:
            self.answered_ns = now_ns
        if workers:
            self.present_ns = now_ns
            self.joined = True
        if now_ns - self.answered_ns >= self.unreachable_ns:
            return f"the scheduler has not answered for {format_duration(now_ns - self.answered_ns)}"
        if now_ns - self.present_ns >= self.absent_ns:
            since = "since the start" if not self.joined else "any more"
            away = format_duration(now_ns - self.present_ns)
            return f"the scheduler has had no worker of this instance {since} for {away}"
        return None


async def guard(address: str, host: str, watch: Watch, every_s: float, on_join: str) -> str:
    """Watch until there is a reason to shut down, and return it. on_join: a command for when a worker is first seen."""
    while True:
        workers: int | None
        try:
            workers = len(await scheduler.workers_here(address, host))
        except Exception as error:  # whatever is wrong with the scheduler's answer, there was none
            logger.warning("the scheduler at %s did not answer: %s", address, error)
            workers = None
        joined = watch.joined
        reason = watch.observe(time.monotonic_ns(), workers)
        if reason is not None:
            return reason
        if watch.joined and not joined and on_join:
            await asyncio.to_thread(subprocess.run, shlex.split(on_join), check=False)
        await asyncio.sleep(every_s)


def duration(context: click.Context, parameter: click.Parameter, value: str) -> int:
    """Nanoseconds of an option such as ``--every 15s``."""
    return parse_duration_ns(value, parameter.opts[0])


@click.command()
@click.option("--scheduler", "address", envvar="SYMPHONY_SCHEDULER", required=True, help="The scheduler's address.")
@click.option("--unreachable", default="5min", callback=duration, help="Shut down after so long without an answer.")
@click.option("--absent", default="15min", callback=duration, help="Shut down after so long without a worker.")
@click.option("--every", default="15s", callback=duration, help="How often to ask.")
@click.option("--on-join", default="", help="A command to run when a worker of this instance is first seen.")
@click.option("--shutdown", default="systemctl poweroff", help="The command that shuts the instance down.")
def main(address: str, unreachable: int, absent: int, every: int, on_join: str, shutdown: str) -> None:
    """Shut this instance down when the scheduler is unreachable, or has no worker of it."""
    logging.basicConfig(level="INFO", format="%(message)s")
    now_ns = time.monotonic_ns()
    watch = Watch(unreachable, absent, answered_ns=now_ns, present_ns=now_ns)
    reason = asyncio.run(guard(address, imds.must_read("local-ipv4"), watch, every / NS_PER_S, on_join))
    logger.warning("shutting down: %s", reason)
    subprocess.run(shlex.split(shutdown), check=True)


if __name__ == "__main__":
    main()
