"""What tests of models in Dask graphs share."""

from __future__ import annotations

from typing import Any

import numpy as np
from distributed import Client

from symphony_dask.client.model import Model
from symphony_dask.client.serving import Serving
from tests.helpers.cluster import wait_until
from tests.helpers.serving import EAGER, outcomes

#: Dask checks its own invariants after every event.
CHECKED = {**EAGER, "DASK_DISTRIBUTED__SCHEDULER__VALIDATE": "true", "DASK_DISTRIBUTED__WORKER__VALIDATE": "true"}


def sample(i: float) -> Any:
    return np.array([float(i)])


def expect(serving: Serving, model: Model, ended: dict[str, int]) -> None:
    """A result comes over Dask's connections, its outcome over the lane: either may be first."""
    wait_until(lambda: outcomes(serving, model) == ended, f"outcomes {ended}")


def threads_of(client: Client) -> set[tuple[int, int]]:
    """Of each worker: how many tasks Dask runs at once there, and how many held ones are there."""

    def look(dask_worker: Any) -> tuple[int, int]:
        return dask_worker.state.nthreads, len(dask_worker.plugins["symphony"].rendezvous._lent)

    return set(client.run(look).values())
