"""Dask's settings that judge by tasks, and serving."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from symphony_dask.backends.emulated import Emulated
from symphony_dask.client.serving import Serving
from symphony_dask.plugin.use import Use
from tests.helpers import models
from tests.helpers.cluster import Cluster, wait_until
from tests.helpers.models import Gate

EAGER = {"DASK_SYMPHONY__POLICY": "eager"}

#: Of an idle scheduler, s.
IDLE_S = 3.0


def test_a_scheduler_that_answers_requests_is_not_idle_and_one_that_has_none_is() -> None:
    with Cluster(1, settings=EAGER) as cluster, Serving(cluster.client()) as serving:
        model = serving.deploy("steady", Emulated(0.1, 1.0), slo="30s")
        # As the setting distributed.scheduler.idle-timeout does, under which a slow machine does not get so far.
        cluster.client().run_on_scheduler(_set_idle_timeout, IDLE_S)
        end = time.monotonic() + 2.5 * IDLE_S
        while time.monotonic() < end:
            model.submit(np.zeros(2)).result(30)
            time.sleep(0.2)
        assert cluster.scheduler.poll() is None
        last = time.monotonic()
        wait_until(lambda: cluster.scheduler.poll() is not None, "an idle scheduler to close", 30)
        assert time.monotonic() - last > IDLE_S - 0.5


def test_a_worker_that_dask_retires_ends_its_batches_first(gate: Gate) -> None:
    with Cluster(2, settings=EAGER) as cluster, Serving(cluster.client()) as serving:
        wait_until(lambda: len(serving.status()["workers"]) == 2, "two workers on the lane", 60)
        model = serving.deploy("gated", gate.model(models.double), slo="60s", profile="0.1,0.5", max_batch=1)
        wait_until(lambda: sum(w["serving"] or 0 for w in serving.status()["workers"].values()) == 2, "both to serve")
        future = model.submit(np.array([3.0]))
        busy = wait_until(
            lambda: [a for a, w in serving.status()["workers"].items() if w["in_flight"]], "a batch in flight"
        )
        client = cluster.client()
        closable = client.run_on_scheduler(lambda dask_scheduler: dask_scheduler.workers_to_close(n=2))
        assert not set(busy) & set(closable)
        retiring = client.sync(lambda: _started(client.scheduler.retire_workers(workers=busy, close_workers=True)))
        wait_until(lambda: list(serving.status()["drains"]) == busy, "its drain")
        assert not future.done()
        gate.open()
        assert future.result(30).tolist() == [6.0]
        wait_until(lambda: list(serving.status()["workers"]) != busy and not serving.status()["drains"], "its end")
        wait_until(lambda: set(client.scheduler_info()["workers"]).isdisjoint(busy), "Dask to know")
        assert model.submit(np.array([4.0])).result(30).tolist() == [8.0]
        assert retiring is not None


def _set_idle_since(idle_since: float, dask_scheduler: Any) -> None:
    dask_scheduler.idle_since = idle_since


def _idle_since(dask_scheduler: Any) -> float:
    # None: it was given something to do, which is what counts from now on.
    return dask_scheduler.check_idle() or time.time()


def _set_idle_timeout(limit_s: float, dask_scheduler: Any) -> None:
    dask_scheduler.idle_timeout = limit_s


async def _started(coroutine: Any) -> Any:
    return asyncio.ensure_future(coroutine)


class Fake:
    """A dispatcher that was last used when the test says."""

    def __init__(self) -> None:
        self.busy, self.asked_ns, self.used = False, 0, {"tcp://a": 0}
        self.workers = {"tcp://a": None}

    def is_busy(self) -> bool:
        return self.busy

    def used_ns(self, address: str) -> int:
        return self.used[address]


@pytest.fixture
def made() -> tuple[Use, Any, Any]:
    scheduler: Any = SimpleNamespace(idle_since=1000.0, no_workers_timeout=None, unrunnable={})
    dispatcher: Any = Fake()
    drains: Any = SimpleNamespace(is_busy=lambda address: False)
    use = Use(
        scheduler,
        dispatcher,
        drains,
        is_loading=lambda address: False,
        is_graph_task=lambda key: key == "held",
        admit=lambda address: None,
    )
    return use, scheduler, dispatcher


def test_idleness_counts_from_the_last_request(made: tuple[Use, Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    use, scheduler, dispatcher = made
    monkeypatch.setattr("symphony_dask.plugin.use.time", lambda: 2000.0)
    monkeypatch.setattr("symphony_dask.plugin.use.now_ns", lambda: 90 * 10**9)
    use.look()
    assert scheduler.idle_since == 1000.0
    dispatcher.asked_ns = 80 * 10**9
    use.look()
    assert scheduler.idle_since == 1990.0
    dispatcher.busy = True
    use.look()
    assert scheduler.idle_since == 2000.0
    scheduler.idle_since = None  # it has tasks, or is not idle yet
    use.look()
    assert scheduler.idle_since is None


def test_time_in_which_the_loop_stood_still_is_not_idle_time(
    made: tuple[Use, Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    use, scheduler, _ = made
    monkeypatch.setattr("symphony_dask.plugin.use.time", lambda: 1050.0)
    clock = iter([200.0, 200.1, 240.3])
    monkeypatch.setattr("symphony_dask.plugin.use.monotonic", lambda: next(clock))
    scheduler.idle_since = 1049.0
    use.look()
    scheduler.idle_since = 1001.0
    use.look()
    assert scheduler.idle_since == 1001.0
    use.look()
    assert scheduler.idle_since == pytest.approx(1041.0)


def test_a_deployment_counts_as_use(cluster: Cluster) -> None:
    client = cluster.client()
    with Serving(client) as serving:
        client.run_on_scheduler(_set_idle_since, 1.0)
        serving.deploy("used", Emulated(0.1, 1.0), slo="30s")
        serving.undeploy("used")
        assert time.time() - client.run_on_scheduler(_idle_since) < 30.0


def test_a_worker_is_kept_for_a_minute_after_it_served(
    made: tuple[Use, Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    use, _, dispatcher = made
    monkeypatch.setattr("symphony_dask.plugin.use.now_ns", lambda: 100 * 10**9)
    assert [use.serves("tcp://a"), use.serves("tcp://none")] == [False, False]
    dispatcher.used["tcp://a"] = 41 * 10**9
    assert use.serves("tcp://a")
    dispatcher.used["tcp://a"] = 39 * 10**9
    assert not use.serves("tcp://a")


def test_held_tasks_wait_for_a_batch_and_not_for_a_worker(
    made: tuple[Use, Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    use, scheduler, _ = made
    monkeypatch.setattr("symphony_dask.plugin.use.monotonic", lambda: 100.0)
    held, plain, fresh = _Task("held"), _Task("plain"), _Task("held")
    scheduler.unrunnable = {held: 70.0, plain: 75.0, fresh: 90.0}
    scheduler.no_workers_timeout = 40.0
    use.look()
    assert list(scheduler.unrunnable.items()) == [(plain, 75.0), (fresh, 90.0), (held, 100.0)]


class _Task:
    def __init__(self, key: str) -> None:
        self.key = key
