"""An open-loop client in a thread, and a fleet of real worker processes, for the live tests."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from autoscale.fleet.act import Step, step
from autoscale.fleet.scheduler_view import DaskCluster
from autoscale.fleet.view import Memory, Settings
from autoscale.providers.local import LocalFleet
from symphony_dask.client.model import Model
from symphony_dask.errors import RequestError
from tests.helpers.cluster import Cluster, wait_until

#: A process is listed at once, and joins in seconds.
LOCAL = Settings(max_instances=6, max_usd_per_hour=6.0, settle_s=2.0, retry_s=1.0, join_timeout_s=60.0, drain_s=20.0)


class Load:
    """Submits to ``model`` at ``rate_hz``, which may be changed, until it is stopped; a context manager."""

    def __init__(self, model: Model, rate_hz: float) -> None:
        self.rate_hz = rate_hz
        self.futures: list[Any] = []
        self._model = model
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Load:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        due = time.monotonic()
        while not self._stopped.is_set():
            if self.rate_hz <= 0:
                due = time.monotonic() + 0.01
            while due <= time.monotonic():
                self.futures.append(self._model.submit(b"x"))
                due += 1 / self.rate_hz if self.rate_hz > 0 else 0.01
            self._stopped.wait(0.005)


def outcomes(futures: list[Any], limit_s: float = 60.0) -> Counter[str]:
    """How requests ended: "ok", "late", or the name of their error."""
    found: Counter[str] = Counter()
    for future in futures:
        try:
            future.result(limit_s)
            found[future.outcome] += 1
        except RequestError as error:
            found[type(error).__name__] += 1
    return found


class Live:
    """A fleet of worker processes on a test's cluster, taken to targets step by step."""

    def __init__(self, cluster: Cluster, folder: Path, settings: Settings = LOCAL) -> None:
        self.scheduler = DaskCluster(cluster.address)
        environment = {"PYTHONPATH": str(Path(__file__).parents[3]), "DASK_SYMPHONY__GPU_CLASS": "cpu"}
        self.fleet = LocalFleet("live", cluster.address, usd_per_hour=1.0, environment=environment, folder=folder)
        self.settings = settings
        self.memory = Memory()
        self.actions: list[str] = []

    def step(self, gpus: int) -> Step:
        done = step(self.settings, self.fleet, self.scheduler, self.memory, gpus)
        self.memory = done.memory
        self.actions += done.actions
        assert done.faults == []
        return done

    def reach(self, gpus: int, limit_s: float = 60.0) -> None:
        """Step until so many GPUs serve and nothing else is there."""

        def reached() -> bool:
            done = self.step(gpus)
            return done.gpus("joined") == gpus and sum(i.live for i in done.instances) == gpus

        wait_until(reached, f"a fleet of {gpus}", limit_s)

    def close(self) -> None:
        self.fleet.terminate([i.id for i in self.fleet.list()])
        wait_until(lambda: not [i for i in self.fleet.list() if i.live], "the end of all workers", 30)
        self.scheduler.close()


@contextmanager
def live(cluster: Cluster, folder: Path, settings: Settings = LOCAL) -> Iterator[Live]:
    found = Live(cluster, folder, settings)
    try:
        yield found
    finally:
        found.close()
