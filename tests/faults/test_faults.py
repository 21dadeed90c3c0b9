"""Runs of faults that break no promise; ``python -m tests.faults`` makes as many as one likes."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.faults.__main__ import judge
from tests.faults.harness import Bed
from workloads.faults.kinds import KINDS, Fault
from workloads.faults.plan import Plan, draw

#: How many random runs the slow tests make.
SEEDS = int(os.environ.get("SYMPHONY_FAULT_SEEDS", "60"))


@pytest.fixture(scope="module")
def bed() -> Iterator[Bed]:
    with Bed(gateway=False) as bed:
        yield bed


@pytest.fixture(scope="module")
def bed_with_gateway() -> Iterator[Bed]:
    with Bed() as bed:
        yield bed


def plan(*faults: tuple[str, float, float]) -> Plan:
    return Plan(0, "eager", tuple(Fault(kind, at_s, for_s, i) for i, (kind, at_s, for_s) in enumerate(faults)))


@pytest.mark.parametrize(
    "faults",
    [
        plan(("stop-worker", 0.0, 0.5), ("kill-client", 0.1, 0.2)),
        plan(("reset-lane", 0.0, 0.1), ("model-hang", 0.2, 0.5)),
        # The last, as another worker has to be there before the next run.
        plan(("kill-worker", 0.1, 0.2), ("model-raise", 0.0, 0.4)),
    ],
    ids=lambda plan: " and ".join(fault.kind for fault in plan.faults),
)
def test_the_commonest_faults_break_no_promise(bed: Bed, faults: Plan) -> None:
    _, found = judge(bed, faults)
    assert found == []


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_fault_alone_breaks_no_promise(bed_with_gateway: Bed, kind: str) -> None:
    _, found = judge(bed_with_gateway, plan((kind, 0.1, 1.0)))
    assert found == []


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_random_faults_break_no_promise(bed_with_gateway: Bed) -> None:
    broken = {}
    for seed in range(SEEDS):
        _, found = judge(bed_with_gateway, draw(seed))
        if found:
            broken[seed] = found[:3]
    assert broken == {}
