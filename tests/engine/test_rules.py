"""Runs that were recorded by earlier rules are led by them: ``symphony verify`` replays each decision."""

from __future__ import annotations

import hashlib
import random

import msgpack
import numpy as np
import pytest

from symphony_dask.engine.engine import POLICIES, Engine
from symphony_dask.engine.journal import dump, load
from symphony_dask.engine.state import OLDER_SCALARS, RULES
from symphony_dask.units import NS_PER_MS

#: What the engine decided in ``decisions`` before the rules changed (d2f99c3).
BEFORE = {
    "deferred": "70e0d00b6fd33fa7",
    "adaptive": "8ae66aa041e35e7b",
    "eager": "10994c11c06de461",
    "latest": "54a1ec76a26c41e5",
    "timeout": "e20b43a32295721c",
    "target": "72a511a819da4d79",
}


def older(engine: Engine) -> Engine:
    """The engine as a version before ``rules`` would have dumped and loaded it."""
    sizes, arrays = msgpack.unpackb(dump(engine))
    arrays[0] = arrays[0][:OLDER_SCALARS]
    return load(msgpack.packb([sizes, arrays]))


def make(policy: str) -> Engine:
    engine = Engine(policy, max_requests=4096)
    for m in range(5):
        table = (np.arange(34) * (0.8 + 0.1 * m) * NS_PER_MS + 5 * NS_PER_MS).astype(np.int64)
        engine.add_model(0, slo_ns=(25 + 10 * (m % 2)) * NS_PER_MS, latency_ns={0: table})
    return engine


def decisions(engine: Engine, seconds: float = 1.5) -> str:
    """A hash of all that is decided for five models on four GPUs that are short of time in every other fifth second.

    Execution times stray from l(b) by up to 10 %.
    """
    by = random.Random(5)
    for _ in range(4):
        engine.add_gpu(0, control_ns=100_000)
    found = hashlib.sha256()
    running: list[tuple[int, int, int, int]] = []  # end, GPU, batch, start
    slos = engine.state.mod["slo"][:5].tolist()
    arrival = now = n = 0
    while now < seconds * 1e9:
        due = engine.next_event()
        now = max(now, min([arrival, due, *(end for end, *_ in running)]))
        for end, g, batch, start in [each for each in running if each[0] <= now]:
            engine.completed(now, g, batch, start, end)
            running.remove((end, g, batch, start))
        while arrival <= now:
            m = min(by.randrange(7), 4)
            models, deadlines = np.array([m], np.int32), np.array([arrival + slos[m]], np.int64)
            engine.submit(now, models, deadlines, np.array([n], np.int64))
            n += 1
            busy = (arrival // 200_000_000) % 2
            arrival += 1 + int(by.expovariate(1.0) * (480_000 if busy else 1_500_000))
        decided = engine.advance(now)
        found.update(decided.batches.tobytes() + decided.members.tobytes() + decided.drops.tobytes())
        for row in decided.batches:
            g = int(row["gpu"])
            took = int((int(row["end"]) - int(row["start"])) * (0.9 + 0.2 * by.random()))
            start = max([int(row["start"]), *(end for end, other, *_ in running if other == g)])
            running.append((start + took, g, int(row["batch"]), start))
    return found.hexdigest()[:16]


@pytest.mark.parametrize("policy", POLICIES)
def test_a_state_that_was_recorded_before_is_led_by_the_rules_of_then(policy: str) -> None:
    engine = older(make(policy))
    assert engine.state.g["rules"][0] == 0
    assert decisions(engine) == BEFORE[policy]
    assert load(dump(engine)).state.g["rules"][0] == 0


def test_a_new_engine_has_the_rules_of_today() -> None:
    assert make("adaptive").state.g["rules"][0] == RULES
    assert load(dump(make("adaptive"))).state.g["rules"][0] == RULES
    assert decisions(make("adaptive")) != BEFORE["adaptive"]
