"""Decides which models are loaded into which slots, where these have not room for all. No clock, no I/O.

Rule 1. A slot without a memory limit has every model. In one with a limit, what is loaded there or being loaded has
        room in it together.
Rule 2. A model that is deployed is loaded into every slot that has room, and at least into one, where it makes room.
Rule 3. A model is asked for while it has requests queued, and for KEEP load times (at least LINGER_NS) after the last
        one came. It then wants as many slots as its load fills to FILL, at least one; else none, but it stays where it
        is until its room is needed. A pinned model always wants one.
Rule 4. A model that has fewer slots than it wants is loaded into one more, those without any first, at most one at a
        time into each slot: at once where there is room, the emptiest. Else where the models to go were last used
        longest ago, as late as its first request allows, but no longer than KEEP load times after that came: so one
        load serves the requests that come until then, as a batch does that is deferred, and the others stay that much
        longer. After such a load the slot rests for REST times as long. Requests wait in their queue meanwhile, and
        their deadlines go on.
Rule 5. The models used longest ago go first, those with slots to spare before others; as many as are needed. None goes
        that was loaded less than KEEP load times ago, or that is pinned and has no other slot. One that has no slots
        to spare goes only for a model that has none at all.
Rule 6. A model that could not be loaded into a slot, or hung there, is tried there again after RETRY_S, and twice as
        long each time after that, up to RETRY_MOST_S. Times that it hung are forgotten after FORGET_NS without. Where
        it hung in several slots, it is on trial in one of them, for its SLO and TRIAL_NS, before others load it again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from symphony_dask.units import NS_PER_S

#: How many times its load time a model stays loaded, at least; and the least time it counts as asked for, ns.
KEEP, LINGER_NS = 4, NS_PER_S

#: A load that evicts is begun as if it took so many times as long as the last one, and so many ns more; and how many
#: times its length the slot rests after it, so that a slot loads for 2/3 of its time at most. ALLOW and REST were found
#: by simulation (as in the tests), with loads that take up to 1.8 times as long as thought.
ALLOW, ALLOW_NS, REST = 1.75, NS_PER_S // 20, 0.5

#: What share of a slot's time a model may need before it wants another.
FILL = 0.7

#: Waits before a load that failed is tried again, s.
RETRY_S, RETRY_MOST_S = 1.0, 60.0

#: How long it is remembered that a model hung, ns.
FORGET_NS = 300 * NS_PER_S

#: How long after the SLO of a first request a model that hung is on trial, ns: by then it would have hung again.
TRIAL_NS = NS_PER_S


@dataclass
class Loaded:
    """A model in a slot."""

    memory: int  #: bytes
    since_ns: int
    used_ns: int  #: when its last batch was sent there


@dataclass
class Failure:
    """A model that could not be loaded."""

    error: str
    attempts: int
    again_ns: int  #: when it is tried again


@dataclass
class SlotPlace:
    """What one slot has; ``limit``: bytes for models, None: no limit. Models are known by their ids."""

    number: int
    gpu_class: str
    limit: int | None
    loaded: dict[int, Loaded] = field(default_factory=dict)
    loading: dict[int, int] = field(default_factory=dict)  #: bytes reserved
    leaving: dict[int, int] = field(default_factory=dict)  #: bytes not yet free
    failed: dict[int, Failure] = field(default_factory=dict)
    hung: dict[int, tuple[int, int]] = field(default_factory=dict)  #: how often a model did, and when last
    rests_ns: int = 0  #: until when nothing is to be evicted

    def free(self) -> int:
        """Bytes that nothing has or has reserved; below 0 where a model turned out larger than it was thought."""
        if self.limit is None:
            return 2**62
        held = sum(model.memory for model in self.loaded.values())
        return self.limit - held - sum(self.loading.values()) - sum(self.leaving.values())

    def may_try(self, model_id: int, now: int) -> bool:
        """Whether a model is neither there nor on its way, and has not failed lately."""
        failure = self.failed.get(model_id)
        there = model_id in self.loaded or model_id in self.loading
        return not there and (failure is None or now >= failure.again_ns)

    def fail(self, model_id: int, error: str, now: int) -> Failure:
        """Put down that a model could not be loaded (rule 6)."""
        attempts = self.failed[model_id].attempts + 1 if model_id in self.failed else 1
        return self._wait(model_id, error, attempts, now)

    def hang(self, model_id: int, error: str, now: int) -> Failure:
        """Put down that a batch of a model hangs (rule 6); it could be loaded, so only this tells of other times."""
        times, last_ns = self.hung.get(model_id, (0, 0))
        times = times + 1 if now - last_ns < FORGET_NS else 1
        self.hung[model_id] = (times, now)
        return self._wait(model_id, error, times, now)

    def put_off(self, model_id: int, until_ns: int) -> None:
        """A model that hung here has hung elsewhere too: do not try it before that slot does."""
        if model_id in self.hung and model_id in self.failed:
            self.failed[model_id].again_ns = max(self.failed[model_id].again_ns, until_ns)

    def is_on_trial(self, model_id: int, trial_ns: int, now: int) -> bool:
        """Whether a model that hung here is being loaded again, or was so lately that it may yet hang."""
        _, last_ns = self.hung.get(model_id, (0, now - FORGET_NS))
        if now - last_ns >= FORGET_NS:
            return False
        loaded = self.loaded.get(model_id)
        return model_id in self.loading or (loaded is not None and now - loaded.since_ns < trial_ns)

    def _wait(self, model_id: int, error: str, attempts: int, now: int) -> Failure:
        wait_s = min(RETRY_S * 2.0 ** (attempts - 1), RETRY_MOST_S)
        self.failed[model_id] = Failure(error, attempts, now + round(wait_s * NS_PER_S))
        return self.failed[model_id]


@dataclass(frozen=True)
class Demand:
    """How many slots a model wants (rule 3). due_ns: when a load that evicts others has to begin (rule 4)."""

    model_id: int
    memory: int  #: bytes
    load_ns: int
    wants: int
    pinned: bool = False
    due_ns: int = 0


class Move(NamedTuple):
    """A model to be loaded into a slot, and those that have to go before."""

    slot: SlotPlace
    model_id: int
    evict: list[int]


def plan(now: int, slots: Sequence[SlotPlace], demands: Mapping[int, Demand]) -> list[Move]:
    """What to load and what to evict now (rules 4 and 5); ``demands`` has every model that is served, by id."""
    have = Counter(m for slot in slots for m in (*slot.loaded, *slot.loading))
    idle = [slot for slot in slots if not slot.loading and not slot.leaving]
    moves = []
    for demand in sorted(demands.values(), key=lambda d: (have[d.model_id] > 0, d.due_ns, d.model_id)):
        if have[demand.model_id] >= demand.wants:
            continue
        options = []
        for i, slot in enumerate(idle):
            evict = make_room(now, slot, demand, demands, have) if slot.may_try(demand.model_id, now) else None
            if evict is not None and (not evict or (now >= demand.due_ns and now >= slot.rests_ns)):
                last = max((slot.loaded[m].used_ns for m in evict), default=0)
                options.append((last, -slot.free(), i, evict))
        if options:
            *_, i, evict = min(options)
            moves.append(Move(idle.pop(i), demand.model_id, evict))
            have[demand.model_id] += 1
            have.subtract(evict)
    return moves


def make_room(
    now: int,
    slot: SlotPlace,
    demand: Demand,
    demands: Mapping[int, Demand],
    have: Mapping[int, int],
    *,
    at_once: bool = False,
) -> list[int] | None:
    """The models that have to leave a slot for another; None if they may not (rule 5) or it has no room even then.

    have: slots by model. at_once: only what is pinned is spared, as for a model that is just being deployed.
    """
    lacking = demand.memory - slot.free()
    if lacking <= 0:
        return []
    may_go = []
    for m, loaded in slot.loaded.items():
        other = demands.get(m)
        spare = other is None or have[m] > other.wants
        if other is not None:
            if other.pinned and have[m] <= 1:
                continue
            kept = now - loaded.since_ns >= KEEP * other.load_ns and (spare or have[demand.model_id] == 0)
            if not at_once and not kept:
                continue
        may_go.append((not spare, loaded.used_ns, m))
    evict: list[int] = []
    for _, _, m in sorted(may_go):
        if lacking > 0:
            evict.append(m)
            lacking -= slot.loaded[m].memory
    if lacking > 0:
        return None
    for m in reversed(evict):  # a large one may have made the small ones before it needless
        if lacking + slot.loaded[m].memory <= 0:
            lacking += slot.loaded[m].memory
            evict.remove(m)
    return evict
