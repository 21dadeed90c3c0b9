"""A fixed random run of the engine and a digest of all that it decided; as a program, prints the digest."""

from __future__ import annotations

import hashlib
import random

import numpy as np

from symphony_dask.engine.engine import Engine
from tests.helpers.engines.engines import ns, table


def digest(seed: int, policy: str, *, exact: bool, events: int = 400) -> str:
    """SHA-256 of every answer and every decision, in order."""
    rng = random.Random(seed)
    engine = Engine(policy, exact=exact, max_requests=64)
    engine.set_control(0, ns(0.3))
    for i in range(3):
        latency = {c: table(1 + c, 2 + i, 16) for c in range(2)}
        engine.add_model(0, slo_ns=ns(15 + 10 * i), latency_ns=latency, queue_limit=30)
    gpus = [engine.add_gpu(0, gpu_class=i % 2, control_ns=ns(0.3 * i)) for i in range(3)]
    answers = hashlib.sha256()
    now = 0
    flights: list[tuple[int, int, int, int]] = []
    for _ in range(events):
        now += round(rng.expovariate(1 / ns(2)))
        kind = rng.random()
        if kind < 0.6:
            n = rng.randint(1, 4)
            models = np.array([rng.randrange(3) for _ in range(n)], np.int32)
            deadlines = np.array([now + ns(rng.choice([25, 25, 12, 40])) for _ in range(n)], np.int64)
            priorities = np.array([rng.choice([0, 0, 1, 3]) for _ in range(n)], np.int32)
            answers.update(engine.submit(now, models, deadlines, np.arange(n), priorities).tobytes())
            answers.update(engine.evicted.tobytes())
        elif kind < 0.65:
            answers.update(bytes([engine.cancel(now, rng.randrange(64))]))
        elif kind < 0.7:
            gone = gpus.pop(rng.randrange(3))
            removal = engine.remove_gpu(now, gone)
            answers.update(removal.requeued.tobytes() + removal.ended.tobytes())
            flights = [flight for flight in flights if flight[1] != gone]
            gpus.append(engine.add_gpu(now, gpu_class=rng.randrange(2)))
        while not exact and flights and flights[0][0] <= now:
            end, gpu, batch, start = flights.pop(0)
            answers.update(bytes([engine.completed(now, gpu, batch, start, end)]))
        decisions = engine.advance(now)
        for array in decisions:
            answers.update(array.tobytes())
        for row in decisions.batches:
            flights.append(
                (int(row["end"]) + rng.randint(-ns(1), ns(3)), int(row["gpu"]), int(row["batch"]), int(row["start"]))
            )
        flights.sort()
        answers.update(engine.next_event().to_bytes(8, "little"))
    return answers.hexdigest()


def digests() -> list[str]:
    return [
        digest(1, "deferred", exact=False),
        digest(2, "deferred", exact=True),
        digest(3, "eager", exact=False),
        digest(4, "adaptive", exact=True),
    ]


if __name__ == "__main__":
    print("\n".join(digests()))
