"""Draws random plans of faults from a seed, as text, and makes them smaller while they still fail."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass

from workloads.faults.kinds import KINDS, Fault

#: How often each kind is drawn, against 1 for the others: those that need a process to start cost seconds of CPU time.
WEIGHTS = {
    "kill-worker": 0.6,
    "end-worker": 0.3,
    "flap-worker": 0.3,
    "reset-worker": 0.3,
    "kill-client": 0.5,
    "end-client": 0.3,
    "kill-gateway": 0.15,
    "end-gateway": 0.15,
    "kill-scheduler": 0.1,
    "end-scheduler": 0.05,
    "model-stuck": 0.3,
    "model-exit": 0.2,
    "model-gil": 0.5,
    "read-only-disk": 0.5,
    "full-disk": 0.5,
}

#: Kinds after which there is another scheduler: nothing else is to happen meanwhile.
ALONE = frozenset({"kill-scheduler", "end-scheduler"})

#: Most faults of a plan, and their latest begin, shortest and longest, s.
MOST, LATEST_S, SHORTEST_S, LONGEST_S = 4, 0.8, 0.05, 1.5


@dataclass(frozen=True)
class Plan:
    """What happens in one run. policy: of the scheduler."""

    seed: int
    policy: str
    faults: tuple[Fault, ...]

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Plan:
        found = json.loads(text)
        return cls(found["seed"], found["policy"], tuple(Fault(**fault) for fault in found["faults"]))


def draw(seed: int, weights: Mapping[str, float] = WEIGHTS, kinds: Mapping[str, object] = KINDS) -> Plan:
    """The plan of a seed: one to ``MOST`` faults, of which each part of the cluster may meet several at once."""
    rng = random.Random(f"plan {seed}")
    names = sorted(kinds)
    policy = rng.choice(["eager", "adaptive", "deferred"])
    faults = []
    for _ in range(rng.choice([1, 1, 2, 2, 3, MOST])):
        (kind,) = rng.choices(names, [weights.get(name, 1.0) for name in names])
        at_s, for_s = rng.uniform(0, LATEST_S), rng.uniform(SHORTEST_S, LONGEST_S)
        faults.append(Fault(kind, round(at_s, 3), round(for_s, 3), rng.randrange(4)))
    alone = [fault for fault in faults if fault.kind in ALONE]
    if alone:
        faults = alone[:1]
    # Two of one kind would clear each other's.
    once = {fault.kind: fault for fault in sorted(faults, key=lambda fault: -fault.at_s)}
    models = [kind for kind in once if kind.startswith("model-")]
    for kind in models[1:]:
        del once[kind]
    return Plan(seed, policy, tuple(sorted(once.values(), key=lambda fault: fault.at_s)))


def shrink(plan: Plan, fails: Callable[[Plan], bool]) -> Plan:
    """The plan with as few faults as still fail, left out one by one."""
    left = True
    while left:
        left = False
        for fault in plan.faults:
            smaller = Plan(plan.seed, plan.policy, tuple(other for other in plan.faults if other is not fault))
            if smaller.faults and fails(smaller):
                plan, left = smaller, True
                break
    return plan
