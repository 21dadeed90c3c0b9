"""Says what is in flight, queued and answered on the shared cluster of two workers, and fills all its places."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from symphony_dask.client.model import Model
from symphony_dask.client.serving import Serving
from tests.helpers.cluster import wait_until

#: ``serving.deploy`` under the test's name (the fixture ``deploy``).
Deploy = Callable[..., Model]

#: Seconds that a test waits for an answer.
LIMIT_S = 30

#: A profile with which a model answers at once.
QUICK = "0.1,0.5"

#: Batches leave as soon as a GPU is free.
EAGER = {"DASK_SYMPHONY__POLICY": "eager"}

#: A model of one request a batch fills so many places before its requests queue: two workers, each with a batch that
#: runs and one that waits beside it.
PLACES = 4


def queued(serving: Serving, model: Model) -> int:
    return int(serving.status()["models"][model.name]["queued"])


def in_flight(serving: Serving) -> int:
    return sum(w["in_flight"] for w in serving.status()["workers"].values())


def outcomes(serving: Serving, model: Model) -> dict[str, int]:
    counts: dict[str, int] = serving.status()["models"][model.name]["outcomes"]
    return {name: n for name, n in counts.items() if n}


def occupy(serving: Serving, model: Model) -> list[Any]:
    """Requests [0.0], [1.0], ... of ``model``, which waits for its gate, in every place."""
    futures = []
    for i in range(PLACES):
        futures.append(model.submit(np.array([float(i)])))
        wait_until(lambda n=i + 1: in_flight(serving) == n, f"{i + 1} batches at the workers")  # type: ignore[misc]
    return futures
