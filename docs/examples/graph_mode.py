"""Models in a Dask graph, between ordinary tasks: ``python docs/examples/graph_mode.py``.

Documents are read, scored by a model and summed up, all as Dask tasks. The scheduler's plugin holds the model's tasks,
has them run in batches with whatever else asks for the model, and Dask does the rest: dependencies, retries, recovery.
"""

import dask
import numpy as np
from dask.distributed import Client, LocalCluster

from symphony_dask import Serving

WORDS = ("good", "great", "bad", "awful")
WEIGHTS = np.array([1.0, 2.0, -1.0, -2.0], np.float32)


def read(i: int) -> str:
    """In place of a file: document i says one word i times."""
    return " ".join([WORDS[i % 4]] * i)


def count(text: str) -> np.ndarray:
    return np.array([text.split().count(word) for word in WORDS], np.float32)


def score(batch: np.ndarray) -> np.ndarray:
    """The model: one score for each row."""
    return batch @ WEIGHTS


def main() -> None:
    cluster = LocalCluster(n_workers=2, threads_per_worker=1, resources={"GPU": 1}, dashboard_address=None)
    with cluster, Client(cluster) as client, Serving(client) as serving:
        model = serving.deploy("score", score, slo="2s", example=np.zeros(4, np.float32), max_batch=32)

        # Futures: each stage starts as soon as what it needs is there.
        counts = client.map(count, client.map(read, range(100)))
        scores = client.map(model, counts, retries=1)
        found = client.gather(scores)
        assert found == [i * WEIGHTS[i % 4] for i in range(100)]
        print(f"client.map: {len(found)} documents, best score {max(found):g}")

        # Delayed graphs, with an SLO of their own for what is asked of models in them.
        with dask.annotate(symphony={"slo": "5s", "priority": 1}):
            each = [dask.delayed(model)(dask.delayed(count)(dask.delayed(read)(i))) for i in range(40)]
            total = dask.delayed(sum)(each)
            print(f"dask.delayed: total score {total.compute():g}")

        status = serving.status()["models"]["score"]
        print(f"measured: {sum(status['outcomes'].values())} model tasks in {status['batches']} batches")


if __name__ == "__main__":
    main()
