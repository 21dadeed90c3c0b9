"""A simulation run bit by bit is the same simulation."""

from __future__ import annotations

import numpy as np
import pytest

from symphony_dask.engine.latency_profile import LatencyProfile
from symphony_dask.errors import BadInput
from symphony_dask.trace import Outcome
from workloads.simulation.fleet import AddGpu, DrainGpu, RemoveGpu
from workloads.simulation.result import SimModel
from workloads.simulation.simulate import simulate
from workloads.simulation.stepwise import Stepwise

MS = 1_000_000
S = 1_000 * MS
MODELS = [SimModel(f"m{i}", LatencyProfile(1, 5), slo * MS) for i, slo in enumerate((20, 30, 50))]


def crowd(n: int = 6_000, seconds: int = 4):
    rng = np.random.default_rng(3)
    arrivals = np.sort(rng.integers(0, seconds * S, n))
    choices = rng.integers(0, 3, n).astype(np.int32)
    return arrivals, choices, np.array([m.slo_ns for m in MODELS])[choices]


def stepwise(arrivals, choices, slos, gpus: int = 2) -> Stepwise:
    sim = Stepwise(MODELS, arrivals, choices, slos, most_gpus=8)
    for _ in range(gpus):
        sim.add_gpu()
    return sim


@pytest.mark.parametrize("step_ms", [7, 100, 1_000])
def test_steps_change_nothing(step_ms):
    arrivals, choices, slos = crowd()
    whole = simulate(MODELS, 2, arrivals, choices)
    sim = stepwise(arrivals, choices, slos)
    for until in range(step_ms * MS, 4 * S + 1, step_ms * MS):
        sim.run_until(int(arrivals[0]) + until)
    sim.finish()
    assert sim.outcomes.sum(0).tolist() == [whole.count(kind) for kind in Outcome]
    assert sim.arrived.tolist() == np.bincount(choices).tolist()
    assert (sim.batches, sim.batched) == (len(whole.batch_size), int(whole.batch_size.sum()))
    assert sim.busy_ns.sum() == int((whole.batch_end_ns - whole.batch_start_ns).sum())


def test_gpus_that_come_drain_and_are_lost_do_as_in_a_simulation_with_events():
    arrivals, choices, slos = crowd()
    arrivals[0] = 0
    events = [AddGpu(1 * S), DrainGpu(2 * S, 1), RemoveGpu(3 * S, 0)]
    whole = simulate(MODELS, 2, arrivals, choices, events=events)
    sim = stepwise(arrivals, choices, slos)
    sim.run_until(1 * S)
    assert sim.add_gpu() == 2
    sim.run_until(2 * S)
    sim.drain_gpu(1)
    sim.run_until(3 * S)
    assert sim.slots == [0, 2]
    sim.lose_gpu(0)
    assert sim.slots == [2]
    sim.finish()
    assert sim.outcomes.sum(0).tolist() == [whole.count(kind) for kind in Outcome]


def test_a_slot_is_used_again_and_its_busy_time_begins_anew():
    arrivals, choices, slos = crowd()
    sim = stepwise(arrivals, choices, slos)
    sim.run_until(1 * S)
    assert sim.busy_ns[1] > 0
    sim.drain_gpu(1)
    sim.run_until(int(1.2 * S))
    assert sim.slots == [0]
    assert sim.add_gpu() == 1
    assert sim.busy_ns[1] == 0


def test_a_request_is_dropped_when_there_is_no_gpu_and_served_when_there_is_one():
    arrivals = np.array([0, 10 * S], np.int64)
    sim = Stepwise(MODELS[:1], arrivals, np.zeros(2, np.int32), np.full(2, 20 * MS), most_gpus=1)
    sim.run_until(5 * S)
    assert sim.outcomes[0].tolist() == [0, 0, 1, 0, 0, 0]
    sim.add_gpu()
    sim.finish()
    assert sim.outcomes[0].tolist() == [1, 0, 1, 0, 0, 0]


def test_what_waits_and_runs_is_told():
    # l(1) = 6 ms; a window of 20 ms opens at 20 - l(2) = 13 ms.
    options = {"policy": "deferred", "most_gpus": 1}
    sim = Stepwise(MODELS[:1], np.array([0, S], np.int64), np.zeros(2, np.int32), np.full(2, 20 * MS), **options)
    sim.add_gpu()
    sim.run_until(10 * MS)
    assert (sim.queued().tolist(), sim.ongoing().tolist()) == ([1], [1])
    sim.run_until(15 * MS)
    assert (sim.queued().tolist(), sim.ongoing().tolist()) == ([0], [1])
    sim.run_until(30 * MS)
    assert sim.ongoing().tolist() == [0]


def test_arrivals_are_told_for_times_within_the_last_step():
    arrivals = np.array([0, 1, 2, 3, 4], np.int64) * S
    sim = Stepwise(MODELS[:2], arrivals, np.array([0, 1, 0, 1, 0], np.int32), np.full(5, 20 * MS), most_gpus=1)
    sim.run_until(2 * S)
    sim.run_until(5 * S)
    assert sim.arrived_by(np.array([3, 4, 5]) * S).tolist() == [[2, 1], [2, 2], [3, 2]]


def test_more_gpus_than_were_announced_cannot_come():
    sim = Stepwise(MODELS[:1], np.array([0], np.int64), np.zeros(1, np.int32), np.full(1, 20 * MS), most_gpus=1)
    sim.add_gpu()
    with pytest.raises(BadInput, match="most_gpus is 1"):
        sim.add_gpu()
