"""Tries a policy on a trace: the engine under virtual time, the policy at its ticks, a fleet that is slow and fails.

Everything here is simulated. The policy sees the signals that a live one sees, made by the same ``Sampler``; the engine
is the one that serves. It is looked at, and GPUs come and go, every ``STEP_S``. Of the fleet:

Rule 1. A launched GPU is paid for from its launch until it is gone, and serves after its boot time, which is drawn.
Rule 2. Where fewer are wanted, those that boot go first, the latest launched before the others; then the highest ranks,
        which take no more batches and are gone when they have ended those they have.
Rule 3. A launch fails with some probability, and is tried again at the next tick.
Rule 4. A spot kill is announced ``SPOT_NOTICE_S`` before. Until then the GPU serves, but it does not count, so that
        another takes its place; what it has not ended then is queued again.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from autoscale.policies.decision import Fleet, Memory, Policy, Settings
from autoscale.policies.demand import demand
from autoscale.policies.signals import Signals
from symphony_dask.dispatcher.load_signals import GpuFacts, ModelFacts, Sampler
from symphony_dask.errors import BadInput
from symphony_dask.trace import Outcome
from symphony_dask.units import NS_PER_S
from workloads.simulation.fleet import GPU
from workloads.simulation.stepwise import Stepwise
from workloads.simulation.workload import Workload

#: How often the simulation stops to be looked at, s; more often where the policy decides more often.
STEP_S = 5

#: How long before a spot instance goes it is said to, s.
SPOT_NOTICE_S = 120.0


@dataclass(frozen=True)
class FleetModel:
    """How the simulated cloud behaves.

    boot_s, boot_spread: mean of the boot time, and its standard deviation over the mean; gamma distributed.
    capacity_errors: probability that a launch fails. spot_kills_per_hour: of each GPU that serves.
    """

    boot_s: float = 120.0
    boot_spread: float = 0.0
    capacity_errors: float = 0.0
    spot_kills_per_hour: float = 0.0

    def __post_init__(self) -> None:
        if not (self.boot_s >= 0 and self.boot_spread >= 0 and self.spot_kills_per_hour >= 0):
            raise BadInput(f"{self}: no figure may be below 0")
        if not 0 <= self.capacity_errors < 1:
            raise BadInput(f"capacity_errors={self.capacity_errors}: give a probability below 1")


@dataclass
class _Instance:
    launched_s: float
    ready_s: float
    gpu: int = -1
    gone_s: float = math.inf
    killed_s: float = math.inf
    draining: bool = False


@dataclass(frozen=True)
class Trial:
    """What came of it; all figures are simulated.

    outcomes: (outcomes,) requests by ``trace.Outcome``. ticks: (n, 6) time_s, target, ready, booting, draining and
    the demand in GPUs as of the signals. failed: launches that failed; kills: GPUs that were lost to spot kills.
    """

    policy: str
    span_s: float
    outcomes: npt.NDArray[np.int64]
    gpu_hours: float
    launches: int
    terminations: int
    failed: int
    kills: int
    mean_batch: float
    ticks: npt.NDArray[np.float64] = field(repr=False)

    @property
    def requests(self) -> int:
        return int(self.outcomes.sum())

    @property
    def attainment(self) -> float:
        return float(self.outcomes[Outcome.OK]) / max(1, self.requests)

    def to_dict(self) -> dict[str, Any]:
        kinds = (Outcome.OK, Outcome.LATE, Outcome.DROPPED, Outcome.REJECTED)
        return {
            "requests": self.requests,
            **{kind.name.lower(): int(self.outcomes[kind]) for kind in kinds},
            "attainment": self.attainment,
            "gpu_hours": self.gpu_hours,
            "launches": self.launches,
            "terminations": self.terminations,
            "launches_failed": self.failed,
            "spot_kills": self.kills,
            "mean_batch": self.mean_batch,
        }


def run_trial(
    work: Workload,
    name: str,
    policy: Policy,
    settings: Settings,
    cloud: FleetModel,
    *,
    start_gpus: int,
    tick_s: int = 10,
    seed: int = 0,
    memory: Memory | None = None,
    scheduling: str = "adaptive",
) -> Trial:
    """Serve ``work`` on the fleet that ``policy`` asks for.

    start_gpus: that are there when the first request comes; they are no launches. tick_s: whole seconds between
    decisions. seed: of boot times, failed launches and kills: the k-th launch draws the same whatever else happens.
    memory: what the policy has learned before. scheduling: the engine's policy.
    """
    if tick_s < 1:
        raise BadInput(f"tick_s={tick_s}: give whole seconds, at least 1")
    return _Run(work, policy, settings, cloud, start_gpus, tick_s, seed, memory or Memory(), scheduling).run(name)


class _Run:
    def __init__(
        self,
        work: Workload,
        policy: Policy,
        settings: Settings,
        cloud: FleetModel,
        start_gpus: int,
        tick_s: int,
        seed: int,
        memory: Memory,
        scheduling: str,
    ) -> None:
        self.policy, self.settings, self.cloud, self.tick_s, self.memory = policy, settings, cloud, tick_s, memory
        arrivals = work.arrivals_ns
        self.sim = Stepwise(
            work.models,
            arrivals,
            work.choices,
            work.slos_ns,
            policy=scheduling,
            most_gpus=2 * max(settings.maximum, start_gpus) + 1,
        )
        self.zero_ns = int(arrivals[0])
        self.span_s = math.ceil((int(arrivals[-1]) - self.zero_ns + 1) / NS_PER_S)
        self.models = work.models
        self.tables = [{GPU: model.profile_on(GPU).latency_ns()} for model in work.models]
        self.step_s = math.gcd(tick_s, STEP_S)
        self.was_bad = np.zeros(len(work.models))
        self.was_busy_s: dict[tuple[int, int], float] = {}
        self.seed, self.drawn = seed, 0
        self.sampler = Sampler()
        self.fleet: list[_Instance] = []
        for _ in range(start_gpus):
            self.fleet.append(self._new(0.0, booted=True))
            self.drawn += 1
        self.gone: list[_Instance] = []
        self.launches = self.terminations = self.failed = self.kills = 0
        self.ticks: list[tuple[float, ...]] = []

    def run(self, name: str) -> Trial:
        self._change(0.0)
        none = np.zeros(len(self.models))
        self.sampler.add(0.0, range(len(self.models)), none, none, none, [], [])
        for second in range(self.step_s, self.span_s + self.step_s, self.step_s):
            self.sim.run_until(self.zero_ns + second * NS_PER_S)
            self._change(float(second))
            self._sample(float(second))
            if second % self.tick_s == 0 and second < self.span_s:
                self._decide(float(second))
        self.sim.finish()
        for instance in [*self.fleet, *self.gone]:
            instance.gone_s = min(instance.gone_s, float(self.span_s))
        paid_s = sum(i.gone_s - i.launched_s for i in [*self.fleet, *self.gone])
        return Trial(
            policy=name,
            span_s=float(self.span_s),
            outcomes=self.sim.outcomes.sum(0),
            gpu_hours=paid_s / 3600,
            launches=self.launches,
            terminations=self.terminations,
            failed=self.failed,
            kills=self.kills,
            mean_batch=self.sim.batched / max(1, self.sim.batches),
            ticks=np.array(self.ticks).reshape(-1, 6),
        )

    def _change(self, now_s: float) -> None:
        """Take in GPUs that have booted, and take out those that were killed or have drained."""
        there = set(self.sim.slots)
        for instance in list(self.fleet):
            if instance.gpu < 0 and instance.ready_s <= now_s:
                instance.gpu = self.sim.add_gpu()
            elif instance.gpu in there and instance.killed_s <= now_s:
                self.sim.lose_gpu(instance.gpu)
                self.kills += 1
                self._gone(instance, now_s)
            elif instance.draining and instance.gpu not in there:
                self._gone(instance, now_s)

    def _gone(self, instance: _Instance, now_s: float) -> None:
        instance.gone_s = now_s
        self.fleet.remove(instance)
        self.gone.append(instance)

    def _serving(self, now_s: float) -> list[_Instance]:
        """Those that count, by rank: they take batches, and no notice was given."""
        ready = [i for i in self.fleet if i.gpu >= 0 and not i.draining and i.killed_s - SPOT_NOTICE_S > now_s]
        return sorted(ready, key=lambda i: i.gpu)

    def _sample(self, now_s: float) -> None:
        """Tell the sampler of each second since it was told last; only arrivals are known second by second."""
        sim, keys, n = self.sim, range(len(self.models)), self.step_s
        bad = sim.outcomes[:, [Outcome.LATE, Outcome.DROPPED, Outcome.REJECTED]].sum(1)
        slots = [(id(i), i.gpu) for i in self.fleet if i.gpu >= 0]
        busy_s = np.array([sim.busy_ns[gpu] / NS_PER_S for _, gpu in slots])
        was_busy_s = np.array([self.was_busy_s.get(slot, 0.0) for slot in slots])
        ongoing, start_s = sim.ongoing(), now_s - n
        arrived = sim.arrived_by(self.zero_ns + (int(start_s) + np.arange(1, n + 1)) * NS_PER_S)
        for i in range(n):
            part = (i + 1) / n
            self.sampler.add(
                start_s + i + 1,
                keys,
                arrived[i],
                self.was_bad + part * (bad - self.was_bad),
                ongoing,
                slots,
                was_busy_s + part * (busy_s - was_busy_s),
            )
        self.was_bad, self.was_busy_s = bad, dict(zip(slots, busy_s.tolist(), strict=True))

    def signals(self, now_s: float) -> Signals:
        """What a live policy would be told now."""
        queued = self.sim.queued()
        models = {
            m: ModelFacts(model.name, model.slo_ns, int(queued[m]), self.tables[m])
            for m, model in enumerate(self.models)
        }
        counting = {id(i) for i in self._serving(now_s)}
        gpus = {
            (id(i), i.gpu): GpuFacts(i.gpu, i.gpu, GPU, f"simulated-{i.gpu}", id(i) not in counting)
            for i in self.fleet
            if i.gpu >= 0
        }
        return Signals.from_reply(self.sampler.reply(models, gpus))

    def _decide(self, now_s: float) -> None:
        signals, serving = self.signals(now_s), self._serving(now_s)
        booting = sorted((i for i in self.fleet if i.gpu < 0), key=lambda i: i.launched_s)
        others = len(self.fleet) - len(serving) - len(booting)
        fleet = Fleet(len(serving), len(booting), others)
        self.memory, target = self.policy(self.settings, self.memory, signals, fleet)
        self.ticks.append((now_s, target.gpus, len(serving), len(booting), others, demand(signals)))
        for _ in range(target.gpus - len(serving) - len(booting)):
            self._launch(now_s)
        for instance in [*serving, *booting][target.gpus :]:
            self.terminations += 1
            if instance.gpu < 0:
                self._gone(instance, now_s)
            else:
                instance.draining = True
                self.sim.drain_gpu(instance.gpu)

    def _launch(self, now_s: float) -> None:
        if self._draw().random() < self.cloud.capacity_errors:
            self.failed += 1
        else:
            self.launches += 1
            self.fleet.append(self._new(now_s, booted=False))
        self.drawn += 1

    def _new(self, now_s: float, *, booted: bool) -> _Instance:
        cloud, random = self.cloud, self._draw().spawn(1)[0]
        kill_hours = random.exponential() / cloud.spot_kills_per_hour if cloud.spot_kills_per_hour else math.inf
        boot_s = 0.0 if booted else cloud.boot_s
        if cloud.boot_spread > 0:
            boot_s *= random.gamma(cloud.boot_spread**-2, cloud.boot_spread**2)
        return _Instance(now_s, now_s + boot_s, killed_s=now_s + boot_s + kill_hours * 3600)

    def _draw(self) -> np.random.Generator:
        """The random stream of the next launch."""
        return np.random.Generator(np.random.PCG64(np.random.SeedSequence(self.seed, spawn_key=(self.drawn,))))
