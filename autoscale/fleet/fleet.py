"""Says what every fleet keeps to: the instances that bear one name, wherever they come from (``ec2``, ``local``).

Rules, for every kind of fleet
1. A *slot* holds one instance at a time. Slots are numbered from 0, and an instance's number and generation are among
   the tags that it is launched with.
2. A launch names (slot, generation). However often it is asked for, by whomever, one instance at most comes of it: the
   cloud is told by ``token``, its client token. A slot is used again under the next generation.
3. ``list`` gives every instance with the fleet's name that the cloud still knows, those that have ended too. It may lag
   behind by ``view.Settings.settle_s``.
4. A worker process on an instance is named after it: ID, or ID-0, ID-1, ... where there are several.
5. A call raises a ``FleetError`` below or works; it never tries again by itself where that could launch anything.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from symphony_dask.errors import SymphonyError

MARKETS = ("on-demand", "spot")

LAUNCHING, RUNNING, STOPPING, ENDED = "launching", "running", "stopping", "ended"


@dataclass(frozen=True)
class InstanceType:
    """gpu: the device's name, as in "A10G"; usd_per_hour: on demand, the most that an instance can cost on spot too."""

    name: str
    gpus: int
    gpu: str
    usd_per_hour: float


@dataclass(frozen=True)
class Offer:
    """What can be launched. usd_per_hour is the most that it can cost, so that caps hold whatever spot prices do."""

    instance_type: str
    zone: str
    market: str
    gpus: int
    usd_per_hour: float

    def __str__(self) -> str:
        return f"{self.instance_type} {self.market} in {self.zone}"


@dataclass(frozen=True)
class Launch:
    """One instance to be launched; see rule 2."""

    slot: int
    generation: int
    offer: Offer


@dataclass(frozen=True)
class Instance:
    """An instance as its cloud reports it.

    id: also the name of its workers (rule 4).
    state: "launching", "running", "stopping" (on its way out), "ended".
    launched_s: seconds since the epoch.
    interrupted: the cloud has said that it will take the instance back.
    """

    id: str
    slot: int
    generation: int
    instance_type: str
    zone: str
    market: str
    state: str
    launched_s: float
    gpus: int
    usd_per_hour: float
    interrupted: bool = False

    @property
    def live(self) -> bool:
        """Whether it counts against the caps: all that has not ended."""
        return self.state != ENDED

    @property
    def up(self) -> bool:
        """Whether it serves or will."""
        return self.state in (LAUNCHING, RUNNING)


class FleetError(SymphonyError, RuntimeError):
    """A fleet could not do what it was asked; the message has the cloud's own code and text."""


class NoCapacity(FleetError):
    """The cloud has none of an offer now, or lets this account have no more; nothing was launched.

    scope: "offer" (type, zone and market), "type" (the type in this market, everywhere), "zone" or "market": what not
    to ask for again for a while.
    """

    def __init__(self, text: str, scope: str = "offer") -> None:
        super().__init__(text)
        self.scope = scope


class SlotTaken(FleetError):
    """An instance of other parameters was launched, or tried to be, under this slot and generation."""


class SlotEnded(FleetError):
    """The instance of this slot and generation has ended: the next generation is due."""


class Throttled(FleetError):
    """The cloud wants fewer calls; nothing was done."""


class Unanswered(FleetError):
    """The call may have been carried out or not."""


class FleetProtocol(Protocol):
    """What ``reconcile`` needs of a fleet. Calls block; they may come from any one thread at a time."""

    #: The fleet's name: what its instances are found by.
    name: str

    def offers(self) -> Sequence[Offer]:
        """What can be launched, best first."""
        ...

    def launch(self, launch: Launch) -> Instance:
        """Launch one instance, or find the one that this slot and generation have; raises ``FleetError``."""
        ...

    def list(self) -> Sequence[Instance]:
        """All instances of the fleet (rule 3), in order of slot and generation; raises ``FleetError``."""
        ...

    def terminate(self, ids: Sequence[str]) -> None:
        """Have instances ended; those that are gone already are no fault. Raises ``FleetError``."""
        ...

    def describe_types(self, names: Sequence[str]) -> Mapping[str, InstanceType]:
        """GPUs and price of instance types by name; raises ``BadInput`` for one that is not known or has no GPU."""
        ...


def token(fleet: str, slot: int, generation: int) -> str:
    """The client token of a launch: at most 64 ASCII characters, as EC2 wants it."""
    digest = hashlib.sha256(f"{fleet}/{slot}/{generation}".encode()).hexdigest()
    return f"symphony-{slot}-{generation}-{digest[:24]}"


def instance_of(worker: str) -> str:
    """The instance that a worker's name speaks of (rule 4): the name without a last "-NUMBER", if it has one.

    Both readings of "a-1" are instances; whoever asks knows which of them exists.
    """
    stem, dash, number = worker.rpartition("-")
    return stem if dash and number.isdecimal() else worker
