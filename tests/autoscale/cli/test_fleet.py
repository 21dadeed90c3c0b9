"""`symphony up`, `down` and `orphans`, on a fleet of local processes and on EC2 behind the front."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from autoscale.cli.down import down
from autoscale.cli.orphans import orphans
from autoscale.cli.up import up
from autoscale.fleet.controller import Controller, fixed
from autoscale.fleet.fleet import Launch
from autoscale.fleet.scheduler_view import DaskCluster
from autoscale.fleet.view import Settings
from autoscale.providers.local import LocalFleet
from symphony_dask.cli.commands.status import status
from tests.helpers.aws.controller_process import fleet as ec2_fleet
from tests.helpers.aws.ec2 import TEMPLATE, ZONES, AwsFront
from tests.helpers.cluster import Cluster, wait_until


@pytest.fixture(scope="module")
def empty_cluster() -> Iterator[Cluster]:
    with Cluster(0, settings={"DASK_SYMPHONY__POLICY": "eager"}) as cluster:
        where = ("--scheduler", cluster.address)
        wait_until(
            lambda: ran(status, *where).exit_code == 0, "the scheduler", 240
        )  # it may have to compile its engine
        yield cluster


@pytest.fixture
def local(empty_cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Options of a local fleet of its own."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[3]))
    yield ["--provider", "local", "--fleet", "cli", "--scheduler", empty_cluster.address, "--local-usd-per-hour", "2"]
    fleet = LocalFleet("cli", "")
    fleet.terminate([i.id for i in fleet.list()])
    wait_until(lambda: not [i for i in fleet.list() if i.live], "the end of all processes")


def ran(command: click.Command, *arguments: str, **options: Any) -> Result:
    return CliRunner().invoke(command, list(arguments), **options)


def found(result: Result) -> dict[str, Any]:
    assert result.exit_code == 0, result.output
    value: dict[str, Any] = json.loads(result.stdout)
    return value


CAPS = ["--max-instances", "3", "--max-usd-per-hour", "5"]


def test_up_shows_a_plan_with_its_cost_and_launches_nothing_unless_told(local: list[str]) -> None:
    shown = ran(up, *local, *CAPS, "--gpus", "9", "--dry-run")
    assert shown.exit_code == 0, shown.output
    assert "then at most 4.00 USD an hour; the cap of 5 USD an hour" in shown.stdout
    refused = ran(up, *local, *CAPS, "--gpus", "1", input="n\n")
    assert refused.exit_code == 1
    assert "Launch 1 instances?" in refused.output
    assert LocalFleet("cli", "").list() == []


@pytest.mark.slow  # the same on EC2 is in the normal run
def test_up_then_orphans_status_and_down(local: list[str], empty_cluster: Cluster) -> None:
    launched = found(ran(up, *local, *CAPS, "--gpus", "2", "--yes", "--json"))
    assert (launched["gpus_ready"], launched["usd_per_hour"], len(launched["launched"])) == (2, 4.0, 2)
    again = found(ran(up, *local, *CAPS, "--gpus", "2", "--yes", "--json"))
    assert again["planned"] == again["launched"] == []

    none = found(ran(orphans, *local, "--json"))
    assert (none["instances"], none["orphans"]) == (2, [])
    unknown = local[: local.index("--scheduler")]
    assert len(found(ran(orphans, *unknown, "--json"))["orphans"]) == 2

    kept = ran(down, *local, "--dry-run")
    assert "fleet cli: 2 instances, at most 4.00 USD an hour" in kept.stdout
    ended = found(ran(down, *local, "--yes", "--json"))
    assert (len(ended["ended"]), ended["left"]) == (2, [])
    told = ran(status, "--scheduler", empty_cluster.address)
    assert told.exit_code == 0
    assert "retired for" in told.output


def test_status_shows_the_fleet_as_its_controller_last_saw_it(local: list[str], empty_cluster: Cluster) -> None:
    with DaskCluster(empty_cluster.address) as cluster:
        caps = Settings(max_instances=3, max_usd_per_hour=math.inf)
        controller = Controller(caps, LocalFleet("cli", ""), cluster, fixed(0))
        for _ in range(2):  # what one look found is told with the next
            assert controller.tick() is not None
    told = ran(status, "--scheduler", empty_cluster.address)
    assert "no instances; 0 GPUs wanted; 0.00 USD an hour at most" in told.output
    report = found(ran(status, "--scheduler", empty_cluster.address, "--json"))["fleets"]["cli"]
    assert (report["gpus"], report["max_instances"], report["max_usd_per_hour"]) == (0, 3, None)


def test_down_without_a_scheduler_has_to_be_told_that_it_may_lose_work(local: list[str]) -> None:
    fleet = LocalFleet("cli", "tcp://127.0.0.1:1", boot_s=600.0)
    fleet.launch(Launch(0, 1, fleet.offers()[0]))
    unknown = local[: local.index("--scheduler")]
    refused = ran(down, *unknown, "--yes")
    assert refused.exit_code == 1
    assert "give --scheduler, so that workers can be drained, or --now" in refused.output
    assert found(ran(down, *unknown, "--now", "--yes", "--json"))["left"] == []


def test_an_instance_whose_worker_does_not_join_is_an_orphan_and_can_be_ended(local: list[str]) -> None:
    fleet = LocalFleet("cli", "tcp://127.0.0.1:1", boot_s=600.0)
    fleet.launch(Launch(0, int((time.time() - 3600) * 1000), fleet.offers()[0]))
    listed = found(ran(orphans, *local, "--json"))
    assert [o["slot"] for o in listed["orphans"]] == [0]
    young = found(ran(orphans, *local, "--join-timeout", "2h", "--json"))
    assert young["orphans"] == []
    assert found(ran(orphans, *local, "--terminate", "--yes", "--json"))["terminated"]
    wait_until(lambda: not [i for i in fleet.list() if i.live], "its end")


def test_the_same_on_ec2(empty_cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    with AwsFront() as front:
        monkeypatch.setenv("AWS_ENDPOINT_URL", front.url)
        zones = [option for zone in ZONES for option in ("--zone", zone)]
        where = ["--fleet", "test", "--launch-template", TEMPLATE, *zones, "--type", "g5.xlarge"]
        scheduler = ["--scheduler", empty_cluster.address]
        wait_until(lambda: ran(orphans, *where, *scheduler).exit_code == 0, "the scheduler")
        settle = ["--settle", "1s", "--no-wait"]
        launched = found(ran(up, *where, *scheduler, *CAPS, *settle, "--gpus", "2", "--yes", "--json"))
        assert [(p["instance_type"], p["zone"]) for p in launched["planned"]] == [("g5.xlarge", z) for z in ZONES]
        assert launched["usd_per_hour"] == 2.012
        assert len(front.live()) == 2
        assert [i.slot for i in ec2_fleet(front.url).list()] == [0, 1]
        ended = found(ran(down, *where, "--now", "--yes", "--json"))
        assert ended["left"] == []
        assert front.live() == []


def test_ec2_needs_to_know_what_and_where() -> None:
    refused = ran(orphans, "--region", "us-east-1")
    assert refused.exit_code == 1
    assert "EC2 needs --stack NAME, or --launch-template and --zone" in refused.output
