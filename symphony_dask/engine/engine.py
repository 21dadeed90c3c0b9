"""Presents the engine to Python: calls with a time go in, batches and drops come out. No clock, no I/O."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from symphony_dask.engine import bounds, compiled_calls, kernels
from symphony_dask.engine.batching import AS_ALL, PREFER, Batching
from symphony_dask.engine.compiled_calls import ArrayTable
from symphony_dask.engine.events import Journal
from symphony_dask.engine.policy import eligibility, speed_tracking, trials, window
from symphony_dask.engine.policy.window import POLICIES
from symphony_dask.engine.queue_limits import DEFAULT_QUEUE_LIMIT, MOST_PRIORITY
from symphony_dask.engine.start_rules import UNKNOWN
from symphony_dask.engine.state import (
    ABSENT,
    BATCH,
    DEPTH,
    EVICTED,
    IDLE,
    NEVER,
    ONE,
    REMOVED,
    UNUSED,
    Profiles,
    State,
    grown,
    grown_profiles,
    ineligible_rows,
    make_profiles,
    make_state,
    pairs,
    records,
)

QUEUE_FULL = kernels.QUEUE_FULL
NO_MODEL = kernels.NO_MODEL

Ints = npt.NDArray[np.int64]
Slots = npt.NDArray[np.int32]


class Decisions(NamedTuple):
    """What ``advance`` decided. The arrays are the engine's own: read them before the next call.

    batches: records of ``state.BATCH``, in order of dispatch; a row's requests are members[offset:offset + size].
    members: request slots, in deadline order within a batch.
    drops: request slots whose deadline can no longer be met; they are free again.
    """

    batches: npt.NDArray[Any]
    members: Slots
    drops: Slots


_NOTHING = Decisions(records(0, BATCH), np.empty(0, np.int32), np.empty(0, np.int32))


class Removal(NamedTuple):
    """What a GPU or a model left behind: request slots back in their queues, and slots that ended."""

    requeued: Slots
    ended: Slots


def check_batching(batching: Batching) -> None:
    """Raise ``ValueError`` unless a model can have it."""
    if batching.policy is not None:
        _parse_policy(batching.policy)
    if batching.prefer not in PREFER:
        raise ValueError(f"prefer={batching.prefer!r:.60}: choose {' or '.join(PREFER)}")
    if batching.max_delay_ns is not None:
        bounds.within("max_delay_ns", batching.max_delay_ns, 0, bounds.LONGEST)


def _parse_policy(name: str) -> tuple[int, float]:
    """The number of a policy and the fraction of "timeout"; raises ``ValueError``."""
    base, bracket, rest = name.partition("(")
    fraction = 0.5
    if base == "timeout" and bracket:
        try:
            fraction = float(rest.removesuffix(")"))
        except ValueError:
            fraction = -1.0
    if base not in POLICIES or (bracket and base != "timeout") or not 0.0 <= fraction <= 1.0:
        raise ValueError(f"policy {name!r:.60} is unknown: choose one of {', '.join(POLICIES)}, or timeout(FRACTION)")
    return POLICIES[base], fraction


class Engine:
    """Deferred batch scheduling for any number of models and GPU slots.

    Times are int64 ns on one clock of the caller's, never going back from call to call. A request is known by its slot,
    a small int from ``submit`` on; the slot is used again once the request was dropped, cancelled or completed.
    The same calls give the same decisions, bit for bit. A call that names a model, a GPU or a slot that the engine does
    not have, or a number that it has no room for (``bounds``), raises ``ValueError`` and changes nothing.

    policy: a name in ``POLICIES``.
    exact: batches end when predicted, and ``completed`` is never called (simulation without noise).
    max_requests: most requests that may be queued and in flight together.
    """

    def __init__(self, policy: str = "adaptive", *, exact: bool = False, max_requests: int = 65_536) -> None:
        bounds.within("max_requests", max_requests, 1, bounds.MOST_INT)
        self._table: ArrayTable | None = None
        self.state = make_state(max_requests, 8, 8, 2, 128)
        self.profiles = make_profiles(8, 2, 128)
        self.state.g["exact"] = int(exact)
        self._evicted = records(1, EVICTED)
        #: Records of ``state.EVICTED``: requests that the last ``submit`` evicted. Their slots may be in use again.
        self.evicted: npt.NDArray[Any] = self._evicted[:0]
        #: Grows by a row for each call that changes the engine; see ``engine/journal.py``.
        self.journal: Journal | None = None
        self.policy = policy

    @property
    def state(self) -> State:
        return self._state

    @state.setter
    def state(self, state: State) -> None:
        self._state = state
        self._n_slots, self._n_models, self._n_gpus = len(state.req), len(state.mod), len(state.gpu)
        self._flight_batches, self._flight_rules = state.flight["batch"], state.flight["rule"]
        table = ArrayTable(state)
        if self._table is not None:
            self._table.retire()
        self._table = table

    @property
    def table(self) -> ArrayTable:
        """What stands for the state in calls of ``compiled_calls``; another one whenever the engine grows."""
        assert self._table is not None
        return self._table

    @property
    def profiles(self) -> Profiles:
        return self._profiles

    @profiles.setter
    def profiles(self, profiles: Profiles) -> None:
        self._profiles = profiles
        self._profiles_table = ArrayTable(profiles)

    @property
    def policy(self) -> str:
        code = int(self.state.g["policy"][0])
        name = next(name for name, value in POLICIES.items() if value == code)
        return f"timeout({self.state.g['fraction'][0]:g})" if code == window.TIMEOUT else name

    @policy.setter
    def policy(self, name: str) -> None:
        code, fraction = _parse_policy(name)
        self._note("policy", 0, data=name.encode())
        self.state.g["policy"] = code
        self.state.g["fraction"] = fraction
        self.state.g["fleet_changed"] = 1  # every window is to be drawn again

    def set_batching(self, now: int, model: int, batching: Batching) -> None:
        """Say how a model's batches are formed, in place of what was said before. A delay is counted from a request's
        deadline less the model's SLO.
        """
        policy, prefer, max_delay_ns = batching
        self._check_served(model)
        check_batching(batching)
        own, fraction = (-1, 0.0) if policy is None else _parse_policy(policy)
        self._note(
            "batching", now, model, PREFER.index(prefer), -1 if max_delay_ns is None else max_delay_ns,
            data=(policy or "").encode(),
        )  # fmt: skip
        mod = self.state.mod
        limits = [] if max_delay_ns is None else [max_delay_ns]
        if own == window.TIMEOUT:
            limits.append(int(fraction * int(mod["slo"][model])))
        mod["own_policy"][model] = own + 1
        mod["prefers_gpus"][model] = PREFER.index(prefer)
        mod["delay"][model] = 1 + min(limits) if limits else 0
        self.state.g["fleet_changed"] = 1

    def add_model(
        self,
        now: int,
        *,
        slo_ns: int,
        latency_ns: Mapping[int, Ints],
        queue_limit: int = DEFAULT_QUEUE_LIMIT,
        batching: Batching = AS_ALL,
    ) -> int:
        """Take in a model; returns its index, the lowest unused one.

        latency_ns: for each GPU class l(b) in ns for b = 0 .. max_batch + 1 (``LatencyProfile.latency_ns``); all of one
            length, every class that has GPUs among them.
        """
        lengths = {len(table) for table in latency_ns.values()}
        for c, table in latency_ns.items():
            self._check_table(c, table)
        if len(lengths) != 1:
            raise ValueError(f"latency tables have lengths {sorted(lengths)}: give one or more, all of one max_batch")
        missing = [c for c in np.flatnonzero(self.state.present) if c not in latency_ns]
        if missing:
            raise ValueError(f"no latency table for GPU classes {missing}, which have GPUs")
        bounds.within("slo_ns", slo_ns, 1, bounds.LONGEST)
        bounds.within("queue_limit", queue_limit, 1, bounds.MOST_INT)
        unused = np.flatnonzero(self.state.mod["state"] == UNUSED)
        m = int(unused[0]) if len(unused) else len(self.state.mod)
        max_batch = lengths.pop() - 2
        self._grow(models=m + 1, classes=max(latency_ns) + 1, max_batch=max_batch)
        tables = b"".join(np.int64(c).tobytes() + np.asarray(t, np.int64).tobytes() for c, t in latency_ns.items())
        self._note("add_model", now, slo_ns, queue_limit, len(latency_ns), data=tables)
        for c, table in latency_ns.items():
            self._set_table(m, c, table)
        kernels.add_model(self.state, now, m, slo_ns, max_batch, queue_limit)
        if batching != AS_ALL:
            self.set_batching(now, m, batching)
        return m

    def update_profile(self, now: int, model: int, gpu_class: int, latency_ns: Ints) -> None:
        """Replace l(b) of a model on a GPU class; the length must be that of the model's other tables."""
        self._check_served(model)
        self._check_table(gpu_class, latency_ns)
        max_batch = int(self.state.mod["max_batch"][model])
        if len(latency_ns) != max_batch + 2:
            raise ValueError(f"latency table has {len(latency_ns)} entries: model {model} needs {max_batch + 2}")
        self._grow(classes=gpu_class + 1)
        self._note("update_profile", now, model, gpu_class, data=np.asarray(latency_ns, np.int64).tobytes())
        self._set_table(model, gpu_class, latency_ns)
        self.state.g["fleet_changed"] = 1

    def _set_table(self, m: int, gpu_class: int, table: Ints) -> None:
        for tables in (self.profiles.given, self.state.lat):
            tables[m, gpu_class, : len(table)] = table
        self.state.lat[m, gpu_class, 0] = ONE
        self.profiles.drift[m, gpu_class] = self.profiles.acting[m, gpu_class] = 1.0
        self.profiles.heard_at[m, gpu_class] = self.profiles.heard_on[m, gpu_class] = 0
        pairs(self.state)[self.state.gpu["gpu_class"] == gpu_class, m] = 0

    def remove_model(self, now: int, model: int) -> Slots:
        """Forget a model; returns the slots of its queued requests, now free. Batches in flight end as usual."""
        self._check_served(model)
        self._note("remove_model", now, model)
        kernels.clear_output(self.state)
        kernels.remove_model(self.state, now, model)
        self.profiles.given[model] = -1
        return self._drops().copy()

    def add_gpu(self, now: int, *, gpu_class: int = 0, rank: int | None = None, control_ns: int = 0) -> int:
        """Take in a GPU slot; returns its index, the lowest unused one, which is also its rank unless one is given."""
        bounds.within("gpu_class", gpu_class, 0, bounds.MOST_CLASSES - 1)
        bounds.within("rank", rank or 0, -bounds.MOST_INT, bounds.MOST_INT)
        bounds.within("control_ns", control_ns, -bounds.LONGEST, bounds.LONGEST)
        live = np.flatnonzero((self.state.mod["state"] != UNUSED) & (self.state.mod["state"] != REMOVED))
        self._grow(classes=gpu_class + 1)
        unprofiled = [int(m) for m in live if self.state.lat[m, gpu_class, 1] < 0]
        if unprofiled:
            raise ValueError(f"models {unprofiled} have no latency table for GPU class {gpu_class}")
        absent = np.flatnonzero(self.state.gpu["state"] == ABSENT)
        g = int(absent[0]) if len(absent) else len(self.state.gpu)
        self._grow(gpus=g + 1)
        self._note("add_gpu", now, gpu_class, -1 if rank is None else rank, control_ns, g)
        kernels.add_gpu(self.state, now, g, gpu_class, g if rank is None else rank, control_ns)
        return g

    def drain_gpu(self, now: int, gpu: int) -> None:
        """Give a GPU no more batches; ``in_flight(gpu)`` tells when it has ended those it has."""
        self._check_present(gpu)
        self._note("drain_gpu", now, gpu)
        kernels.drain_gpu(self.state, now, gpu)

    def remove_gpu(self, now: int, gpu: int) -> Removal:
        """Forget a GPU at once. Its requests in flight return to their queues; those of a removed model end."""
        self._check_present(gpu)
        self._note("remove_gpu", now, gpu)
        kernels.clear_output(self.state)
        kernels.remove_gpu(self.state, now, gpu)
        return Removal(self.state.members[: self.state.g["n_members"][0]].copy(), self._drops().copy())

    def set_eligible(self, now: int, model: int, gpu: int, can_run: bool) -> None:
        """Say whether a GPU can run a model, as it can until something else is said; see
        ``engine/policy/eligibility.py``.
        """
        self._check_served(model)
        self._check_present(gpu)
        self._note("able", now, model, gpu, int(can_run))
        kernels.set_eligible(self.state, model, gpu, can_run)

    def can_run(self, model: int, gpu: int) -> bool:
        """Whether a GPU can run a model."""
        m = self._model(model)
        return not int(ineligible_rows(self.state)[self._gpu(gpu), m // 16]) >> m % 16 & 1

    def in_flight(self, gpu: int) -> int:
        """Batches at a GPU."""
        return int(self.state.gpu["n_flight"][self._gpu(gpu)])

    def submit(
        self, now: int, models: Slots, deadlines: Ints, requests: Ints, priorities: Slots | None = None
    ) -> Slots:
        """Queue requests; returns for each its slot, or QUEUE_FULL or NO_MODEL.

        models (n,) int32; deadlines (n,) int64, ns, of the end of work on the GPU; requests (n,) int64, the caller's
        names for them; priorities (n,) int32, 0 to MOST_PRIORITY, by default 0. Where there is no room, a request has
        one of lower priority evicted: ``evicted`` names those of earlier calls, and of this call they get QUEUE_FULL.
        """
        n = len(models)
        if len(deadlines) != n or len(requests) != n or (priorities is not None and len(priorities) != n):
            raise ValueError(
                f"{n} models, {len(deadlines)} deadlines, {len(requests)} requests: give one of each a request"
            )
        bounds.within("deadline", deadlines, -bounds.LATEST, bounds.LATEST)
        slots = np.empty(n, np.int32)
        # Read-only arrays are another type to the compiler, which would compile everything again.
        assert models.flags.writeable
        assert deadlines.flags.writeable
        assert requests.flags.writeable
        if priorities is None:
            priorities = np.zeros(n, np.int32)
        else:
            bounds.within("priority", priorities, 0, MOST_PRIORITY)
            if len(self._evicted) < n:
                self._evicted = records(2 * n, EVICTED)
        n = kernels.submit(self.state, now, models, deadlines, requests, priorities, slots, self._evicted)
        self.evicted = self._evicted[:n]
        return slots

    def cancel(self, now: int, slot: int) -> bool:
        """True when the request left its queue and its slot is free; False when it is in flight."""
        if not 0 <= slot < self._n_slots:
            raise ValueError(f"request slot {slot} is not there: they are 0 to {self._n_slots - 1}")
        self._note("cancel", now, slot)
        return bool(compiled_calls.cancel(self.table, now, slot))

    def completed(self, now: int, gpu: int, batch: int, start_ns: int, end_ns: int) -> bool:
        """A batch ran from ``start_ns`` to ``end_ns``: its slots are free. False when the GPU has no such batch.

        What it took is compared with l(b), and plans follow (``engine/policy/speed_tracking.py``). ``start_ns`` is
        NEVER where the times tell nothing of l(b), as when the model raised.
        """
        self._gpu(gpu)
        if not (abs(start_ns) <= bounds.LATEST and abs(end_ns) <= bounds.LATEST):
            raise ValueError(f"batch from {start_ns} to {end_ns}: times must be within {bounds.LATEST} ns of 0")
        self._note("completed", now, gpu, batch, start_ns, end_ns)
        return bool(compiled_calls.completed(self.table, self._profiles_table, now, gpu, batch, start_ns, end_ns))

    def slowdown(self, gpu: int) -> float:
        """Execution time of a GPU over that of its class as several models observed it; 1 until they agree."""
        return float(self.state.gpu["slowdown"][self._gpu(gpu)])

    def is_slow(self, gpu: int) -> bool:
        """Whether a GPU is so much slower than its class that it is used last."""
        return bool(self.state.gpu["slow"][self._gpu(gpu)])

    def drift(self, model: int, gpu_class: int = 0) -> float:
        """Execution time of a model on a GPU class over the l(b) given for it, as observed, smoothed."""
        if not 0 <= gpu_class < self.profiles.drift.shape[1]:
            raise ValueError(f"GPU class {gpu_class} is not there: they are 0 to {self.profiles.drift.shape[1] - 1}")
        return float(self.profiles.drift[self._model(model), gpu_class])

    def latency_ns(self, model: int, gpu_class: int = 0) -> Ints:
        """l(b) of a model on a GPU class as it is planned with, (max_batch + 2,) in ns; entry 0 is 0."""
        table = self.state.lat[self._model(model), gpu_class, : int(self.state.mod["max_batch"][model]) + 2].copy()
        table[0] = 0
        return table

    def alone_ns(self, now: int, model: int) -> tuple[int, int]:
        """l(1) of a model in ns on the best GPU for it, as declared and as planned; NEVER where no GPU can run it."""
        declared, planned = trials.alone(self.state, self._model(model), now)
        return int(declared), int(planned)

    def advance(self, now: int) -> Decisions:
        """Decide all that is due at ``now``."""
        return self.step(now)[0]

    def rule(self, gpu: int, batch: int) -> int:
        """Which of ``START_RULES`` let a batch start that is at the GPU; UNKNOWN, 0, if it is not there."""
        for i in range(DEPTH * self._gpu(gpu), DEPTH * (gpu + 1)):
            if self._flight_batches[i] == batch:
                return int(self._flight_rules[i])
        return UNKNOWN

    def step(self, now: int) -> tuple[Decisions, int]:
        """``advance`` and ``next_event`` in one call."""
        state = self._state
        at, n_batches, n_members, n_drops = compiled_calls.step(self.table, now)
        if n_batches == 0 and n_drops == 0:
            if self.journal is not None:
                self.journal.note("step", now)
            return _NOTHING, at
        decisions = Decisions(state.batches[:n_batches], state.members[:n_members], state.drops[:n_drops])
        if self.journal is not None:
            data = b"".join([part.tobytes() for part in decisions])
            self.journal.note("step", now, n_batches, n_drops, 0, 0, data)
        return decisions, at

    def next_event(self) -> int:
        """When to call ``advance`` next if nothing else happens; ``NEVER`` when there is nothing to wait for."""
        return int(kernels.next_event(self.state))

    def set_control(self, now: int, control_ns: int, gpu: int | None = None) -> None:
        """Set the control latency that windows allow for, or that of one GPU, in ns."""
        if not abs(control_ns) <= bounds.LONGEST:
            raise ValueError(f"control_ns={control_ns}: must be within {bounds.LONGEST} ns of 0")
        if gpu is not None:
            self._gpu(gpu)
        self._note("control", now, control_ns, -1 if gpu is None else gpu)
        if gpu is None:
            self.state.g["control"] = control_ns
        else:
            compiled_calls.set_control(self.table, now, gpu, control_ns)

    def set_slack(self, slack_ns: int, share: float = 0.0) -> None:
        """Open windows before frontrun by ``slack_ns`` and a share of the model's SLO, for a host whose estimates err.

        A window drawn already keeps its opening until its model is next looked at; so it is with ``set_control``.
        """
        bounds.within("slack_ns", slack_ns, -bounds.LONGEST, bounds.LONGEST)
        bounds.within("share of slack", share, 0, bounds.MOST_SHARE)
        self._note("slack", 0, slack_ns, data=np.float64(share).tobytes())
        self.state.g["slack"] = slack_ns
        self.state.g["slack_share"] = share

    def queued(self, model: int) -> int:
        """Requests in a model's queue."""
        return int(self.state.mod["n"][self._model(model)])

    def work(self, model: int) -> float:
        """How many GPUs a model's requests fill, at the rate observed and the batch size that it aims for."""
        mod = self.state.mod[self._model(model)]
        return float(mod["rate"] * self.state.lat[model, mod["gpu_class"], mod["target"]] / max(1, mod["target"]))

    def target(self, model: int) -> int:
        """The batch size that a model aims for now."""
        return int(self.state.mod["target"][self._model(model)])

    def _model(self, m: int) -> int:
        if not 0 <= m < self._n_models:
            raise ValueError(f"model {m} is not there: the engine has 0 to {self._n_models - 1}")
        return m

    def _gpu(self, g: int) -> int:
        if not 0 <= g < self._n_gpus:
            raise ValueError(f"GPU {g} is not there: the engine has 0 to {self._n_gpus - 1}")
        return g

    def _check_served(self, m: int) -> None:
        if not eligibility.is_served(self.state, self._model(m)):
            raise ValueError(f"model {m} is not there: it was removed, or never added")

    def _check_present(self, g: int) -> None:
        if self.state.gpu["state"][self._gpu(g)] == ABSENT:
            raise ValueError(f"GPU {g} is not there: it was removed, or never added")

    def _check_table(self, gpu_class: int, table: Ints) -> None:
        bounds.within("gpu_class", gpu_class, 0, bounds.MOST_CLASSES - 1)
        bounds.within("max_batch", len(table) - 2, 1, bounds.MOST_BATCH)
        bounds.within("l(b)", table, 0, bounds.LONGEST)

    def _note(self, op: str, now: int, a: int = 0, b: int = 0, c: int = 0, d: int = 0, data: bytes = b"") -> None:
        if self.journal is not None:
            self.journal.note(op, now, a, b, c, d, data)

    def _drops(self) -> Slots:
        return self.state.drops[: self.state.g["n_drops"][0]]

    def _grow(self, *, models: int = 0, gpus: int = 0, classes: int = 0, max_batch: int = 0) -> None:
        """Make room, by doubling, for at least so many of each."""
        s = self.state
        have = {"models": len(s.mod), "gpus": len(s.gpu), "classes": s.lat.shape[1], "max_batch": s.lat.shape[2] - 2}
        need = {"models": models, "gpus": gpus, "classes": classes, "max_batch": max_batch}
        if any(need[k] > have[k] for k in have):
            room = {k: have[k] if need[k] <= have[k] else max(need[k], 2 * have[k]) for k in have}
            bounds.within("models", room["models"], 1, bounds.MOST_MODELS)
            bounds.within("GPUs", room["gpus"], 1, bounds.MOST_GPUS)
            entries = (room["models"] + 1) * room["classes"] * (room["max_batch"] + 2)
            bounds.within("bytes of l(b)", 8 * entries, 1, bounds.MOST_TABLE_BYTES)
            self.state = grown(s, len(s.req), **room)
            del room["gpus"]
            self.profiles = grown_profiles(self.profiles, **room)

    def validate(self) -> None:
        """Check every invariant; for tests. Raises ``ValueError`` or ``AssertionError`` naming the first that fails."""
        s = self.state
        bounds.check(s, self.profiles)
        for m in range(len(s.mod)):
            self._validate_model(m)
        for g, gpu in enumerate(s.gpu):
            rank = int(gpu["home_rank"]) + int(gpu["slow"]) * speed_tracking.SLOW_RANK
            assert gpu["rank"] == rank, f"GPU {g} has a wrong rank"
        assert sum(s.gpu["slow"]) == s.g["n_slow"][0], "slow GPUs are miscounted"
        words = [(int(g), int(w), int(ineligible_rows(s)[g, w])) for g, w in np.argwhere(ineligible_rows(s))]
        pairs = [(w * 16 + bit, g) for g, w, word in words for bit in range(16) if word >> bit & 1]
        assert len(pairs) == s.g["n_ineligible"][0], "models that GPUs cannot run are miscounted"
        stale = [(m, g) for m, g in pairs if not eligibility.is_served(s, m) or s.gpu["state"][g] == ABSENT]
        assert not stale, f"pairs {stale} of what is gone were not forgotten"

    def _validate_model(self, m: int) -> None:
        s, mod = self.state, self.state.mod[m]
        if mod["state"] == IDLE and not mod["dirty"]:
            assert mod["n"] == 0, f"model {m} is idle and has requests"
        for c in range(s.lat.shape[1]):
            given = self.profiles.given[m, c, : mod["max_batch"] + 2]
            acting = np.floor(given * self.profiles.acting[m, c] + 0.5)
            assert (given[1] < 0) or (s.lat[m, c, 1 : len(given)] == acting[1:]).all(), (
                f"l(b) of model {m} is not its drift's"
            )


__all__ = [
    "NEVER",
    "NO_MODEL",
    "POLICIES",
    "QUEUE_FULL",
    "Decisions",
    "Engine",
    "Removal",
]
