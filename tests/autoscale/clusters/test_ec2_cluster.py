"""``EC2GPUCluster`` on moto: a real scheduler, and a real worker process for each instance that moto has running."""

from __future__ import annotations

import asyncio
import base64
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from distributed import Client
from distributed.security import Security

import autoscale
from autoscale.clusters.ec2_cluster import stack_outputs, zones_of
from autoscale.clusters.scheduler_process import SchedulerProcess, tls_options
from autoscale.fleet.fleet import Launch
from autoscale.fleet.view import Settings
from autoscale.providers.ec2 import Ec2Fleet
from infra.worker import tls
from symphony_dask import Serving
from symphony_dask.backends import Emulated
from symphony_dask.errors import BadInput
from tests.helpers import models
from tests.helpers.aws.account import TEMPLATE, Aws, moto
from tests.helpers.aws.adaptive_load import Load, by_the_latest_rate
from tests.helpers.certificates import cluster_material
from tests.helpers.cluster import START_S, Cluster, wait_until

#: The scheduler may have to compile its engine first, before an instance is launched and its worker starts.
JOIN_S = 2 * START_S

QUICK = Settings(max_instances=3, max_usd_per_hour=99.0, settle_s=0.5, retry_s=0.2, drain_s=5.0)


class Boots:
    """What boot scripts do: a worker for each running instance of the fleet, while it runs.

    secret: of the TLS material, which each instance fetches as it boots.
    """

    def __init__(self, aws: Aws, secret: str | None = None) -> None:
        self._ec2, self._secrets, self._secret = aws.client("ec2"), aws.client("secretsmanager"), secret
        self._directory = tempfile.TemporaryDirectory(prefix="symphony-test-", ignore_cleanup_errors=True)
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
        if self._secret is not None:
            environment |= tls.fetch(self._secret, Path(self._directory.name) / name, client=self._secrets)
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
        self._directory.cleanup()


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
        client.wait_for_workers(1, timeout=JOIN_S)
        assert client.submit(sum, [1, 2]).result(timeout=30) == 3
        with Serving(client) as serving:
            model = serving.deploy("m", Emulated(2, 0), slo="30s")
            cluster.scale(3)
            client.wait_for_workers(3, timeout=JOIN_S)
            assert boots.slots() == [0, 1, 2]
            futures = model.map([b"x"] * 500)
            cluster.scale(1)
            wait_until(lambda: boots.slots() == [0], "slots 1 and 2 are empty", JOIN_S)
            assert outcomes(futures) == {"ok"}
        tags = next(iter(boots.instances().values()))
        assert tags["symphony:cluster"] == "vision"
        assert tags["symphony:scheduler"] == cluster.scheduler_address
        cluster.scale(9)
        wait_until(lambda: boots.slots() == [0, 1, 2], "three instances: the cap", JOIN_S)
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
            wait_until(lambda: boots.slots() == [0, 1], "a second instance", JOIN_S)
        finally:
            futures = load.end()
        wait_until(lambda: boots.slots() == [], "no instance", JOIN_S)
        assert outcomes(futures) == {"ok"}


@pytest.mark.slow
def test_it_is_used_from_a_running_event_loop(aws: Aws, boots: Boots) -> None:
    async def story() -> int:
        async with (
            cluster_on(aws, n_workers=1, asynchronous=True) as cluster,
            Client(cluster, asynchronous=True) as client,
        ):
            await client.wait_for_workers(1, timeout=JOIN_S)
            return int(await client.submit(sum, [1, 2]))

    assert asyncio.run(story()) == 3
    assert boots.slots() == []


@pytest.mark.slow
def test_instances_join_a_scheduler_that_runs_already_and_leave_it_running(aws: Aws, boots: Boots) -> None:
    with Cluster(0, preload=False) as running:
        with cluster_on(aws, n_workers=1, scheduler=running.address):
            client = running.client()
            client.wait_for_workers(1, timeout=JOIN_S)
        assert boots.slots() == []
        assert client.scheduler_info()["workers"] == {}
        assert running.scheduler.poll() is None


def of_the_secret(aws: Aws, directory: Path) -> Security:
    """What a user makes of the stack's secret."""
    aws.client("secretsmanager").create_secret(Name="symphony/tls", SecretString=cluster_material())
    tls.fetch("symphony/tls", directory, client=aws.client("secretsmanager"))
    ca, cert, key = (str(directory / f"{name}.pem") for name in ("ca", "cert", "key"))
    files = {"cert": cert, "key": key}
    pairs = {f"tls_{role}_{part}": files[part] for role in ("scheduler", "client") for part in files}
    return Security(tls_ca_file=ca, require_encryption=True, **pairs)


@pytest.mark.slow
def test_with_tls_everything_from_the_scheduler_to_the_answers_is_encrypted(aws: Aws, tmp_path: Path) -> None:
    security = of_the_secret(aws, tmp_path / "tls")
    with Boots(aws, "symphony/tls") as boots:
        with cluster_on(aws, n_workers=1, security=security) as cluster, Client(cluster) as client:
            assert cluster.scheduler_address.startswith("tls://127.0.0.1:")
            client.wait_for_workers(1, timeout=JOIN_S)
            (instance,) = boots.instances().values()
            assert instance["symphony:scheduler"] == cluster.scheduler_address
            with Serving(client) as serving:
                model = serving.deploy("double", models.double, slo="60s", profile="0.1,0.5", timeout="60s")
                assert [f.result(60).tolist() for f in model.map([np.array([1.0]), np.array([2.0])])] == [[2.0], [4.0]]
                # Too large for the scheduler: it goes from the client to the worker.
                large = np.arange(20_000)
                np.testing.assert_array_equal(model.submit(large).result(60), large * 2)
                cluster.scale(2)
                client.wait_for_workers(2, timeout=JOIN_S)
                assert boots.slots() == [0, 1]
                futures = model.map([np.array([float(i)]) for i in range(500)])
                cluster.scale(1)
                wait_until(lambda: boots.slots() == [0], "slot 1 is empty", JOIN_S)
                assert [f.result(60).tolist() for f in futures] == [[2.0 * i] for i in range(500)]
                assert {f.outcome for f in futures} == {"ok"}
            assert all(address.startswith("tls://") for address in client.scheduler_info()["workers"])
            with pytest.raises(OSError, match=r"(?i)timed out|closed"):
                Client(cluster.scheduler_address.replace("tls", "tcp"), timeout="1s")
            with pytest.raises(OSError, match=r"(?i)timed out|closed|certificate"):
                Client(cluster.scheduler_address, security=Security.temporary(), timeout="1s")
        assert boots.slots() == []
        assert len(boots.instances("terminated")) == 2


def test_a_scheduler_is_not_started_with_half_of_its_tls_material() -> None:
    security = Security(tls_ca_file="ca.pem", tls_client_cert="cert.pem", tls_client_key="key.pem")
    with pytest.raises(BadInput, match="security has no tls_scheduler_cert, tls_scheduler_key"):
        tls_options(security, Path("unused"))


def test_the_scheduler_ends_when_its_owner_is_killed() -> None:
    program = """
import asyncio, sys
from autoscale.clusters.scheduler_process import SchedulerProcess

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
