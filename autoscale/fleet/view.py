"""Holds what a controller plans from: settings, what the scheduler says of workers and launches, what it remembers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from autoscale.fleet.fleet import Launch, Offer


@dataclass(frozen=True)
class Settings:
    """Times in s.

    max_instances, max_usd_per_hour: the caps. Instances on their way out count as long as the cloud lists them.
    settle_s: after so long the cloud lists whatever a launch call brought about; the call's own time-out is in it.
    retry_s: an intent that is not listed by then is asked for once more.
    join_timeout_s: an instance without a worker for so long is replaced, and its offer banned for ``ban_s``.
    drain_s: work in flight on a worker that is drained may take so long; what is left then is handed back.
    interrupted_drain_s: the same where the cloud takes the instance back (EC2 gives notice 120 s before).
    retire_s: Dask may take so long to move data off a worker.
    ban_s: an offer that had no capacity is left alone for so long.
    launches: most launches in one step.
    """

    max_instances: int
    max_usd_per_hour: float
    settle_s: float = 90.0
    retry_s: float = 10.0
    join_timeout_s: float = 600.0
    drain_s: float = 60.0
    interrupted_drain_s: float = 60.0
    retire_s: float = 60.0
    ban_s: float = 300.0
    launches: int = 20


@dataclass(frozen=True)
class Worker:
    """A worker on the lane. gpus: slots that take batches or drain; rank: the lowest of them, -1 without any; draining:
    somebody drains it, perhaps by a name of its own.
    """

    name: str
    gpus: int
    rank: int
    in_flight: int
    draining: bool = False


@dataclass(frozen=True)
class Draining:
    """A drain in the scheduler (``symphony_dask.control.drains``).

    closing: it serves what is queued, since nobody else can.
    """

    age_s: float
    why: str
    state: str = "draining"
    in_flight: int = 0
    closing: bool = False


@dataclass(frozen=True)
class Intent:
    """A launch in the ledger, written down ``age_s`` ago."""

    launch: Launch
    age_s: float


@dataclass(frozen=True)
class View:
    """What the scheduler says: ``drains`` by instance id; version and age of the fleet's ledger; models that wait for a
    first GPU to be deployed on.
    """

    workers: tuple[Worker, ...] = ()
    drains: Mapping[str, Draining] = field(default_factory=dict)
    intents: tuple[Intent, ...] = ()
    version: int = 0
    age_s: float = 1e9
    loading: tuple[str, ...] = ()


Scope = tuple[str, str, str]
"""Of a ban: type, market and zone; "" for any."""


@dataclass(frozen=True)
class Memory:
    """bans: until when (s since the epoch); alone: since when an instance has been seen without a worker; known:
    (slot, generation) of intents whose instance this controller has heard of.
    """

    bans: Mapping[Scope, float] = field(default_factory=dict)
    alone: Mapping[str, float] = field(default_factory=dict)
    known: frozenset[tuple[int, int]] = frozenset()

    def banned(self, offer: Offer, now_s: float) -> bool:
        scopes = scopes_of(offer).values()
        return any(self.bans.get(scope, 0.0) > now_s for scope in scopes)

    def ban(self, offer: Offer, scope: str, until_s: float) -> Memory:
        return replace(self, bans={**self.bans, scopes_of(offer)[scope]: until_s})


def scopes_of(offer: Offer) -> dict[str, Scope]:
    """What a ban of an offer can be of, by ``fleet.NoCapacity.scope``."""
    return {
        "offer": (offer.instance_type, offer.market, offer.zone),
        "type": (offer.instance_type, offer.market, ""),
        "market": ("", offer.market, ""),
        "zone": ("", "", offer.zone),
    }
