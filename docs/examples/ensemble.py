"""Three models that each see a part of the features, asked together: ``python docs/examples/ensemble.py``.

A pipeline scales a sample, asks the models side by side and takes the mean of their scores; a second one has them vote.
Both are served under one name with one SLO, and their requests are batched with all others to the models.
"""

import time

import numpy as np
from dask.distributed import Client, LocalCluster

from symphony_dask import Ensemble, Serving

CENTRES = np.random.default_rng(7).normal(size=(4, 6))  # four classes, six features
SCALE = 10.0


def samples(n: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    labels = rng.integers(0, len(CENTRES), n)
    return (CENTRES[labels] + 0.9 * rng.normal(size=(n, 6))) * SCALE, labels


def expert(first: int):
    """A model of two of the features: the score of a class falls with the distance to its centre."""

    def scores(batch: np.ndarray) -> np.ndarray:
        seen = slice(first, first + 2)
        return -((batch[:, None, seen] - CENTRES[None, :, seen]) ** 2).sum(2)

    return scores


def scaled(x: np.ndarray) -> np.ndarray:
    return x / SCALE


def accuracy(answers: list[int], labels: np.ndarray) -> str:
    return f"{np.mean(np.array(answers) == labels):.0%}"


def main() -> None:
    xs, labels = samples(300)
    cluster = LocalCluster(n_workers=2, threads_per_worker=1, resources={"GPU": 1}, dashboard_address=None)
    with cluster, Client(cluster) as client, Serving(client) as serving:
        experts = [
            serving.deploy(f"expert-{i}", expert(2 * i), slo="2s", example=xs[0], max_batch=32) for i in range(3)
        ]
        mean = serving.pipeline("mean", [scaled, Ensemble(experts, combine="mean"), np.argmax], slo="2s", rate_hz=200)
        vote = serving.pipeline("vote", [scaled, Ensemble(experts, combine="vote")], slo="2s", rate_hz=200)
        print(mean)
        for name, budget_ns, batch in mean.budgets():
            print(f"split: {name} has {budget_ns / 1e6:.0f} ms, for batches of {batch}")

        alone = [[f.result().argmax() for f in model.map(xs / SCALE)] for model in experts]
        print("accuracy of each:", ", ".join(accuracy(answers, labels) for answers in alone))
        for pipeline in (vote, mean):
            begin = time.perf_counter()
            futures = pipeline.map(xs)
            answers = [int(f.result()) for f in futures]
            in_time = sum(f.outcome == "ok" for f in futures)
            print(f"accuracy of {pipeline.name}: {accuracy(answers, labels)}")
            print(f"measured: {in_time} of {len(xs)} in time, in {time.perf_counter() - begin:.2f} s")


if __name__ == "__main__":
    main()
