"""Emulates a model that takes l(b) = alpha*b + beta and computes nothing: load tests and demos without a GPU."""

from __future__ import annotations

import ctypes
import os
import threading
import time
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from symphony_dask.backends.batch import BatchResult
from symphony_dask.engine.latency_profile import DEFAULT_MAX_BATCH, LatencyProfile
from symphony_dask.errors import BadInput
from symphony_dask.units import NS_PER_MS, NS_PER_S
from symphony_dask.wire import batch_codec, codec

_ANSWER = codec.encode(None)

_PR_SET_TIMERSLACK = 29
_TIMER_SLACK_NS = 1_000
_LAST_SLEEP_NS = 500_000
_this_thread = threading.local()


@dataclass(frozen=True)
class Emulated:
    """Answers every sample of a batch of b with None after ``alpha_ms * b + beta_ms``; payloads are not looked at.

    Raises ``BadInput`` unless both are finite and at least 0.
    """

    alpha_ms: float
    beta_ms: float

    def __post_init__(self) -> None:
        self.profile()

    @classmethod
    def parse(cls, text: str) -> Emulated:
        """The model written "alpha,beta" in ms, as in "1.053,5.072"; raises ``BadInput``."""
        try:
            profile = LatencyProfile.parse(text)
        except ValueError as error:
            raise BadInput(str(error)) from None
        return cls(profile.alpha_ms, profile.beta_ms)

    def profile(self, max_batch: int = DEFAULT_MAX_BATCH) -> LatencyProfile:
        """The exact l(b) of this model, which needs no measuring; raises ``BadInput``."""
        try:
            return LatencyProfile(self.alpha_ms, self.beta_ms, max_batch)
        except ValueError as error:
            raise BadInput(str(error)) from None

    def run(self, blob: batch_codec.Blob, sizes: npt.NDArray[np.int64]) -> BatchResult:
        """See ``backends.Runner.run``."""
        n = len(sizes)
        sleep_until(time.perf_counter_ns() + round((self.alpha_ms * n + self.beta_ms) * NS_PER_MS))
        return BatchResult(memoryview(_ANSWER * n), np.full(n, len(_ANSWER), np.int64))


def sleep_until(end_ns: int) -> None:
    """Returns when ``time.perf_counter_ns`` has reached ``end_ns``; does not sleep at all if it already has."""
    _wake_on_time()
    # The longer a sleep, the later it wakes, as the CPU falls into deeper idle states: a short one comes last.
    while (left_ns := end_ns - time.perf_counter_ns()) > 0:
        time.sleep((left_ns - _LAST_SLEEP_NS if left_ns > 2 * _LAST_SLEEP_NS else left_ns) / NS_PER_S)


def _wake_on_time() -> None:
    """Has Linux wake this thread within 1 us of the asked time, not the usual 50 us, and ahead of ordinary threads.

    Nothing on other systems; the latter only with the right to, which root has on most machines.
    """
    if getattr(_this_thread, "on_time", False):
        return
    _this_thread.on_time = True
    try:
        ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, ctypes.c_ulong(_TIMER_SLACK_NS), 0, 0, 0)
    except (OSError, AttributeError, TypeError):
        pass
    try:
        # A GPU computes on whatever the CPUs do, so its stand-in wakes before other threads, where that is allowed.
        # What this thread starts is to be as any other.
        os.sched_setscheduler(0, os.SCHED_RR | os.SCHED_RESET_ON_FORK, os.sched_param(1))
    except (OSError, AttributeError):
        pass
