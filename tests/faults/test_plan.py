from __future__ import annotations

from workloads.faults.kinds import KINDS, Fault
from workloads.faults.plan import Plan, draw, shrink


def test_a_seed_gives_the_same_plan_again_and_another_seed_another() -> None:
    assert draw(7) == draw(7)
    assert len({draw(seed) for seed in range(50)}) == 50


def test_a_plan_is_the_same_after_it_was_written_and_read() -> None:
    for seed in range(20):
        assert Plan.from_json(draw(seed).to_json()) == draw(seed)


def test_every_kind_of_fault_is_drawn() -> None:
    assert {fault.kind for seed in range(2000) for fault in draw(seed).faults} == set(KINDS)


def test_another_scheduler_comes_alone() -> None:
    plans = [draw(seed) for seed in range(2000)]
    assert all(len(plan.faults) == 1 for plan in plans if any("l-scheduler" in f.kind for f in plan.faults))


def test_a_plan_shrinks_to_the_faults_that_it_takes() -> None:
    faults = tuple(Fault(kind, at, 1.0) for at, kind in enumerate(("stop-worker", "kill-worker", "reset-lane", "x")))
    tried: list[int] = []

    def fails(plan: Plan) -> bool:
        tried.append(len(plan.faults))
        return {"kill-worker", "x"} <= {fault.kind for fault in plan.faults}

    smallest = shrink(Plan(1, "eager", faults), fails)
    assert [fault.kind for fault in smallest.faults] == ["kill-worker", "x"]
    assert len(tried) < 10
