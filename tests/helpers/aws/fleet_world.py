"""A cloud and a scheduler under a clock of their own, for the controller's tests: what they do wrong is told them."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from autoscale.fleet.fleet import (
    ENDED,
    LAUNCHING,
    RUNNING,
    STOPPING,
    Instance,
    InstanceType,
    Launch,
    NoCapacity,
    Offer,
    SlotEnded,
    SlotTaken,
    Throttled,
    Unanswered,
)
from autoscale.fleet.view import Draining, Intent, View, Worker
from symphony_dask.control.launch_ledger import Ledger

SMALL = Offer("small", "a", "on-demand", 1, 1.0)
SMALL_B = Offer("small", "b", "on-demand", 1, 1.0)
BIG = Offer("big", "a", "on-demand", 4, 3.0)


@dataclass
class Clock:
    now_s: float = 1_000_000.0

    def __call__(self) -> float:
        return self.now_s


@dataclass
class FakeCloud:
    """A fleet. Instances are pending for ``pending_s``, take ``stop_s`` to end, are listed after ``lag_s``.

    empty: types without capacity. lose, throttle: shares of launch calls whose answer is lost, that are throttled.
    ``most`` and ``most_usd_per_hour`` are the most that was ever live.
    """

    clock: Clock
    catalogue: Sequence[Offer] = (SMALL,)
    pending_s: float = 10.0
    stop_s: float = 20.0
    lag_s: float = 0.0
    empty: set[str] = field(default_factory=set)
    lose: float = 0.0
    throttle: float = 0.0
    chance: random.Random = field(default_factory=lambda: random.Random(1))
    name: str = "test"
    calls: list[str] = field(default_factory=list)
    most: int = 0
    most_usd_per_hour: float = 0.0
    _made: dict[str, Instance] = field(default_factory=dict)
    _tokens: dict[tuple[int, int, str], tuple[Launch, str]] = field(default_factory=dict)
    _ending: dict[str, float] = field(default_factory=dict)

    def offers(self) -> Sequence[Offer]:
        return self.catalogue

    def describe_types(self, names: Sequence[str]) -> Mapping[str, InstanceType]:
        return {o.instance_type: InstanceType(o.instance_type, o.gpus, "T4", o.usd_per_hour) for o in self.catalogue}

    def launch(self, launch: Launch) -> Instance:
        self.calls.append("launch")
        offer = launch.offer
        if self.chance.random() < self.throttle:
            raise Throttled("RequestLimitExceeded")
        token = (launch.slot, launch.generation, offer.zone)
        if token in self._tokens:
            first, made = self._tokens[token]
            if first != launch:
                raise SlotTaken("IdempotentParameterMismatch")
            if self.state(made) == ENDED:
                raise SlotEnded("IdempotentInstanceTerminated")
        elif offer.instance_type in self.empty:
            raise NoCapacity("InsufficientInstanceCapacity", "type")
        else:
            made = f"i{len(self._made)}"
            self._made[made] = Instance(
                made, launch.slot, launch.generation, offer.instance_type, offer.zone, offer.market, LAUNCHING,
                self.clock(), offer.gpus, offer.usd_per_hour,
            )  # fmt: skip
            self._tokens[token] = (launch, made)
            self._count()
        if self.chance.random() < self.lose:
            raise Unanswered("the connection was closed")
        return self._seen(made)

    def list(self) -> Sequence[Instance]:
        self.calls.append("list")
        return sorted(
            (self._seen(i) for i, made in self._made.items() if self.clock() - made.launched_s >= self.lag_s),
            key=lambda i: (i.slot, i.generation),
        )

    def terminate(self, ids: Sequence[str]) -> None:
        self.calls.append("terminate")
        for i in ids:
            self._ending.setdefault(i, self.clock())

    def state(self, made: str) -> str:
        now = self.clock()
        if made in self._ending:
            return ENDED if now - self._ending[made] >= self.stop_s else STOPPING
        return RUNNING if now - self._made[made].launched_s >= self.pending_s else LAUNCHING

    def live(self) -> list[Instance]:
        """All that is there, whether it is listed or not."""
        return [self._seen(i) for i in self._made if self.state(i) != ENDED]

    def _seen(self, made: str) -> Instance:
        return replace(self._made[made], state=self.state(made))

    def _count(self) -> None:
        live = self.live()
        self.most = max(self.most, len(live))
        self.most_usd_per_hour = max(self.most_usd_per_hour, sum(i.usd_per_hour for i in live))


@dataclass
class FakeScheduler:
    """A cluster whose workers join ``boot_s`` after their instance was launched, on all but ``broken`` types.

    cloud: anything with ``live()``. in_flight: batches by worker; a drained one ends one of them each time it is looked
    at. killed: instances that were retired with work in flight.
    """

    clock: Callable[[], float]
    cloud: Any
    boot_s: float = 60.0
    broken: set[str] = field(default_factory=set)
    in_flight: dict[str, int] = field(default_factory=dict)
    killed: list[str] = field(default_factory=list)
    lock: Any = field(default_factory=threading.RLock)
    ledger: Ledger = field(init=False)
    started_s: float = -1e9
    _drains: dict[str, tuple[float, str]] = field(default_factory=dict)
    _retired: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.ledger = Ledger(clock=self.clock)

    def view(self, fleet: str, report: Mapping[str, Any] | None = None) -> View:
        with self.lock:
            drains = {}
            for key, (since_s, why) in self._drains.items():
                busy = self.in_flight.get(key, 0)
                state = "retired" if key in self._retired else "draining"
                drains[key] = Draining(self.clock() - since_s, why, state, busy)
                if busy:
                    self.in_flight[key] = busy - 1
            return View(
                workers=tuple(
                    Worker(i.id, i.gpus, i.slot, self.in_flight.get(i.id, 0))
                    for i in self.cloud.live()
                    if self.joined(i)
                ),
                drains=drains,
                intents=tuple(
                    Intent(Launch(e["slot"], e["generation"], Offer(**e["launch"])), e["age_s"])
                    for e in self.ledger.entries()
                ),
                version=self.ledger.version,
                age_s=self.clock() - self.started_s,
            )

    def joined(self, instance: Instance) -> bool:
        up = instance.state == RUNNING and self.clock() - instance.launched_s >= self.boot_s
        return up and instance.instance_type not in self.broken and instance.id not in self._retired

    def drain(self, ids: Sequence[str], why: str) -> None:
        with self.lock:
            for i in ids:
                self._drains.setdefault(i, (self.clock(), why))

    def undrain(self, ids: Sequence[str]) -> None:
        with self.lock:
            for i in ids:
                if i not in self._retired and not self.in_flight.get(i, 0):
                    self._drains.pop(i, None)

    def retire(self, ids: Sequence[str], *, force: bool, wait_s: float) -> Mapping[str, str]:
        with self.lock:
            states = {}
            for i in ids:
                if i in self._drains:
                    if force and self.in_flight.get(i, 0):
                        self.killed.append(i)
                    if force or not self.in_flight.get(i, 0):
                        self._retired.add(i)
                    states[i] = "retired" if i in self._retired else "draining"
            return states

    def intend(self, fleet: str, version: int, launch: Launch) -> int | None:
        with self.lock:
            return self.ledger.intend(version, launch.slot, launch.generation, launch.offer.__dict__)

    def forget(self, fleet: str, launch: Launch) -> None:
        with self.lock:
            self.ledger.forget(launch.slot, launch.generation)

    def joined_ids(self) -> list[str]:
        return [i.id for i in self.cloud.live() if self.joined(i)]

    def retired(self, instance: str) -> bool:
        return instance in self._retired
