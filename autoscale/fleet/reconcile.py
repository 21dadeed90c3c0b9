"""Plans how to bring a fleet to a target: compares what is with what should be, and says what to do.

Nothing is kept but the cloud's own list and what the scheduler has, so it can be killed at any instruction and started
again, and run twice.

Rules
1. *Intent first.* A launch is written into the fleet's ledger in the scheduler before it is asked for, with slot,
   generation and offer. Of two controllers that saw the same ledger only one can write (its version has changed).
2. *A slot holds one instance.* A slot is free if the cloud lists no live instance in it, and the ledger has no intent
   for it that is younger than ``settle_s``. By then the cloud lists what came of a launch, or nothing did.
3. *The same launch again launches nothing.* A controller that finds the intent of another, or of itself before it was
   killed, asks for just that once more, if it is needed: the client token is of slot and generation, and the zone is
   part of the intent (EC2 keeps tokens by zone). So a lost answer costs one call.
4. *Caps.* Live instances, also those on their way out, and intents are counted together, by slot and at the most they
   can cost, before each launch. Slots are numbered below the maximum, so rule 2 alone keeps the number.
5. *A ledger that is younger than ``settle_s``* says nothing of launches before it: nothing is launched until it is old
   enough. (The scheduler has just started.)
6. *All that exists is listed*, because tags go in the launch call; what is listed and not wanted goes. So nothing is
   orphaned while a controller runs, whenever it was killed.
7. *No worker that may have work is ended.* Whatever goes is drained first: its worker takes no batch, also if it joins
   only now. Then it is retired, which the scheduler grants when nothing is in flight, or when the deadline is over and
   what is in flight has gone back to the queues. Then it is ended.
8. *Without the scheduler nothing is done*: nobody knows what is in use.
What a controller remembers (bans, since when an instance has no worker) makes it quicker, never safer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from autoscale.fleet.fleet import STOPPING, Instance, Launch, Offer, instance_of
from autoscale.fleet.view import Draining, Intent, Memory, Settings, View, Worker

INTERRUPTED, SURPLUS = "the cloud takes it back", "not needed"


@dataclass(frozen=True)
class Drain:
    id: str
    why: str


@dataclass(frozen=True)
class Undrain:
    id: str


@dataclass(frozen=True)
class Retire:
    """force: its deadline is over."""

    id: str
    force: bool


@dataclass(frozen=True)
class Terminate:
    id: str


Action = Drain | Undrain | Retire | Terminate | Launch


@dataclass(frozen=True)
class Plan:
    """actions: in order; phases: of each live instance; gpus: that there will be; why there are no more."""

    actions: tuple[Action, ...]
    memory: Memory
    phases: Mapping[str, str]
    gpus: int
    why: str = ""


def workers_by_instance(instances: Sequence[Instance], workers: Sequence[Worker]) -> dict[str, list[Worker]]:
    """The workers of each instance that has any."""
    ids = {i.id for i in instances}
    found: dict[str, list[Worker]] = {}
    for worker in workers:
        for name in (worker.name, instance_of(worker.name)):
            if name in ids:
                found.setdefault(name, []).append(worker)
                break
    return found


def phase(instance: Instance, joined: bool, drains: Mapping[str, Draining]) -> str:
    """launching, booting, joined, draining or terminating, of a live instance."""
    if instance.state == STOPPING:
        return "terminating"
    if instance.id in drains:
        return "draining"
    if joined:
        return "joined"
    return "launching" if instance.state == "launching" else "booting"


def phases(instances: Sequence[Instance], view: View) -> dict[str, str]:
    """The phase of each live instance by id."""
    joined = {i for i, ws in workers_by_instance(instances, view.workers).items() if any(w.gpus for w in ws)}
    return {i.id: phase(i, i.id in joined, view.drains) for i in instances if i.live}


def unlisted(settings: Settings, instances: Sequence[Instance], view: View) -> list[Intent]:
    """Intents that may have come true and are not listed."""
    listed = {(i.slot, i.generation) for i in instances}
    return [
        i for i in view.intents if i.age_s < settings.settle_s and (i.launch.slot, i.launch.generation) not in listed
    ]


def plan(
    settings: Settings,
    now_s: float,
    instances: Sequence[Instance],
    view: View,
    offers: Sequence[Offer],
    memory: Memory,
    target_gpus: int,
    *,
    shrink: bool = True,
) -> Plan:
    """What to do now, so that ``target_gpus`` GPUs are there or under way. Pure.

    now_s: seconds since the epoch. offers: best first. shrink: whether what is not needed goes.
    """
    live = [i for i in instances if i.live]
    by_instance = workers_by_instance(live, view.workers)
    joined = {i for i, ws in by_instance.items() if any(w.gpus for w in ws)}
    phase_of = {i.id: phase(i, i.id in joined, view.drains) for i in live}
    pending = unlisted(settings, instances, view)
    memory = _remember(memory, now_s, live, phase_of, view)
    actions: list[Action] = []

    # Those on their way out (rule 7).
    for i in live:
        if phase_of[i.id] == "draining":
            actions += _go_on(settings, i, view.drains[i.id])

    # Those that have to go, whatever the target.
    leaving: dict[str, str] = {}
    for i in live:
        if phase_of[i.id] in ("launching", "booting", "joined"):
            if i.interrupted:
                leaving[i.id] = INTERRUPTED
            elif i.id in by_instance and all(w.draining for w in by_instance[i.id]):
                leaving[i.id] = "its workers are drained"
            elif now_s - memory.alone.get(i.id, now_s) > settings.join_timeout_s:
                leaving[i.id] = f"no worker for {settings.join_timeout_s:g} s"
                memory = memory.ban(_offer_of(i), "offer", now_s + settings.ban_s)
    remaining = [i for i in live if phase_of[i.id] in ("launching", "booting", "joined") and i.id not in leaving]
    for i in _twins(remaining, joined):
        leaving[i.id] = f"slot {i.slot} has another instance"
    for i in _beyond(settings, live, pending, remaining, leaving):
        leaving[i.id] = "beyond the caps"
    actions += [Drain(i, why) for i, why in leaving.items()]

    remaining = [i for i in remaining if i.id not in leaving]
    gpus = sum(i.gpus for i in remaining) + sum(i.launch.offer.gpus for i in pending)
    if gpus > target_gpus and shrink:
        for i in sorted(remaining, key=lambda i: _last_to_go(i, by_instance.get(i.id, [])), reverse=True):
            if gpus - i.gpus >= target_gpus:
                gpus -= i.gpus
                actions.append(Drain(i.id, SURPLUS))
    why = ""
    if gpus < target_gpus:
        for i in live:
            drain = view.drains.get(i.id)
            if gpus < target_gpus and drain is not None and i.id in joined and _may_return(i, drain):
                actions = [a for a in actions if not (isinstance(a, Retire) and a.id == i.id)]
                actions.append(Undrain(i.id))
                gpus += i.gpus
    if gpus < target_gpus:
        launches, why = _launches(settings, now_s, live, view, pending, offers, memory, target_gpus - gpus)
        actions += launches
        gpus += sum(a.offer.gpus for a in launches if (a.slot, a.generation) not in _named(pending))
    elif pending and gpus - sum(i.launch.offer.gpus for i in pending) < target_gpus:
        actions += _again(settings, pending, memory)
    return Plan(tuple(actions), memory, phase_of, gpus, why)


def _remember(
    memory: Memory, now_s: float, live: Sequence[Instance], phase_of: Mapping[str, str], view: View
) -> Memory:
    """Memory without what is over, and with since when each instance has been without a worker."""
    alone = {i.id: memory.alone.get(i.id, now_s) for i in live if phase_of[i.id] in ("launching", "booting")}
    bans = {scope: until_s for scope, until_s in memory.bans.items() if until_s > now_s}
    known = memory.known & {(i.launch.slot, i.launch.generation) for i in view.intents}
    return Memory(bans, alone, known)


def _go_on(settings: Settings, instance: Instance, drain: Draining) -> list[Action]:
    """The next step for an instance that is drained."""
    if drain.state == "retired":
        return [Terminate(instance.id)]
    limit_s = settings.interrupted_drain_s if drain.why == INTERRUPTED or instance.interrupted else settings.drain_s
    if drain.state == "retiring":
        return [Terminate(instance.id)] if drain.age_s > limit_s + settings.retire_s else []
    # One that serves what is queued, where nobody else does, ends by itself when the last deadline has passed.
    late = drain.age_s > limit_s and (not drain.closing or instance.interrupted or drain.why == INTERRUPTED)
    if late or (drain.in_flight == 0 and not drain.closing):
        return [Retire(instance.id, late)]
    return []


def _may_return(instance: Instance, drain: Draining) -> bool:
    """Whether a drained instance may serve again."""
    return instance.up and not instance.interrupted and drain.why == SURPLUS and drain.state == "draining"


def _offer_of(instance: Instance) -> Offer:
    return Offer(instance.instance_type, instance.zone, instance.market, instance.gpus, instance.usd_per_hour)


def _twins(remaining: Sequence[Instance], joined: set[str]) -> list[Instance]:
    """All but one of the instances that share a slot; none by the rules, but clouds and people err."""
    kept: dict[int, Instance] = {}
    twins = []
    for i in sorted(remaining, key=lambda i: (i.id not in joined, i.launched_s, i.id)):
        if kept.setdefault(i.slot, i) is not i:
            twins.append(i)
    return twins


def _beyond(
    settings: Settings,
    live: Sequence[Instance],
    pending: Sequence[Intent],
    remaining: Sequence[Instance],
    leaving: Mapping[str, str],
) -> list[Instance]:
    """What has to go for the caps to hold, highest slots first; none but where somebody has lowered them."""
    going = []
    rest = [i for i in remaining if i.id not in leaving]
    out = {i.id for i in live} - {i.id for i in rest}
    n = len(live) + len(pending) - len(out)
    usd = sum(i.usd_per_hour for i in rest) + sum(i.launch.offer.usd_per_hour for i in pending)
    for i in sorted(rest, key=lambda i: i.slot, reverse=True):
        if i.slot >= settings.max_instances or n > settings.max_instances or usd > settings.max_usd_per_hour + 1e-9:
            going.append(i)
            n -= 1
            usd -= i.usd_per_hour
    return going


def _last_to_go(instance: Instance, workers: Sequence[Worker]) -> tuple[int, float, int]:
    """Sorts those that stay longest first: who has joined, by lowest rank; then who has no worker, oldest first."""
    ranks = [w.rank for w in workers if w.gpus]
    if ranks:
        return 0, min(ranks), instance.slot
    return 1, instance.launched_s, instance.slot


def _named(intents: Sequence[Intent]) -> set[tuple[int, int]]:
    return {(i.launch.slot, i.launch.generation) for i in intents}


def _again(settings: Settings, pending: Sequence[Intent], memory: Memory) -> list[Launch]:
    """Intents to be asked for once more (rule 3)."""
    return [
        i.launch
        for i in pending
        if i.age_s > settings.retry_s and (i.launch.slot, i.launch.generation) not in memory.known
    ]


def _launches(
    settings: Settings,
    now_s: float,
    live: Sequence[Instance],
    view: View,
    pending: Sequence[Intent],
    offers: Sequence[Offer],
    memory: Memory,
    gpus: int,
) -> tuple[list[Launch], str]:
    """Launches for so many GPUs more, as far as the caps and the cloud let; and what they do not let, in words."""
    launches = _again(settings, pending, memory)
    if view.age_s < settings.settle_s:
        return [], f"the scheduler has just started: no launches before it is {settings.settle_s:g} s old"
    taken = {i.slot for i in live} | {i.launch.slot for i in pending}
    usd = sum(i.usd_per_hour for i in live) + sum(i.launch.offer.usd_per_hour for i in pending)
    # The generation is of no meaning but that no other launch has it.
    generation = max([int(now_s * 1000), *(i.generation + 1 for i in live), *(g + 1 for _, g in _named(pending))])
    room = settings.max_instances - len(live) - len(pending)
    for slot in range(settings.max_instances):
        if gpus <= 0 or len(launches) >= settings.launches:
            return launches, ""
        if slot in taken:
            continue
        if room <= 0:
            break
        offer = choose(offers, slot, gpus, settings.max_usd_per_hour - usd, now_s, memory)
        if offer is None:
            cheap = [o for o in offers if not memory.banned(o, now_s)]
            if not cheap:
                return launches, "no offer has capacity"
            return launches, f"the cap of {settings.max_usd_per_hour:g} USD an hour"
        launches.append(Launch(slot, generation, offer))
        usd += offer.usd_per_hour
        gpus -= offer.gpus
        room -= 1
    return launches, f"the cap of {settings.max_instances} instances" if gpus > 0 else ""


def choose(
    offers: Sequence[Offer], slot: int, gpus: int, usd_left: float, now_s: float, memory: Memory
) -> Offer | None:
    """The first offer that has capacity as far as is known and fits the cap, rather one of no more than ``gpus`` GPUs.

    Of offers that differ in their zone only, slots take turns, so that a fleet spreads over zones.
    """
    fit = [o for o in offers if o.usd_per_hour <= usd_left + 1e-9 and not memory.banned(o, now_s)]
    small = [o for o in fit if o.gpus <= gpus] or [o for o in fit if o.gpus == min(o.gpus for o in fit)]
    if not small:
        return None
    alike = [o for o in small if (o.instance_type, o.market) == (small[0].instance_type, small[0].market)]
    return alike[slot % len(alike)]
