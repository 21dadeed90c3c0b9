"""A controller in a process of its own, which a test kills: fleet behind ``aws.AwsFront``, scheduler in the test."""

from __future__ import annotations

import os
import threading
from multiprocessing.managers import BaseManager
from typing import Any

from autoscale.fleet.controller import Controller, fixed
from autoscale.fleet.view import Settings
from autoscale.providers.ec2 import Ec2Fleet
from tests.helpers.aws.ec2 import ENVIRONMENT, REGION, TEMPLATE, ZONES

TYPES = ["g5.xlarge", "g4dn.xlarge", "g4dn.12xlarge"]

#: Everything some hundred times faster than in life. The second cap is one that the first does not imply.
QUICK = Settings(
    max_instances=6,
    max_usd_per_hour=4.0,
    settle_s=4.0,
    retry_s=0.5,
    join_timeout_s=20.0,
    drain_s=60.0,
    interrupted_drain_s=1.0,
    retire_s=1.0,
    ban_s=1.0,
)


class Office(BaseManager):
    """Hands out the test's scheduler."""


Office.register("scheduler")


def open_office(scheduler: Any) -> Any:
    """Serve a scheduler to other processes; returns the address."""

    class Host(BaseManager):
        pass

    Host.register("scheduler", callable=lambda: scheduler)
    server = Host(address=("127.0.0.1", 0), authkey=b"test").get_server()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server.address


def fleet(url: str, **options: Any) -> Ec2Fleet:
    where = {"endpoint_url": url, "region": REGION}
    return Ec2Fleet("test", launch_template=TEMPLATE, **{"types": TYPES, "zones": ZONES, **where, **options})


def run(url: str, office: Any, gpus: int, seed: int) -> None:
    """Run a controller until this process is killed."""
    os.environ.update(ENVIRONMENT)
    connection = Office(address=office, authkey=b"test")
    connection.connect()
    controller = Controller(QUICK, fleet(url), connection.scheduler(), fixed(gpus), interval_s=0.05)  # type: ignore[attr-defined]
    controller.backoff.first_s, controller.backoff.most_s = 0.05, 0.5
    controller.backoff.chance.seed(seed)
    controller.run()


def warm_up() -> None:
    """Have what every controller loads be loaded before the processes are forked."""
    import boto3

    for _ in range(2):
        boto3.client("ec2", endpoint_url="http://127.0.0.1:1", region_name=REGION)


if os.environ.get("SYMPHONY_TEST_FORKSERVER"):
    warm_up()
