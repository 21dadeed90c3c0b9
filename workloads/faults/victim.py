"""Submits requests to one model at a steady rate, as a client that others stop and kill."""

from __future__ import annotations

import time

import numpy as np
from distributed import Client

from symphony_dask.client.serving import Serving
from symphony_dask.errors import SymphonyError

#: Requests a second.
RATE_HZ = 20.0

#: Sample numbers of this client; those of others are positive.
_SAMPLE = np.array([-1.0])


def main(scheduler: str, name: str) -> None:
    with Client(scheduler, set_as_default=False, timeout=60) as client, Serving(client) as serving:
        model = serving.find(name)
        while True:
            try:
                model.submit(_SAMPLE)
            except SymphonyError:
                serving.status()  # which connects anew
            time.sleep(1 / RATE_HZ)
