"""``EC2GPUCluster`` on moto: a real scheduler, and a real worker process for each instance that moto has running."""

from __future__ import annotations

import asyncio
import base64
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from distributed import Client
from distributed.security import Security

import autoscale
from autoscale.ec2 import Ec2Fleet
from autoscale.ec2_cluster import stack_outputs, zones_of
from autoscale.fleet import Launch
from autoscale.reconcile import Settings
from autoscale.scheduler_process import SchedulerProcess
from symphony_dask import Serving
from symphony_dask.backends import Emulated
from symphony_dask.errors import BadInput
from tests.autoscale.test_adaptive import Load, by_the_latest_rate
from tests.cluster import Cluster, wait_until
from tests.infra.aws import TEMPLATE, Aws, moto

QUICK = Settings(max_instances=3, max_usd_per_hour=99.0, settle_s=0.5, retry_s=0.2, drain_s=5.0)


class Boots:
    """What boot scripts do: a worker for each running instance of the fleet, while it runs."""

    def __init__(self, aws: Aws) -> None:
        self._ec2 = aws.client("ec2")
        self._workers: dict[str, subprocess.Popen[bytes]] = {}
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def instances(self, state: str = "running") -> dict[str, dict[str, str]]:
        """Tags of the fleet's instances by id."""
        found = self._ec2.describe_instances(Filters=[{"Name": "instance-state-name", "Values": [state]}])
        every = [i for r in found["Reservations"] for i in r["Instances"]]
        return {i["InstanceId"]: {t["Key"]: t["Value"] for t in i["Tags"]} for i in every}

    def slots(self) -> list[int]:
        return sorted(int(tags["symphony:slot"]) for tags in self.instances().values())

    def _run(self) -> None:
        while not self._end.wait(0.1):
            running = self.instances()
            for name, tags in running.items():
                if name not in self._workers:
                    self._workers[name] = self._boot(name, tags["symphony:scheduler"])
            for name in set(self._workers) - set(running):
                self._workers[name].kill()

    def _boot(self, name: str, scheduler: str) -> subprocess.Popen[bytes]:
        options = ["--name", f"{name}-0", "--no-nanny", "--no-dashboard", "--nthreads", "1", "--memory-limit", "0"]
        command = [sys.executable, "-m", "dask", "worker", scheduler, *options, "--resources", "GPU=1"]
        environment = {**os.environ, "DASK_SYMPHONY__GPU_CLASS": "cpu", "OMP_NUM_THREADS": "1"}
        return subprocess.Popen([*command, "--death-timeout", "30"], stderr=subprocess.DEVNULL, env=environment)

    def __enter__(self) -> Boots:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._end.set()
        self._thread.join()
        for worker in self._workers.values():
            worker.kill()
            worker.wait()


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch) -> Iterator[Aws]:
    for name, value in {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("DASK_SYMPHONY__POLICY", "eager")
    monkeypatch.setenv("DASK_SYMPHONY__WAIT_FOR_GPU", "60s")
    with moto() as aws:
        aws.deploy(ClusterName="vision")
        yield aws


@pytest.fixture
def boots(aws: Aws) -> Iterator[Boots]:
    with Boots(aws) as boots:
        yield boots


def cluster_on(aws: Aws, **options: Any) -> Any:
    return autoscale.EC2GPUCluster(
        "demo",
        **{
            "max_instances": 3,
            "max_usd_per_hour": 99.0,
            "settings": QUICK,
            "region": "us-east-1",
            "endpoint_url": aws.url,
            "host": "127.0.0.1",
            "port": 0,
            "lane_port": 0,
            "interval": "200ms",
            **options,
        },
    )


def outcomes(futures: list[Any]) -> set[str]:
    for future in futures:
        future.result(timeout=60)
    return {future.outcome for future in futures}


@pytest.mark.slow
def test_a_cluster_is_scaled_serves_shrinks_and_leaves_nothing(aws: Aws, boots: Boots) -> None:
    with cluster_on(aws, n_workers=1) as cluster, Client(cluster) as client:
        client.wait_for_workers(1, timeout=60)
        assert client.submit(sum, [1, 2]).result(timeout=30) == 3
        with Serving(client) as serving:
            model = serving.deploy("m", Emulated(2, 0), slo="30s")
            cluster.scale(3)
            client.wait_for_workers(3, timeout=60)
            assert boots.slots() == [0, 1, 2]
            futures = model.map([b"x"] * 500)
            cluster.scale(1)
            wait_until(lambda: boots.slots() == [0], "slots 1 and 2 are empty", 60)
            assert outcomes(futures) == {"ok"}
        tags = next(iter(boots.instances().values()))
        assert tags["symphony:cluster"] == "vision"
        assert tags["symphony:scheduler"] == cluster.scheduler_address
        cluster.scale(9)
        wait_until(lambda: boots.slots() == [0, 1, 2], "three instances: the cap", 60)
    assert boots.slots() == []
    with pytest.raises(OSError, match="Timed out"):
        Client(cluster.scheduler_address, timeout="1s")


@pytest.mark.slow
def test_adapt_follows_the_load_from_zero_and_back(aws: Aws, boots: Boots) -> None:
    with cluster_on(aws) as cluster, Client(cluster) as client, Serving(client) as serving:
        cluster.adapt(minimum=0, maximum=2, interval="250ms", policy=by_the_latest_rate)
        model = serving.deploy("m", Emulated(40, 0), slo="30s", max_batch=4)
        load = Load(model, 50)
        try:
            wait_until(lambda: boots.slots() == [0, 1], "a second instance", 60)
        finally:
            futures = load.end()
        wait_until(lambda: boots.slots() == [], "no instance", 60)
        assert outcomes(futures) == {"ok"}


@pytest.mark.slow
def test_it_is_used_from_a_running_event_loop(aws: Aws, boots: Boots) -> None:
    async def story() -> int:
        async with (
            cluster_on(aws, n_workers=1, asynchronous=True) as cluster,
            Client(cluster, asynchronous=True) as client,
        ):
            await client.wait_for_workers(1, timeout=60)
            return int(await client.submit(sum, [1, 2]))

    assert asyncio.run(story()) == 3
    assert boots.slots() == []


@pytest.mark.slow
def test_instances_join_a_scheduler_that_runs_already_and_leave_it_running(aws: Aws, boots: Boots) -> None:
    with Cluster(0, preload=False) as running:
        with cluster_on(aws, n_workers=1, scheduler=running.address):
            client = running.client()
            client.wait_for_workers(1, timeout=60)
        assert boots.slots() == []
        assert client.scheduler_info()["workers"] == {}
        assert running.scheduler.poll() is None


def test_the_scheduler_ends_when_its_owner_is_killed() -> None:
    program = """
import asyncio, sys
from autoscale.scheduler_process import SchedulerProcess

async def main():
    process = SchedulerProcess(host="127.0.0.1", port=0, lane_port=0, security=None)
    await process.start()
    print(process.pid, flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""
    owner = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    scheduler = int(owner.stdout.readline())
    os.kill(scheduler, 0)
    owner.send_signal(signal.SIGKILL)
    owner.wait()

    def gone() -> bool:
        try:
            os.kill(scheduler, 0)
        except ProcessLookupError:
            return True
        return False

    wait_until(gone, "the scheduler has ended", 20)


def test_the_scheduler_of_a_cluster_with_tls_speaks_tls_only() -> None:
    security = Security.temporary()

    async def story() -> int:
        process = SchedulerProcess(host="127.0.0.1", port=0, lane_port=0, security=security)
        address = await process.start()
        try:
            assert address.startswith("tls://127.0.0.1:")
            with pytest.raises(OSError, match=r"(?i)timed out|closed"):
                await Client(address.replace("tls", "tcp"), asynchronous=True, timeout="1s")
            async with Client(address, security=security, asynchronous=True, timeout="30s") as client:
                return len(client.scheduler_info()["workers"])
        finally:
            await process.stop()

    assert asyncio.run(story()) == 0


def test_an_instance_has_what_the_stack_says_after_an_update(aws: Aws) -> None:
    aws.client("cloudformation").update_stack(
        StackName="demo",
        TemplateBody=TEMPLATE.read_text().replace("pip install --quiet", "pip install --no-cache-dir --quiet"),
        Parameters=aws.parameters(ClusterName="vision"),
        Capabilities=["CAPABILITY_IAM"],
    )
    where = {"region": "us-east-1", "endpoint_url": aws.url}
    outputs = stack_outputs("demo", **where)
    zones = zones_of(outputs["SubnetIds"].split(","), **where)
    template = outputs["LaunchTemplateId"]
    fleet = Ec2Fleet("vision", launch_template=template, types=["g4dn.xlarge"], zones=zones, **where)
    instance = fleet.launch(Launch(0, 1, fleet.offers()[0]))
    ec2 = aws.client("ec2")
    data = ec2.describe_instance_attribute(InstanceId=instance.id, Attribute="userData")["UserData"]["Value"]
    assert "pip install --no-cache-dir --quiet" in base64.b64decode(data).decode()


def test_a_stack_that_does_not_exist_is_named(aws: Aws) -> None:
    with pytest.raises(BadInput, match="the CloudFormation stack 'nowhere' cannot be read"):
        autoscale.EC2GPUCluster(
            "nowhere", max_instances=1, max_usd_per_hour=1, region="us-east-1", endpoint_url=aws.url
        )
