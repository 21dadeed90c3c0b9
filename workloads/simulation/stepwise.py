"""Runs a simulation bit by bit, while GPUs come and go as somebody decides who looks at it meanwhile.

The same compiled loop as ``simulate``, without noise or latency. Only what can still change is kept of requests: one
that has ended is counted and forgotten, so a trace of days takes no more memory than its arrivals.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from symphony_dask.engine.engine import Engine
from symphony_dask.engine.queue_limits import DEFAULT_QUEUE_LIMIT
from symphony_dask.engine.state import ABSENT, DEPTH
from symphony_dask.errors import BadInput
from symphony_dask.trace import Outcome
from symphony_dask.units import NS_PER_S
from workloads.simulation.batch_ends import make_ends
from workloads.simulation.engine_host import Ids, latency_tables
from workloads.simulation.fleet import GPU
from workloads.simulation.result import SimModel, check_times
from workloads.simulation.simulate import loop, new_log, slots_needed

Ints = npt.NDArray[np.int64]

#: Outcome of a request that has not ended.
_UNKNOWN = -1

#: The log has room for at least so many requests.
_LEAST_ROOM = 1 << 16


class Stepwise:
    """Requests served up to some time on the GPUs that there are by then.

    models, arrivals_ns, choices, slos_ns: as in ``workload.Workload``. policy: of the engine.
    most_gpus: the most GPUs that will be there at once; a GPU is known by its slot, the lowest that is free, which is
        also its rank.

    To read: ``arrived``, (models,) int64, requests that came so far; ``outcomes``, (models, outcomes) int64, of those
    whose deadline has passed; ``busy_ns``, (most_gpus,) int64, time for which each slot's GPU has run batches;
    ``batches`` and ``batched``, batches so far and the requests in them.
    """

    def __init__(
        self,
        models: Sequence[SimModel],
        arrivals_ns: Ints,
        choices: npt.NDArray[np.int32],
        slos_ns: Ints,
        *,
        policy: str = "adaptive",
        most_gpus: int,
        queue_limit: int = DEFAULT_QUEUE_LIMIT,
    ) -> None:
        self._arrivals = np.require(arrivals_ns, np.int64, ("C", "W"))
        self._choices = np.require(choices, np.int32, ("C", "W"))
        self._slos = slos_ns
        n = len(self._arrivals)
        if n == 0:
            raise BadInput("there are no requests to simulate")
        check_times(self._arrivals, np.append(slos_ns, [model.slo_ns for model in models]))
        tables = [latency_tables(model, (GPU,)) for model in models]
        largest = max(len(table[0]) for table in tables) - 2
        self._patience_ns = int(slos_ns.max())
        room = slots_needed(self._arrivals, self._patience_ns, most_gpus * DEPTH * largest)
        self.engine = Engine(policy, exact=True, max_requests=room)
        self.now_ns = int(self._arrivals[0])
        self._ids = Ids(np.empty(len(models), np.int32), np.empty(len(models), np.int32), np.empty(most_gpus, np.int32))
        for m, model in enumerate(models):
            table = {0: tables[m][0]}
            slot = self.engine.add_model(
                self.now_ns, slo_ns=model.slo_ns, latency_ns=table, queue_limit=queue_limit, batching=model.batching
            )
            self._ids.slot[m] = slot
            self._ids.model[slot] = m
        self._models, self._most_gpus = len(models), most_gpus
        self.arrived = np.zeros(len(models), np.int64)
        self.outcomes = np.zeros((len(models), len(Outcome)), np.int64)
        self.busy_ns = np.zeros(most_gpus, np.int64)
        self.batches = self.batched = 0
        #: The first request that the log still has, and the first that is not counted in ``outcomes``.
        self._base = self._counted = 0
        self._came = self._last = 0
        self._log = new_log(0, 0)
        #: Of the requests that the log has room for.
        self._deadlines, self._priorities = np.empty(0, np.int64), np.empty(0, np.int32)
        self._ends = make_ends(most_gpus)
        self._exact, self._even = np.empty(0), np.ones(most_gpus)
        self._place_in_flight = np.tile(np.arange(DEPTH), len(self.engine.state.gpu))
        self._draining: set[int] = set()

    @property
    def slots(self) -> list[int]:
        """The GPUs that are there, those that drain included."""
        found: list[int] = np.flatnonzero(self.engine.state.gpu["state"][: self._most_gpus] != ABSENT).tolist()
        return found

    def add_gpu(self) -> int:
        """A GPU is there from now on; returns its slot."""
        g = self.engine.add_gpu(self.now_ns)
        if g >= self._most_gpus:
            raise BadInput(f"GPU {g + 1} came where most_gpus is {self._most_gpus}: raise it")
        self._ids.gpu[g] = g
        self.busy_ns[g] = 0
        return g

    def drain_gpu(self, gpu: int) -> None:
        """A GPU gets no more batches, and is gone when ``run_until`` finds that it has ended those it has."""
        self.engine.drain_gpu(self.now_ns, gpu)
        self._draining.add(gpu)

    def lose_gpu(self, gpu: int) -> None:
        """A GPU is gone at once; what it has not ended is queued again."""
        removal = self.engine.remove_gpu(self.now_ns, gpu)
        back = self.engine.state.req["request"][removal.requeued]
        self._log.outcome[back] = _UNKNOWN
        self._draining.discard(gpu)

    def run_until(self, until_ns: int) -> None:
        """Serve all that comes before ``until_ns``, and bring the figures up to it."""
        start = self._came
        stop = start + int(np.searchsorted(self._arrivals[start:], until_ns))
        if stop - self._base > len(self._log.outcome):
            self._make_room(stop)
        base, n = self._base, stop - self._base
        place = np.array([start - base, 0, self.now_ns], np.int64)
        s, p = self.engine.state, self.engine.profiles
        loop(
            s, p, self._arrivals[base:stop], self._choices[base:stop], self._deadlines[:n], self._priorities[:n],
            self._exact, self._even, 0, 0, self._ends, self._log, self._ids, place, until_ns,
        )  # fmt: skip
        self._last, self._came, self.now_ns = start, stop, until_ns
        self.arrived += np.bincount(self._choices[start:stop], minlength=self._models)
        k = int(place[1])
        took = self._log.end[:k] - self._log.start[:k]
        self.busy_ns += np.bincount(self._log.gpu[:k], took, minlength=self._most_gpus).astype(np.int64)
        self.batches += k
        self.batched += int(self._log.size[:k].sum())
        for gpu in [g for g in self._draining if self.engine.in_flight(g) == 0]:
            self.lose_gpu(gpu)
        self._count(until_ns)

    def ongoing(self) -> npt.NDArray[np.int64]:
        """Requests of each model that wait or run now."""
        state = self.engine.state
        if len(self._place_in_flight) != len(state.flight):
            self._place_in_flight = np.tile(np.arange(DEPTH), len(state.gpu))
        in_flight = np.repeat(state.gpu["n_flight"], DEPTH) > self._place_in_flight
        runs = state.flight[in_flight & (state.flight["end"] > self.now_ns)]
        running = np.bincount(self._ids.model[runs["model"]], runs["n"], minlength=self._models)
        return self.queued() + running.astype(np.int64)

    def arrived_by(self, times_ns: Ints) -> Ints:
        """(times, models) requests that came before each of some times within the last ``run_until``."""
        last = slice(self._last, self._came)
        ends = np.searchsorted(self._arrivals[last], times_ns)
        later = np.array([np.bincount(self._choices[last][end:], minlength=self._models) for end in ends.tolist()])
        found: Ints = self.arrived - later
        return found

    def queued(self) -> npt.NDArray[np.int64]:
        """Requests of each model that wait now."""
        queued: npt.NDArray[np.int64] = self.engine.state.mod["n"][self._ids.slot].astype(np.int64)
        return queued

    def finish(self) -> None:
        """Run until nothing is left to happen."""
        self.run_until(int(self._arrivals[-1]) + 1)
        self.run_until(self.now_ns + 2 * self._patience_ns + NS_PER_S)

    def _count(self, now_ns: int) -> None:
        """Count the requests whose deadline has passed."""
        past = now_ns - self._patience_ns
        stop = self._counted + int(np.searchsorted(self._arrivals[self._counted : self._came], past))
        ended = self._log.outcome[self._counted - self._base : stop - self._base]
        # What nobody looked at since its deadline will be dropped when somebody does.
        ended = np.where(ended == _UNKNOWN, np.int8(Outcome.DROPPED), ended)
        both = self._choices[self._counted : stop] * len(Outcome) + ended
        found = np.bincount(both, minlength=self._models * len(Outcome))
        self.outcomes += found.reshape(self.outcomes.shape)
        self._counted = stop

    def _make_room(self, stop: int) -> None:
        """Have the log begin with the first request of which something can come, and reach beyond ``stop``."""
        alive = self._log.outcome[: self._came - self._base]
        counted = self._counted - self._base
        unknown = np.flatnonzero(alive[:counted] == _UNKNOWN)
        first = int(unknown[0]) if len(unknown) else counted
        kept = alive[first:].copy()
        self._base += first
        self.engine.state.req["request"] -= first
        size = max(_LEAST_ROOM, 2 * (stop - self._base))
        if size > len(self._log.outcome):
            # Batches of one step: each request is in one at most, as GPUs go between steps.
            self._log = new_log(size, size)
        self._log.outcome[: len(kept)] = kept
        self._log.outcome[len(kept) :] = _UNKNOWN
        window = slice(self._base, self._base + len(self._log.outcome))
        self._deadlines = self._arrivals[window] + self._slos[window]
        self._priorities = np.zeros(len(self._deadlines), np.int32)
