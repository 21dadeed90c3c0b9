"""Submits requests at a steady rate from this process, and keeps what became of each as a user sees it."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from symphony_dask.client.future import InferenceFuture
from symphony_dask.client.serving import Serving
from symphony_dask.clock import now_ns
from symphony_dask.errors import SymphonyError
from symphony_dask.units import NS_PER_S


@dataclass(frozen=True)
class Load:
    """What is asked of a model: ``numbers`` is the length of a sample."""

    model: str
    rate_hz: float
    slo_ns: int
    numbers: int = 1


@dataclass
class Sent:
    """A request, and how it ended; times are ``clock.now_ns``.

    ended_ns: when its future was done, 0 while it is not; ends: how often it was told so. error: the name of the
    exception's class, "" for an answer; right: whether the answer was. number: the request's on its connection.
    """

    sample: int
    load: Load
    sent_ns: int
    future: InferenceFuture | None = None
    ended_ns: int = 0
    ends: int = 0
    error: str = ""
    text: str = ""
    outcome: str = ""
    right: bool = True

    @property
    def good(self) -> bool:
        """Answered, rightly and in time by this process's clock."""
        return bool(self.ended_ns) and not self.error and self.right and self.took_ns <= self.load.slo_ns

    @property
    def took_ns(self) -> int:
        return self.ended_ns - self.sent_ns


@dataclass
class Traffic:
    """Offers ``loads`` from a thread of its own, open loop, until ``stop``.

    serving: whose connection is used; may be replaced while it goes on. first_sample: samples are numbered from here.
    refused: requests that could not be sent, as there was no connection.
    """

    serving: Serving
    loads: Sequence[Load]
    first_sample: int = 0
    seed: int = 0
    keep: bool = True
    on_end: Callable[[Sent], None] | None = None
    sent: list[Sent] = field(default_factory=list)
    refused: int = 0
    submitted: int = 0

    def __post_init__(self) -> None:
        self._going = threading.Event()
        self._going.set()
        self._thread = threading.Thread(target=self._offer, name="traffic", daemon=True)
        self._factor = 1.0
        self._asking: threading.Thread | None = None

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Offer nothing more; what was sent may still be under way."""
        self._going.clear()
        self._thread.join(30)

    def burst(self, factor: float) -> None:
        """From now on, so many times the rates."""
        self._factor = factor

    def good_share(self, model: str, begin_ns: int, end_ns: int) -> float:
        """Share of a model's requests sent in a stretch of time that were answered in time; 0 if there were none."""
        there = [sent for sent in list(self.sent) if sent.load.model == model and begin_ns <= sent.sent_ns < end_ns]
        return sum(sent.good for sent in there) / len(there) if there else 0.0

    def _offer(self) -> None:
        draw = random.Random(self.seed)
        sample = self.first_sample
        due = [(time.monotonic() + draw.expovariate(load.rate_hz), k) for k, load in enumerate(self.loads)]
        while self._going.is_set():
            at, k = min(due)
            wait_s = at - time.monotonic()
            if wait_s > 0:
                time.sleep(min(wait_s, 0.05))
                continue
            load = self.loads[k]
            due[k] = (max(at, time.monotonic() - 1) + draw.expovariate(load.rate_hz * self._factor), k)
            self._send(load, sample)
            sample += 1

    def _send(self, load: Load, sample: int) -> None:
        sent = Sent(sample, load, now_ns())
        try:
            model = self.serving.model(load.model)
            sent.future = model.submit(np.full(load.numbers, float(sample)))  # type: ignore[union-attr]
        except SymphonyError:
            self.refused += 1
            self._reconnect()
            return
        self.submitted += 1
        if self.keep:
            self.sent.append(sent)
        sent.future.add_done_callback(lambda future: self._ended(sent, future))

    def _reconnect(self) -> None:
        """Asking anything of a cluster opens the lane again; here, however long that takes, others go on."""
        if self._asking is None or not self._asking.is_alive():
            self._asking = threading.Thread(target=_ask, args=(self.serving,), daemon=True)
            self._asking.start()

    def _ended(self, sent: Sent, future: Any) -> None:
        sent.ends += 1
        error = future.exception()
        sent.outcome = future.outcome
        if error is None:
            answer = future.result()
            whole = getattr(answer, "shape", None) == (sent.load.numbers,)
            sent.right = whole and bool((answer == 2.0 * sent.sample).all())
        else:
            sent.error, sent.text = type(error).__name__, str(error)
        sent.ended_ns = now_ns()
        if self.on_end is not None:
            self.on_end(sent)


def _ask(serving: Serving) -> None:
    try:
        serving.status()
    except Exception:  # whatever it is, it is tried again
        time.sleep(0.1)


def wait_for_ends(sent: Sequence[Sent], limit_s: float) -> list[Sent]:
    """Wait until all of these have ended, at most so long; returns those that have not."""
    end = now_ns() + round(limit_s * NS_PER_S)
    while (left := [s for s in sent if not s.ended_ns]) and now_ns() < end:
        time.sleep(0.005)
    return left
