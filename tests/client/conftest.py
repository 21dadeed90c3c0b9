from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from distributed import Client

from symphony_dask.client import retry
from symphony_dask.client.model import Model
from symphony_dask.client.serving import Serving
from symphony_dask.engine.latency_profile import LatencyProfile
from tests.helpers import models
from tests.helpers.cluster import Cluster
from tests.helpers.sent_requests import MS, Sent
from tests.helpers.serving import LIMIT_S, QUICK


@pytest.fixture
def sent() -> Sent:
    return Sent()


@pytest.fixture
def model(sent: Sent) -> Model:
    return Model("m", 1, 100 * MS, {"cpu": LatencyProfile(1.0, 5.0, 8)}, None, sent)  # type: ignore[arg-type]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A clock of one entry, ns, which only the test moves."""
    clock = [0]
    for module in ("deadline", "model", "retry"):
        monkeypatch.setattr(f"symphony_dask.client.{module}.now_ns", lambda: clock[0])
    monkeypatch.setattr(retry.random, "uniform", lambda low, high: 1.0)
    return clock


@pytest.fixture
def served(cluster: Cluster) -> Callable[..., Any]:
    """Runs a coroutine function with an asynchronous ``Serving`` and a model, of one request a batch."""

    def run(main: Callable[[Serving, Model], Any], model: Any = models.double) -> Any:
        async def connected() -> Any:
            async with Client(cluster.address, asynchronous=True, set_as_default=False) as client:
                serving = await Serving(client)
                deployed = await serving.deploy("served", model, slo="60s", profile=QUICK, max_batch=1)
                try:
                    return await asyncio.wait_for(main(serving, deployed), LIMIT_S)
                finally:
                    await serving.undeploy("served")
                    await serving.close()

        return asyncio.run(connected())

    return run
