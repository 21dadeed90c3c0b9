"""``cluster.adapt(Adaptive=autoscale.Adaptive)``: its choices on a cluster of numbers, and on a real LocalCluster."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Generator, Hashable, Iterator
from types import SimpleNamespace
from typing import Any

import dask.config
import pytest
from distributed import LocalCluster

import autoscale
from autoscale.policies.registry import Fleet, Memory, Settings, Target
from autoscale.policies.signals import Signals
from symphony_dask import Serving
from symphony_dask.backends import Emulated
from symphony_dask.errors import BadInput
from tests.helpers.aws.adaptive_load import Load, by_the_latest_rate
from tests.helpers.cluster import wait_until


class Scheduler:
    """The plugin's RPCs, answered from ``wanted`` and a list of workers."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self.states: dict[str, str] = {}
        self.loading: list[str] = []
        self.plugin = True

    async def get_metadata(self, keys: list[str], default: Any) -> Any:
        return self.plugin or default

    async def symphony_status(self) -> Any:
        return {"ok": {"loading": self.loading}}

    async def symphony_signals(self) -> Any:
        gpus = [
            {
                "gpu": rank,
                "rank": rank,
                "gpu_class": "cpu",
                "worker": f"tcp://{name}",
                "busy": 0.0,
                "draining": f"tcp://{name}" in self.states,
            }
            for rank, name in enumerate(self._cluster.joined)
        ]
        return {"ok": {"time_s": time.monotonic(), "models": [], "gpus": gpus}}

    async def symphony_drain(self, workers: list[str], why: str) -> Any:
        self.states.update(dict.fromkeys(workers, "draining"))
        return {"ok": dict.fromkeys(workers, 1)}

    async def symphony_undrain(self, workers: list[str]) -> Any:
        for worker in workers:
            del self.states[worker]
        return {"ok": workers}

    async def symphony_retire(self, workers: list[str], force: bool, wait_s: float) -> Any:
        if force:
            self.states.update(dict.fromkeys(workers, "retired"))
        return {"ok": {worker: self.states[worker] for worker in workers if worker in self.states}}


class Cluster:
    """What ``Adaptive`` needs of a Dask cluster. Workers are named "0", "1", ...; ``joined`` have joined, by rank."""

    def __init__(self, *joined: str, missing: tuple[str, ...] = ()) -> None:
        self.joined = list(joined)
        self.plan: set[Any] = {*joined, *missing}
        self.workers: dict[Any, Any] = {}
        self.scheduler_comm = Scheduler(self)
        self.scaled: list[int] = []
        self.removed: list[Any] = []
        self.worker_spec: dict[str, Any] = {}

    @property
    def requested(self) -> set[Any]:
        return set(self.plan)

    @property
    def observed(self) -> set[str]:
        return set(self.joined)

    @property
    def scheduler_info(self) -> dict[str, Any]:
        return {"workers": {f"tcp://{name}": {"name": name} for name in self.joined}}

    def scale(self, n: int) -> None:
        self.scaled.append(n)

    async def scale_down(self, names: list[str]) -> None:
        self.removed += sorted(names)
        self.plan -= set(names)
        self.joined = [name for name in self.joined if name not in names]


def adaptive(cluster: Cluster, wanted: list[int], **options: Any) -> Any:
    """One whose policy asks for the GPUs in ``wanted``, one number a look, the last for ever."""

    def policy(settings: Settings, memory: Memory, signals: Signals, fleet: Fleet) -> tuple[Memory, Target]:
        fleets.append(fleet)
        return memory, Target(wanted.pop(0) if len(wanted) > 1 else wanted[0], "as told")

    fleets: list[Fleet] = []
    options = {"drain_deadline": "50ms", "maximum": 8, **options}
    made = autoscale.Adaptive(cluster, interval=0, policy=policy, **options)
    made.fleets = fleets
    return made


def looks(made: Any, n: int, *, wait_for_drains: bool = False) -> None:
    async def look() -> None:
        for _ in range(n):
            await made.adapt()
        if wait_for_drains:
            await asyncio.gather(*made._retiring)

    asyncio.run(look())


def test_more_wanted_than_planned_scales_up() -> None:
    cluster = Cluster("0", "1", missing=("2",))
    made = adaptive(cluster, [5])
    looks(made, 1)
    assert cluster.scaled == [5]
    assert made.fleets == [Fleet(ready=2, booting=1, draining=0)]


def test_the_maximum_and_the_minimum_are_kept() -> None:
    cluster = Cluster("0")
    looks(adaptive(cluster, [99], maximum=3), 1)
    assert cluster.scaled == [3]
    cluster = Cluster()
    looks(adaptive(cluster, [0], minimum=2), 1)
    assert cluster.scaled == [2]


def test_workers_of_four_gpus_are_counted_as_such() -> None:
    cluster = Cluster()
    made = adaptive(cluster, [9], gpus_per_worker=4)
    looks(made, 1)
    assert cluster.scaled == [3]


def test_those_that_have_not_joined_go_first_then_the_highest_ranks() -> None:
    cluster = Cluster("a", "b", "c", "d", missing=("e",))
    looks(adaptive(cluster, [2]), 1, wait_for_drains=True)
    assert cluster.removed[0] == "e"
    assert sorted(cluster.removed[1:]) == ["c", "d"]


def test_a_victim_is_removed_only_when_it_is_retired() -> None:
    cluster = Cluster("a", "b")
    made = adaptive(cluster, [1], drain_deadline="10s")

    async def story() -> None:
        await made.adapt()
        await asyncio.sleep(0.3)  # several looks of the drain at what is in flight
        assert cluster.removed == []
        await made.adapt()  # it counts as away: nobody else has to go
        assert cluster.scheduler_comm.states == {"tcp://b": "draining"}
        cluster.scheduler_comm.states["tcp://b"] = "retired"
        await asyncio.wait_for(asyncio.gather(*made._retiring), 5)
        assert cluster.removed == ["b"]

    asyncio.run(story())


def test_a_draining_worker_is_kept_when_it_is_wanted_again() -> None:
    cluster = Cluster("a", "b")
    made = adaptive(cluster, [1, 2], drain_deadline="10s")

    async def story() -> None:
        await made.adapt()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        await made.adapt()
        await asyncio.wait_for(asyncio.gather(*made._retiring), 5)

    asyncio.run(story())
    assert cluster.removed == []
    assert cluster.scaled == []
    assert cluster.scheduler_comm.states == {}


def test_fewer_must_be_wanted_wait_count_times_in_a_row() -> None:
    cluster = Cluster("a", "b")
    made = adaptive(cluster, [1, 1, 2, 1, 1, 1], wait_count=3)
    looks(made, 5)
    assert cluster.scheduler_comm.states == {}
    looks(made, 1, wait_for_drains=True)
    assert cluster.removed == ["b"]


def test_a_worker_that_does_not_join_is_given_up_and_another_asked_for() -> None:
    cluster = Cluster("a", missing=("b",))
    made = adaptive(cluster, [2], join_timeout="1us")
    looks(made, 1)
    assert cluster.removed == []
    looks(made, 2)
    assert cluster.removed == ["b"]
    assert cluster.scaled == [2]


def test_workers_of_one_job_go_together_or_not_at_all() -> None:
    cluster = Cluster("x-0", "x-1", "y-0", "y-1")
    cluster.worker_spec = {"x": {"group": ["-0", "-1"]}, "y": {"group": ["-0", "-1"]}}
    looks(adaptive(cluster, [3]), 1, wait_for_drains=True)
    assert cluster.removed == []
    looks(adaptive(cluster, [2]), 1, wait_for_drains=True)
    assert cluster.removed == ["y-0", "y-1"]


class Worker:
    """What a cluster keeps of a worker; ``proc`` as ``SSHCluster``'s."""

    def __init__(self, name: Hashable) -> None:
        self.name = name
        self.proc = SimpleNamespace(exit_status=None)


def test_workers_that_the_clusters_objects_know_by_other_names_are_the_planned_ones() -> None:
    """As those of dask-cloudprovider's virtual machines."""
    cluster = Cluster("vm-a", "vm-b")
    cluster.plan, cluster.workers = {0, 1}, {0: Worker("vm-b"), 1: Worker("vm-a")}
    made = adaptive(cluster, [1], join_timeout="1us")
    looks(made, 2, wait_for_drains=True)
    assert made.fleets[0] == Fleet(ready=2, booting=0, draining=0)
    assert cluster.removed == [0]  # vm-b, which has the higher rank


class Pool(Cluster):
    """As SSHCluster: a list of workers and no more, whose own names its plan does not know."""

    new_spec = None

    def __init__(self, *joined: str) -> None:
        super().__init__(*joined)
        self.plan = set(range(len(joined)))
        self.workers = {i: Worker(i) for i in self.plan}
        self.worker_spec = {i: f"host {i}" for i in self.plan}

    def __await__(self) -> Generator[Any, None, Pool]:
        self.plan = set(self.worker_spec)
        yield from asyncio.sleep(0).__await__()
        return self


def test_of_a_list_of_hosts_that_is_let_go_whose_process_ends_and_comes_back_when_it_is_wanted() -> None:
    cluster = Pool("tcp-x", "tcp-y")
    made = adaptive(cluster, [1, 1, 1, 2], drain_deadline="10s", join_timeout="1us")

    async def story() -> None:
        await made.adapt()
        await asyncio.sleep(0.1)
        assert cluster.scheduler_comm.states == {"tcp://tcp-y": "draining"}
        assert cluster.removed == []
        cluster.scheduler_comm.states["tcp://tcp-y"] = "retired"
        await asyncio.sleep(0.5)
        await made.adapt()
        assert cluster.removed == []  # nobody knows yet which of the two it is
        cluster.joined.remove("tcp-y")
        cluster.workers[0].proc.exit_status = 0
        await asyncio.wait_for(asyncio.gather(*made._retiring), 5)
        assert cluster.removed == [0]
        del cluster.worker_spec[0], cluster.workers[0]
        await made.adapt()
        assert cluster.worker_spec == {1: "host 1"}
        await made.adapt()
        assert cluster.worker_spec == {0: "host 0", 1: "host 1"}

    asyncio.run(story())
    assert cluster.scaled == []
    assert cluster.removed == [0]


def test_a_list_of_hosts_that_are_all_there_is_not_scaled_beyond() -> None:
    cluster = Pool("tcp-x")
    made = adaptive(cluster, [3])
    looks(made, 2)
    assert made.fleets[0] == Fleet(ready=1, booting=0, draining=0)
    assert (cluster.scaled, cluster.removed) == ([], [])


def test_a_deployment_that_waits_for_a_first_worker_gets_one() -> None:
    cluster = Cluster()
    cluster.scheduler_comm.loading = ["resnet"]
    looks(adaptive(cluster, [0]), 1)
    assert cluster.scaled == [1]


def test_without_the_plugin_the_cluster_stays_as_it_is() -> None:
    cluster = Cluster("a")
    cluster.scheduler_comm.plugin = False
    looks(adaptive(cluster, [5]), 1)
    assert (cluster.scaled, cluster.removed) == ([], [])


def test_a_policy_that_does_not_exist_is_refused() -> None:
    with pytest.raises(BadInput, match="policy 'lucky' is unknown: choose one of"):
        autoscale.Adaptive(Cluster(), interval=0, policy="lucky")


@pytest.fixture
def local() -> Iterator[LocalCluster]:
    settings = {"symphony.gpu-class": "cpu", "symphony.policy": "eager", "symphony.wait-for-gpu": "60s"}
    workers = {"processes": True, "threads_per_worker": 1, "resources": {"GPU": 1}, "memory_limit": 0}
    with (
        dask.config.set(settings),
        LocalCluster(n_workers=0, host="127.0.0.1", dashboard_address=None, **workers) as cluster,
    ):
        yield cluster


@pytest.mark.slow
def test_a_local_cluster_follows_its_load_and_no_request_fails(local: LocalCluster) -> None:
    """One GPU serves 25 requests a second; the load is 10, then 75, then 10, then nothing, then 10 again."""
    with local.get_client() as client, Serving(client) as serving:
        local.adapt(
            Adaptive=autoscale.Adaptive, minimum=0, maximum=4, interval="250ms", wait_count=2, policy=by_the_latest_rate
        )
        model = serving.deploy("m", Emulated(40, 0), slo="30s", max_batch=4, timeout="60s")

        def workers() -> int:
            return len(local.scheduler_info["workers"])

        load = Load(model, 10)
        try:
            wait_until(lambda: workers() == 1, "one worker", 60)
            load.rate_hz = 75
            wait_until(lambda: workers() >= 3, "three workers", 60)
            load.rate_hz = 10
            wait_until(lambda: workers() == 1, "one worker again", 60)
            load.rate_hz = 0
            wait_until(lambda: workers() == 0, "none", 60)
            load.rate_hz = 10
            wait_until(lambda: workers() == 1, "one worker once more", 60)
        finally:
            futures = load.end()
        assert len(futures) > 300
        for future in futures:
            future.result(timeout=60)
        assert {future.outcome for future in futures} == {"ok"}


def test_dask_settings_without_a_bound_are_taken() -> None:
    cluster = Cluster("a")
    looks(adaptive(cluster, [3], maximum=math.inf), 1)
    assert cluster.scaled == [3]
