"""Loads a cluster that adapts, and a policy that follows the latest rate, so that a test is short."""

from __future__ import annotations

import math
import threading

from autoscale.policies.registry import Fleet, Memory, Settings, Target
from autoscale.policies.signals import Signals
from symphony_dask.client.future import InferenceFuture
from symphony_dask.client.model import Model


class Load:
    """Requests at ``rate_hz``, which may change, from a thread of its own."""

    def __init__(self, model: Model, rate_hz: float) -> None:
        self.rate_hz = rate_hz
        self.futures: list[InferenceFuture] = []
        self._model = model
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        due, step = 0.0, 0.02
        while not self._end.wait(step):
            due += self.rate_hz * step
            self.futures += self._model.map([b"x"] * int(due))
            due -= int(due)

    def end(self) -> list[InferenceFuture]:
        self._end.set()
        self._thread.join()
        return self.futures


def by_the_latest_rate(settings: Settings, memory: Memory, signals: Signals, fleet: Fleet) -> tuple[Memory, Target]:
    """GPUs for the requests of the last 10 s, and for those that wait; without a window, so that a test is short."""
    work = sum(m.rate_hz[10.0] * max(m.gpu_seconds_per_request.values(), default=0.0) * 1.1 for m in signals.models)
    waiting = any(m.queued for m in signals.models) and not signals.gpus
    return memory, Target(max(math.ceil(work - 0.05), int(waiting)), f"{work:.2f} GPUs of work")
