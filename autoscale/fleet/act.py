"""Takes one step of the controller: looks at the cloud and the scheduler, plans, and carries the plan out."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from autoscale.fleet.fleet import (
    FleetError,
    FleetProtocol,
    Instance,
    Launch,
    NoCapacity,
    SlotEnded,
    SlotTaken,
    Throttled,
    Unanswered,
)
from autoscale.fleet.reconcile import Drain, Plan, Retire, Terminate, Undrain, phases, plan
from autoscale.fleet.view import Memory, Settings, View

logger = logging.getLogger(__name__)

#: A step waits so long for Dask to move data off workers that it retires; those that need longer are looked at again.
RETIRE_WAIT_S = 2.0


class Cluster(Protocol):
    """The scheduler, as a controller sees it (``cluster.DaskCluster``). Calls raise ``NotServing`` if it cannot be
    reached.
    """

    def view(self, fleet: str, report: Mapping[str, Any] | None = None) -> View:
        """What a plan needs to know. report: of the fleet, for people, shown by ``symphony status``."""
        ...

    def drain(self, ids: Sequence[str], why: str) -> None:
        """Have the workers of instances take no more batches."""
        ...

    def undrain(self, ids: Sequence[str]) -> None:
        """Have them take batches again, those that are idle."""
        ...

    def retire(self, ids: Sequence[str], *, force: bool, wait_s: float) -> Mapping[str, str]:
        """Take drained workers off the cluster; the state of each drain after ``wait_s`` at most."""
        ...

    def intend(self, fleet: str, version: int, launch: Launch) -> int | None:
        """Write down a launch; the ledger's new version, or None if another controller has written since."""
        ...

    def forget(self, fleet: str, launch: Launch) -> None:
        """Nothing came of a launch."""
        ...


@dataclass
class Backoff:
    """When to call the cloud again after it has asked for fewer calls: after 1 s, 2 s, 4 s ... 60 s, of which a part
    chosen by chance is left out, so that controllers do not come back together.
    """

    first_s: float = 1.0
    most_s: float = 60.0
    chance: random.Random = field(default_factory=random.Random)
    _in_a_row: int = 0
    _until_s: float = 0.0

    def throttled(self, now_s: float) -> float:
        """Take note; returns for how long to be quiet."""
        wait_s = min(self.first_s * 2**self._in_a_row, self.most_s) * self.chance.uniform(0.5, 1.0)
        self._in_a_row += 1
        self._until_s = now_s + wait_s
        return wait_s

    def worked(self) -> None:
        self._in_a_row = 0

    def quiet(self, now_s: float) -> bool:
        return now_s < self._until_s


@dataclass
class Step:
    """What a step saw and did. actions: as carried out; faults: what went wrong, in words; why: of ``Plan``; throttled:
    the cloud wants fewer calls; over: nothing more is to be tried in this step.
    """

    instances: Sequence[Instance]
    phases: Mapping[str, str]
    memory: Memory
    actions: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    why: str = ""
    throttled: bool = False
    over: bool = False

    def gpus(self, *wanted: str) -> int:
        """GPUs of the instances in some phases."""
        return sum(i.gpus for i in self.instances if self.phases.get(i.id) in wanted)

    @property
    def usd_per_hour(self) -> float:
        """At most, of all live instances."""
        return sum(i.usd_per_hour for i in self.instances if i.live)

    def summary(self) -> dict[str, Any]:
        """As JSON, for the scheduler's status and for records."""
        counts = dict.fromkeys(("launching", "booting", "joined", "draining", "terminating"), 0)
        for p in self.phases.values():
            counts[p] += 1
        return {
            "instances": counts,
            "usd_per_hour": round(self.usd_per_hour, 6),
            "actions": self.actions,
            "faults": self.faults,
            "why": self.why,
        }


def step(
    settings: Settings,
    fleet: FleetProtocol,
    cluster: Cluster,
    memory: Memory,
    target_gpus: int,
    *,
    seen: tuple[Sequence[Instance], View] | None = None,
    interrupted: frozenset[str] = frozenset(),
    shrink: bool = True,
    clock: Callable[[], float] = time.time,
) -> Step:
    """Take the fleet a step towards ``target_gpus``; raises ``FleetError`` or ``NotServing`` where it cannot look.

    seen: instances and view, where the caller has just looked. interrupted: ids of instances that the cloud has said
    it takes back.
    """
    instances, view = seen if seen is not None else (fleet.list(), cluster.view(fleet.name))
    instances = [replace(i, interrupted=i.interrupted or i.id in interrupted) for i in instances]
    offers = fleet.offers()
    done = Step(instances, phases(instances, view), memory)
    # Every round but the last ends with a ban or a change of the ledger.
    for _ in range(2 * len(offers) + 2):
        made = plan(settings, clock(), instances, view, offers, done.memory, target_gpus, shrink=shrink)
        done.memory, done.why = made.memory, made.why
        if _carry_out(settings, fleet, cluster, made, view, done, clock) or done.over:
            break
        view = cluster.view(fleet.name)
    return done


def _carry_out(
    settings: Settings,
    fleet: FleetProtocol,
    cluster: Cluster,
    made: Plan,
    view: View,
    done: Step,
    clock: Callable[[], float],
) -> bool:
    """Carry a plan out; False if the rest of it is to be planned again."""
    drains: dict[str, list[str]] = {}
    for action in made.actions:
        if isinstance(action, Drain):
            drains.setdefault(action.why, []).append(action.id)
    for why, ids in drains.items():
        cluster.drain(ids, why)
        done.actions += [f"drain {i}: {why}" for i in ids]
    back = [a.id for a in made.actions if isinstance(a, Undrain)]
    if back:
        cluster.undrain(back)
        done.actions += [f"undrain {i}" for i in back]
    ended = [a.id for a in made.actions if isinstance(a, Terminate)]
    for force in (False, True):
        retiring = [a.id for a in made.actions if isinstance(a, Retire) and a.force == force]
        if retiring:
            states = cluster.retire(retiring, force=force, wait_s=RETIRE_WAIT_S)
            ended += [i for i in retiring if states.get(i) == "retired"]
    if ended:
        try:
            fleet.terminate(ended)
        except FleetError as error:  # the next step tries again
            done.faults.append(str(error))
            done.throttled = done.over = isinstance(error, Throttled)
        else:
            done.actions += [f"terminate {i}" for i in ended]
    version = view.version
    for launch in (a for a in made.actions if isinstance(a, Launch)):
        if done.over:
            return True
        written = cluster.intend(fleet.name, version, launch)
        if written is None:
            return False
        version = written
        again = any(i.launch == launch for i in view.intents)
        if not _launch(settings, fleet, cluster, launch, done, clock, again):
            return False
    return True


def _launch(
    settings: Settings,
    fleet: FleetProtocol,
    cluster: Cluster,
    launch: Launch,
    done: Step,
    clock: Callable[[], float],
    again: bool,
) -> bool:
    """Ask for one instance, perhaps ``again``; False if that changes what to ask for next."""
    asked_s = clock()
    try:
        instance = fleet.launch(launch)
    except NoCapacity as error:
        if not again:
            cluster.forget(fleet.name, launch)
        done.memory = done.memory.ban(launch.offer, error.scope, clock() + settings.ban_s)
        done.faults.append(f"{launch.offer}: {error}")
        return False
    except (Unanswered, SlotTaken) as error:  # the intent stays, and with it the slot
        done.faults.append(f"slot {launch.slot}: {error}")
        return True
    except FleetError as error:
        # That this call launched nothing does not say so of the one that it repeats.
        if isinstance(error, SlotEnded) or not again:
            cluster.forget(fleet.name, launch)
        done.faults.append(f"slot {launch.slot}: {error}")
        done.throttled = isinstance(error, Throttled)
        done.over = not isinstance(error, SlotEnded)
        return False
    done.memory = replace(done.memory, known=done.memory.known | {(launch.slot, launch.generation)})
    done.actions.append(f"launch {instance.id}: {launch.offer}")
    logger.info("launched %s in slot %d after %.1f s: %s", instance.id, launch.slot, clock() - asked_s, launch.offer)
    return True
