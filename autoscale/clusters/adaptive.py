"""Scales any Dask cluster by Symphony's policies: ``cluster.adapt(Adaptive=autoscale.Adaptive, minimum=0, maximum=8)``.

Dask's loop calls ``target``, then ``recommendations``, then ``scale_up`` or ``scale_down``, every ``interval``. What is
different here:
1. The target comes from a policy on the signals of the scheduler's plugin, not from Dask's tasks.
2. Who goes: workers that have not joined yet, then those whose GPUs have the highest ranks, which are the idle ones.
3. Nobody is retired with work: a victim is *drained* first (it gets no more batches), beside the loop, and counts as
   away from then on.
4. A worker that does not join in time is given up, so that another can be asked for; Dask would wait for ever.
5. Workers may have other names than the cluster's plan has for them; those of ``dask-cloudprovider`` its objects know.
6. ``SSHCluster`` makes no new workers, as it has a list of hosts (a *pool*): it gets back those that it let go. Its
   workers have names of their own: such a *stranger* is one of the planned, and which one shows when its process ends.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Hashable, Iterable
from contextlib import suppress
from dataclasses import replace
from inspect import isawaitable
from typing import Any

import distributed

from autoscale.policies.registry import POLICIES, Fleet, Memory, Policy, Settings
from autoscale.policies.signals import Signals
from symphony_dask.errors import BadInput, SymphonyError
from symphony_dask.text import did_you_mean
from symphony_dask.units import NS_PER_S, parse_duration_ns
from symphony_dask.wire.rpc_replies import value_of

logger = logging.getLogger(__name__)

#: How often a worker that drains is looked at, and how long one that is being retired is waited for.
_LOOK_S, _RETIRE_S = 0.1, 5.0

#: How long the process of a worker that was retired may take to end, s.
_END_S = 10.0

#: Stands for no bound, where Dask has infinity.
UNBOUNDED = 1 << 20


#: Dask's own, whose types do not say what it takes.
_DaskAdaptive: Any = distributed.Adaptive


class Adaptive(_DaskAdaptive):
    """Scales ``cluster`` by a policy on the load of its Symphony models; for ``cluster.adapt(Adaptive=Adaptive, ...)``.

    interval: how often to look, "1s".
    minimum, maximum: workers.
    wait_count: how many looks in a row must want fewer workers before any goes; policies have windows of their own for
        that, so the default is 1.
    policy: a name in ``autoscale.policies.registry.POLICIES``, or a function of that shape.
    settings: of the policy; ``minimum`` and ``maximum`` in it are in GPUs, and are set from those above.
    gpus_per_worker: of workers that have not joined yet; by default what those that have joined show, 1 at first.
    drain_deadline: how long a victim's batches in flight may take; what is left then runs elsewhere.
    join_timeout: how long a worker may take to join before it is given up.

    While the scheduler does not run the plugin (``Serving(client)`` installs it) the cluster stays as it is.
    Raises ``BadInput``.
    """

    def __init__(
        self,
        cluster: object,
        interval: str | float = "1s",
        minimum: int | None = None,
        maximum: int | float | None = None,
        wait_count: int = 1,
        *,
        policy: str | Policy = "load_proportional",
        settings: Settings | None = None,
        gpus_per_worker: int | None = None,
        drain_deadline: str = "30s",
        join_timeout: str = "15min",
        **kwargs: object,
    ) -> None:
        if isinstance(policy, str):
            if policy not in POLICIES:
                raise BadInput(
                    f"policy {policy!r} is unknown: choose one of {', '.join(POLICIES)}{did_you_mean(policy, POLICIES)}"
                )
            policy = POLICIES[policy]
        if gpus_per_worker is not None and gpus_per_worker < 1:
            raise BadInput(f"gpus_per_worker={gpus_per_worker!r}: give a whole number, at least 1")
        self.policy = policy
        self.settings = settings or Settings()
        self.why = ""
        self._gpus_per_worker = gpus_per_worker
        self._drain_deadline_s = parse_duration_ns(drain_deadline, "drain_deadline") / NS_PER_S
        self._join_timeout_s = parse_duration_ns(join_timeout, "join_timeout") / NS_PER_S
        self._memory = Memory()
        self._seen: Signals | None = None
        self._fewer_wanted = 0
        self._asked_for: dict[Hashable, float] = {}
        self._draining: set[Hashable] = set()
        #: Of a pool: what it needs to have those again that it let go, by name.
        self._spare: dict[Hashable, Any] = {}
        self._removing = asyncio.Lock()
        self._retiring: set[asyncio.Task[None]] = set()
        super().__init__(cluster, interval=interval, minimum=minimum, maximum=maximum, wait_count=wait_count, **kwargs)

    #: Until Dask sets it: an object that could not be made is collected too.
    state: Any = "inactive"

    async def target(self) -> int:
        """How many workers the policy wants, draining ones not counted."""
        self._seen = await self._signals()
        if self._seen is None:
            return len(self._remaining())
        ready = sum(not gpu.draining for gpu in self._seen.gpus)
        each = self._gpus_each()
        fleet = Fleet(
            ready=ready,
            booting=each * len(self._remaining() - self.observed),
            draining=len(self._seen.gpus) - ready,
        )
        most = UNBOUNDED if math.isinf(self.maximum) else int(self.maximum) * each
        settings = replace(self.settings, minimum=self.minimum * each, maximum=most)
        self._memory, target = self.policy(settings, self._memory, self._seen, fleet)
        self.why = target.why
        if target.gpus == 0 and not self._seen.gpus and await self._loading():
            self.why = "a model waits for a first worker"
            return 1
        return math.ceil(target.gpus / each)

    async def recommendations(self, target: int) -> dict[str, Any]:
        if len(self.plan) != len(self.requested):
            await self.cluster
        overdue = self._overdue()
        if overdue:
            logger.warning("workers %s did not join within %g s: given up", overdue, self._join_timeout_s)
            return {"status": "down", "workers": overdue}
        remaining = self._remaining()
        if target >= len(remaining):
            self._fewer_wanted = 0
            if target == len(remaining):
                return {"status": "same"}
            # Dask's number is of all workers, and those that drain are among them until they have gone.
            return {"status": "up", "n": target + len(self.plan) - len(remaining)}
        self._fewer_wanted += 1
        victims = self._victims(len(remaining) - target) if self._fewer_wanted >= self.wait_count else []
        return {"status": "down", "workers": victims} if victims else {"status": "same"}

    async def scale_up(self, n: int) -> None:
        """Have ``n`` workers, those that drain counted; those first that drain and can be kept."""
        missing = n - len(self.plan)
        address_of = {name: address for address, name in self._names().items()}
        draining = [address_of[name] for name in self._draining if name in address_of][:missing]
        if draining:
            kept = set(value_of(await self.scheduler.symphony_undrain(workers=draining)))
            self._draining = {name for name in self._draining if address_of.get(name) not in kept}
            n -= len(kept)
        if n <= len(self.plan):
            return
        if not self._pool:
            await super().scale_up(n)
        elif self._spare:
            names = list(self._spare)[: n - len(self.plan)]
            self.cluster.worker_spec.update({name: self._spare.pop(name) for name in names})
            await self.cluster

    async def scale_down(self, workers: Iterable[Hashable]) -> None:
        """Let workers go, by name: at once those that have not joined, the others when they have been drained."""
        workers = [workers] if isinstance(workers, (str, int)) else list(workers)
        absent = [name for name in workers if name not in self.observed]
        if absent:
            await self._remove(absent)
        jobs: dict[Hashable, list[Hashable]] = {}
        for name in workers:
            if name not in absent:
                jobs.setdefault(self._job(name), []).append(name)
        for names in jobs.values():
            self._draining.update(names)
            task = asyncio.ensure_future(self._drain_and_retire(names))
            self._retiring.add(task)
            task.add_done_callback(self._retiring.discard)

    def stop(self, reason: str = "unknown") -> None:
        for task in list(getattr(self, "_retiring", ())):
            with suppress(RuntimeError):  # its loop has ended before it
                task.get_loop().call_soon_threadsafe(task.cancel)
        super().stop(reason=reason)

    async def _drain_and_retire(self, names: list[Hashable]) -> None:
        addresses = [address for address, name in self._names().items() if name in names]
        end = time.monotonic() + self._drain_deadline_s
        try:
            value_of(await self.scheduler.symphony_drain(workers=addresses, why="scale-in"))
            while self._draining.issuperset(names):
                force = time.monotonic() >= end
                ask = self.scheduler.symphony_retire(workers=addresses, force=force, wait_s=_RETIRE_S)
                states = value_of(await ask)
                if all(states.get(address) == "retired" for address in addresses):
                    await self._remove(names)
                    return
                await asyncio.sleep(_LOOK_S)
        except (OSError, SymphonyError) as error:
            # They stay, and the next look decides anew.
            logger.warning("workers %s were not retired: %s", names, error)
        finally:
            self._draining.difference_update(names)

    async def _remove(self, names: list[Hashable]) -> None:
        if not self._pool:
            await self._scale_down(names)
            return
        async with self._removing:  # a process that has ended stands for one stranger
            names = await self._ended(names)
            self._spare.update({name: self.cluster.worker_spec[name] for name in names})
            await self._scale_down(names)

    async def _scale_down(self, names: list[Hashable]) -> None:
        removed = self.cluster.scale_down(names)
        if isawaitable(removed):
            await removed

    async def _ended(self, names: list[Hashable]) -> list[Hashable]:
        """The names in a pool's plan of workers that were retired: for each stranger one whose process has ended."""
        planned = [name for name in names if name in self.plan]
        end = time.monotonic() + _END_S
        while len(planned) < len(names) and time.monotonic() < end:
            for name, worker in self.cluster.workers.items():
                ended = getattr(getattr(worker, "proc", None), "exit_status", None) is not None
                if ended and name in self.plan and name not in planned and len(planned) < len(names):
                    planned.append(name)
            await asyncio.sleep(_LOOK_S)
        if len(planned) < len(names):
            logger.warning("of %s not all processes ended within %g s of their retirement", names, _END_S)
        return planned

    @property
    def _pool(self) -> bool:
        return not getattr(self.cluster, "new_spec", True)

    @property
    def observed(self) -> set[Hashable]:
        return set(self._names().values())

    def _unplanned(self) -> set[Hashable]:
        """Workers of a pool that have joined, or drain and may have left, of which its plan does not know the names."""
        return (self.observed | self._draining) - set(self.plan) if self._pool else set()

    def _remaining(self) -> set[Hashable]:
        """Workers that are there or on their way, and are not to go."""
        plan, unplanned = set(self.plan), self._unplanned()
        absent = sorted(plan - self.observed, key=str)[len(unplanned) :]
        return (plan & self.observed | unplanned | set(absent)) - self._draining

    def _names(self) -> dict[str, Hashable]:
        """Names of the workers that have joined, by address: the plan's, or their own where it has others."""
        plan = set(self.plan)
        objects = getattr(self.cluster, "workers", {})
        planned = {getattr(worker, "name", None): name for name, worker in objects.items()}
        own = {address: worker["name"] for address, worker in self.cluster.scheduler_info["workers"].items()}
        return {address: name if name in plan else planned.get(name, name) for address, name in own.items()}

    def _gpus_each(self) -> int:
        """GPUs of a worker."""
        if self._gpus_per_worker is not None:
            return self._gpus_per_worker
        slots: dict[str, int] = {}
        for gpu in self._seen.gpus if self._seen is not None else ():
            slots[gpu.worker] = slots.get(gpu.worker, 0) + 1
        return max(slots.values(), default=1)

    def _overdue(self) -> list[Hashable]:
        now = time.monotonic()
        # Of a stranger nobody knows which of the absent it is.
        absent = set() if self._unplanned() else set(self.requested) - self.observed
        self._asked_for = {name: self._asked_for.get(name, now) for name in absent}
        return [name for name, since in self._asked_for.items() if now - since >= self._join_timeout_s]

    def _victims(self, excess: int) -> list[Hashable]:
        """Whom to let go of, ``excess`` workers at most: first who has not joined, then by falling rank of their GPUs.

        Workers of one job of the cluster's (a ``group`` of ``SpecCluster``) can only go together.
        """
        names = self._names()
        there = self._remaining() & self.observed if self._unplanned() else self._remaining()
        rank: dict[Hashable, float] = dict.fromkeys(there, math.inf)
        for address, name in names.items():
            # A worker that serves nothing is worth less than any that does.
            ranks = [gpu.rank for gpu in self._seen.gpus if gpu.worker == address] if self._seen is not None else []
            if name in rank:
                rank[name] = min(ranks, default=UNBOUNDED)
        jobs: dict[Hashable, list[Hashable]] = {}
        for name in rank:
            jobs.setdefault(self._job(name), []).append(name)
        victims: list[Hashable] = []
        for members in sorted(jobs.values(), key=lambda members: -min(rank[name] for name in members)):
            if len(victims) + len(members) <= excess:
                victims += members
        return victims

    def _job(self, name: Hashable) -> Hashable:
        for job, spec in getattr(self.cluster, "worker_spec", {}).items():
            if "group" in spec and name in {f"{job}{suffix}" for suffix in spec["group"]}:
                return job
        return name

    async def _signals(self) -> Signals | None:
        if not await self.scheduler.get_metadata(keys=["symphony"], default=None):
            return None
        return Signals.from_reply(value_of(await self.scheduler.symphony_signals()))

    async def _loading(self) -> bool:
        """Whether a deployment waits for a worker to load its model on."""
        return bool(value_of(await self.scheduler.symphony_status())["loading"])
