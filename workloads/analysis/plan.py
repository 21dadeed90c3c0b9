"""Plans how many GPUs of which class a trace needs for an attainment target, and what they cost. Every figure is
simulated.

Each class is searched by bisection over whole instances (``gpus_needed.least``), mixes of two classes by a sweep: of
the class that costs less alone up to ``SWEEP`` numbers, with the least of the other that makes the mix both enough and
cheaper than what was found before.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np

from autoscale.providers.prices import Instance, Prices
from symphony_dask.engine.engine import POLICIES
from symphony_dask.engine.latency_profile import LatencyProfile
from symphony_dask.errors import BadInput
from symphony_dask.units import NS_PER_S
from workloads.baselines.nexus import CannotPlace
from workloads.compare.bound import BoundModel, ideal_gpus
from workloads.compare.gpus_needed import least
from workloads.compare.policies import scheduler
from workloads.simulation.fleet import GpuGroup
from workloads.simulation.workload import Workload
from workloads.traces.zoo import ZOO

#: Instance types, and the published profile (ResNet-50 by TensorRT) that stands for a trace that knows none.
DEFAULT_CLASSES: dict[str, LatencyProfile] = {
    "g4dn.xlarge": ZOO["resnet50-trt-t4"].profile,
    "p3.2xlarge": ZOO["resnet50-trt-v100"].profile,
    "p4d.24xlarge": ZOO["resnet50-trt-a100"].profile,
}

#: Numbers of one class that a mix of two is tried with.
SWEEP = 5

#: Parts of the number needed at which the curve has a point besides those of the search.
CURVE = (0.25, 0.5, 0.75, 1.25)


@dataclass(frozen=True)
class _Class:
    """A GPU class; its GPUs are rented ``step`` at a time. usd: an hour of each step, None if unknown."""

    name: str
    step: int
    usd: float | None

    def cost(self, steps: int) -> float | None:
        return None if self.usd is None else steps * self.usd


class _Fleets:
    """Attainment of a workload on fleets of some classes; each is simulated once."""

    def __init__(self, work: Workload, policy: str, on_progress: Callable[[str], None]) -> None:
        self._work, self._on_progress = work, on_progress
        self._simulate = scheduler(policy, slos_ns=work.slos_ns)
        self.known: dict[tuple[tuple[str, int], ...], float] = {}

    def attainment(self, *fleet: tuple[_Class, int]) -> float:
        """Of so many steps of each class; the class that is named first fills first."""
        key = tuple((kind.name, steps * kind.step) for kind, steps in fleet)
        if key not in self.known:
            gpus = [GpuGroup(name, number) for name, number in key]
            work = self._work
            try:
                found = self._simulate(work.models, gpus, work.arrivals_ns, work.choices).attainment
            except CannotPlace:
                found = 0.0
            self.known[key] = found
            self._on_progress(f"{' + '.join(f'{n} {name}' for name, n in key)}: {found:.3%} in time")
        return self.known[key]


def plan(
    work: Workload,
    classes: Sequence[str],
    prices: Prices,
    *,
    attainment: float = 0.99,
    policy: str = "adaptive",
    on_progress: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """GPUs of each class, and of mixes of two, with which ``work`` attains that share of requests in time.

    classes: for which every model of ``work`` has a profile.

    Keys: label; attainment (the target); policy; rows, the curve: gpu_class, gpus, instances, attainment, usd_per_hour
    (None without a price), enough; needed: a row for each class with gpus (None where ``gpus_tried`` were not enough),
    usd_per_hour, attainment and monotone (whether more GPUs were as good wherever that was tried); mixes: gpu_class
    ("a+b"), mix (GPUs by class), gpus, attainment, usd_per_hour of the mixes that were enough and cheaper than all
    before; cheapest: the best of all, in the form of a mix, by cost; by GPUs where no class has a price; None where
    none will do.

    Raises ``BadInput`` when the target is not between 0 and 1, no class is given, or the policy is unknown.
    """
    if not 0 < attainment <= 1:
        raise BadInput(f"attainment {attainment} is no target: give a share above 0 and at most 1, such as 0.99")
    if not classes:
        raise BadInput("there is no GPU class to plan with: give --profile CLASS=ALPHA,BETA")
    kinds = [_kind(name, prices.find(name)) for name in classes]
    fleets = _Fleets(work, policy, on_progress)
    rows: list[dict[str, Any]] = []
    needed: list[dict[str, Any]] = []
    enough: list[tuple[_Class, int]] = []
    for kind in kinds:
        found = _needed(work, kind, fleets, attainment)
        needed.append(found)
        if found["gpus"] is not None:
            steps = found["gpus"] // kind.step
            enough.append((kind, steps))
            for part in CURVE:
                if (near := round(part * steps)) >= 1:
                    fleets.attainment((kind, near))
        rows += _curve(kind, fleets, attainment)
    choices = [_choice(fleets, (kind, steps)) for kind, steps in enough]
    mixes = _mixes(enough, fleets, attainment) if policy in POLICIES else []
    priced = [choice for choice in [*choices, *mixes] if choice["usd_per_hour"] is not None]
    cheapest: dict[str, Any] | None = None
    if priced:
        cheapest = min(priced, key=lambda choice: (choice["usd_per_hour"], choice["gpus"]))
    elif choices:
        cheapest = min(choices, key=lambda choice: choice["gpus"])
    return {
        "label": "simulated",
        "attainment": attainment,
        "policy": policy,
        "requests": len(work.arrivals_ns),
        "mean_hz": _mean_hz(work),
        "prices": prices.basis(),
        "rows": rows,
        "needed": needed,
        "mixes": mixes,
        "cheapest": cheapest,
    }


def on_classes(work: Workload, profiles: dict[str, LatencyProfile]) -> Workload:
    """``work`` with these profiles by GPU class, the same for every model, and no others."""
    first = next(iter(profiles.values()))
    return replace(work, models=[replace(model, profile=first, profiles=profiles) for model in work.models])


def scaled(work: Workload, scale: float) -> Workload:
    """``work`` at ``scale`` times its rate: gaps between arrivals shrink alike, so bursts stay bursts. SLOs stay."""
    if not 0 < scale < math.inf:
        raise BadInput(f"scale {scale}: give a positive factor for the rate, such as 2")
    if scale == 1:
        return work
    first = work.arrivals_ns[0]
    return replace(work, arrivals_ns=np.rint((work.arrivals_ns - first) / scale).astype(np.int64))


def _kind(name: str, rented: Instance | None) -> _Class:
    return _Class(name, 1, None) if rented is None else _Class(name, rented.gpus, rented.usd_per_hour)


def _mean_hz(work: Workload) -> float:
    span_ns = max(int(work.arrivals_ns[-1] - work.arrivals_ns[0]), int(work.slos_ns.max()))
    return len(work.arrivals_ns) * NS_PER_S / span_ns


def _ideal(work: Workload, name: str) -> float:
    """GPUs that the mean rate needs in batches as large as the SLOs allow; the search begins there."""
    counts = np.bincount(work.choices, minlength=len(work.models))
    models = [
        BoundModel(model.profile_on(name), model.slo_ns, float(count / counts.sum()))
        for model, count in zip(work.models, counts, strict=True)
    ]
    return ideal_gpus(models, _mean_hz(work))


def _peak(work: Workload) -> float:
    """Requests in the busiest second over the mean."""
    seconds = (work.arrivals_ns - work.arrivals_ns[0]) // NS_PER_S
    return max(1.0, float(np.unique(seconds, return_counts=True)[1].max()) / _mean_hz(work))


def _needed(work: Workload, kind: _Class, fleets: _Fleets, attainment: float) -> dict[str, Any]:
    ideal = _ideal(work, kind.name)
    # Some models of the mix may be too slow on this class; their requests may be within what the target lets go.
    start = math.ceil(ideal / kind.step) if math.isfinite(ideal) else 1
    limit = math.ceil((4 * start * kind.step * _peak(work) + len(work.models) + 4) / kind.step)
    found = least(lambda steps: fleets.attainment((kind, steps)) >= attainment, max(start, 1), max(limit, 1))
    steps = found.gpus
    return {
        "gpu_class": kind.name,
        "gpus": None if steps is None else steps * kind.step,
        "instances": steps,
        "attainment": fleets.attainment((kind, limit if steps is None else steps)),
        "usd_per_hour": None if steps is None else kind.cost(steps),
        "gpus_tried": limit * kind.step if steps is None else None,
        "monotone": found.monotone,
    }


def _curve(kind: _Class, fleets: _Fleets, attainment: float) -> list[dict[str, Any]]:
    points = {key[0][1]: share for key, share in fleets.known.items() if len(key) == 1 and key[0][0] == kind.name}
    return [
        {
            "gpu_class": kind.name,
            "gpus": gpus,
            "instances": gpus // kind.step,
            "attainment": share,
            "usd_per_hour": kind.cost(gpus // kind.step),
            "enough": share >= attainment,
        }
        for gpus, share in sorted(points.items())
    ]


def _choice(fleets: _Fleets, *fleet: tuple[_Class, int]) -> dict[str, Any]:
    costs = [kind.cost(steps) for kind, steps in fleet]
    return {
        "gpu_class": "+".join(kind.name for kind, _ in fleet),
        "mix": {kind.name: steps * kind.step for kind, steps in fleet},
        "gpus": sum(steps * kind.step for kind, steps in fleet),
        "attainment": fleets.attainment(*fleet),
        "usd_per_hour": None if None in costs else math.fsum(cost for cost in costs if cost is not None),
    }


def _mixes(enough: Sequence[tuple[_Class, int]], fleets: _Fleets, attainment: float) -> list[dict[str, Any]]:
    """Mixes of two classes with known prices, each cheaper than the cheapest class and all mixes before it."""
    priced = [(kind, steps) for kind, steps in enough if kind.usd]
    priced.sort(key=lambda pair: pair[0].cost(pair[1]) or 0.0)
    if len(priced) < 2:
        return []
    best = priced[0][0].cost(priced[0][1]) or 0.0
    found = []
    for (cheap, n), (other, most) in combinations(priced, 2):
        assert cheap.usd is not None
        assert other.usd is not None
        for steps in sorted({round(n * i / (SWEEP + 1)) for i in range(1, SWEEP + 1)} - {0, n}):
            # Less a billionth: one that costs the same is no gain.
            affordable = min(math.floor((best - steps * cheap.usd) / other.usd - 1e-9), most)
            if affordable < 1:
                continue

            def attains(others: int, steps: int = steps, cheap: _Class = cheap, other: _Class = other) -> bool:
                return fleets.attainment((cheap, steps), (other, others)) >= attainment

            if (others := least(attains, affordable, affordable).gpus) is not None:
                found.append(_choice(fleets, (cheap, steps), (other, others)))
                best = found[-1]["usd_per_hour"]
    return found
