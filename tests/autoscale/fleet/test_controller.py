"""The controller is killed at any point and started again: nothing is orphaned, launched twice, or beyond the caps."""

from __future__ import annotations

import multiprocessing
import os
import random
import threading
import time
from typing import Any

import pytest

from autoscale.fleet.fleet import RUNNING
from tests.helpers.aws.controller_process import QUICK, open_office, run
from tests.helpers.aws.ec2 import AwsFront
from tests.helpers.aws.fleet_world import FakeScheduler
from tests.helpers.cluster import wait_until


class Trap:
    """Kills a process once it has looked at its fleet: at a stage of its n-th call from then on, or after a time."""

    def __init__(self, front: AwsFront, process: Any, chance: random.Random) -> None:
        self._process = process
        self._left = chance.randrange(1, 10) if chance.random() < 0.6 else 0
        self._after_s = chance.uniform(0.0, 1.0)
        self._stage = chance.choice(["before", "done", "after"])
        # Calls that change something are few, and what matters: half of the lives end at the first of them.
        self._at_change = chance.random() < 0.5
        self._lock = threading.Lock()
        self._looked = False
        self.at = ""
        front.on_call = self.on_call

    def on_call(self, action: str, stage: str) -> None:
        with self._lock:
            if action == "DescribeInstances" and not self._looked:
                self._looked = True
                if not self._left:
                    threading.Timer(self._after_s, self._kill, ["a time"]).start()
            if self._looked and self._left and stage == self._stage:
                self._left -= 1
                if self._at_change and action in ("RunInstances", "TerminateInstances"):
                    self._left = 0
                if self._left == 0:
                    self._kill(f"{stage} {action}")

    def _kill(self, at: str) -> None:
        self.at = at
        self._process.kill()


def killed_many_times(kills: int, seed: int) -> dict[str, Any]:
    """What was seen in so many lives of a controller, whose target changes from life to life."""
    chance = random.Random(seed)
    os.environ["SYMPHONY_TEST_FORKSERVER"] = "1"
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.helpers.aws.controller_process"])
    found: dict[str, Any] = {"kills": 0, "points": set()}
    faults = {"lose": 0.05, "throttle": 0.05, "chance": random.Random(seed + 1)}
    with AwsFront(pending_s=0.1, stop_s=0.2, lag_s=0.5, **faults) as front:
        scheduler = FakeScheduler(time.time, front, boot_s=0.3)
        office = open_office(scheduler)

        def start(gpus: int) -> Any:
            process = context.Process(target=run, args=(front.url, office, gpus, chance.randrange(1000)), daemon=True)
            process.start()
            return process

        for _ in range(kills):
            front.empty = {("g5.xlarge", "")} if chance.random() < 0.3 else set()
            process = start(chance.randrange(9))
            trap = Trap(front, process, chance)
            process.join(30)
            assert process.exitcode == -9
            found["kills"] += 1
            found["points"].add(trap.at)
            for i in scheduler.joined_ids():
                if chance.random() < 0.3:
                    scheduler.in_flight[i] = 2
        front.on_call = lambda action, stage: None
        front.empty = set()
        found["left"] = len(front.live())
        for gpus in (3, 0):
            process = start(gpus)
            try:
                wait_until(lambda n=gpus: settled(front, scheduler, n), f"a fleet of {gpus}", 60)  # type: ignore[misc]
                found[f"live at {gpus}"] = len(front.live())
            finally:
                process.kill()
                process.join()
        found |= {
            "launched": len(front.made),
            "most": front.most,
            "most_usd_per_hour": front.most_usd_per_hour,
            "unretired": [m.id for m in front.made.values() if m.ended_s and not scheduler.retired(m.id)],
            "killed_with_work": scheduler.killed,
            "answers": dict(front.answers),
        }
    return found


def settled(front: AwsFront, scheduler: FakeScheduler, gpus: int) -> bool:
    live = front.live()
    there = sum(i.gpus for i in live)
    enough = there >= gpus and all(there - i.gpus < gpus for i in live)
    return enough and all(i.state == RUNNING and scheduler.joined(i) for i in live)


def check(found: dict[str, Any]) -> None:
    assert found["live at 3"] <= 3
    assert found["live at 0"] == 0
    assert found["most"] <= QUICK.max_instances
    assert found["most_usd_per_hour"] <= QUICK.max_usd_per_hour
    assert found["unretired"] == []
    assert found["killed_with_work"] == []
    assert found["launched"] >= 3


def test_a_controller_killed_at_four_points_orphans_nothing() -> None:
    check(killed_many_times(4, seed=1))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_controller_killed_at_fifty_random_points_orphans_nothing_and_passes_no_cap() -> None:
    found = killed_many_times(50, seed=2)
    print(found)
    check(found)
    assert found["kills"] == 50
    assert found["launched"] > 10
    assert {"before RunInstances", "done RunInstances"} & found["points"]
