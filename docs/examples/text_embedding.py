"""Semantic search with an embedding model that a PyPI package ships: ``python docs/examples/text_embedding.py``.

The package wordllama has its weights (16 MB, 256 dimensions) and tokenizer in its wheel: nothing is downloaded at run
time. Each worker loads it once; texts of many requests are embedded in one batch. ``pip install wordllama`` first.
"""

import asyncio

import numpy as np
from dask.distributed import Client, LocalCluster

from symphony_dask import Serving, as_completed

TEXTS = (
    "The cat sleeps on the sofa all afternoon.",
    "Our database ran out of disk space last night.",
    "She baked a chocolate cake with fresh cream.",
    "The stock market fell sharply on Monday.",
    "A puppy chases its tail in the garden.",
    "The train to Berlin leaves at seven.",
    "Add two cups of flour and stir the dough.",
    "The server's memory usage grows until it crashes.",
)
QUERIES = ("pets", "baking a dessert", "computer failure", "shares and investors")


def load():  # called on each worker
    from pathlib import Path

    import wordllama

    # As its cache, the package's own folder: that is where the wheel has weights and tokenizer.
    model = wordllama.WordLlama.load(cache_dir=Path(wordllama.__file__).parent, disable_download=True)
    return lambda texts: model.embed(list(texts), norm=True)


async def main() -> None:
    import logging

    logging.getLogger("distributed").setLevel(logging.ERROR)
    async with (
        LocalCluster(
            n_workers=2, threads_per_worker=1, resources={"GPU": 1}, dashboard_address=None, asynchronous=True
        ) as cluster,
        Client(cluster, asynchronous=True) as client,
        await Serving(client) as serving,
    ):
        model = await serving.deploy("embed", load, slo="1s", example=TEXTS[0], max_batch=64)
        futures = {model.submit(text): text for text in (*TEXTS, *QUERIES)}
        embedded: dict[str, np.ndarray] = {}
        async for future in as_completed(futures):  # as they are answered, not as they were asked
            embedded[futures[future]] = future.result()
        print(f"embedded {len(embedded)} texts into {embedded[TEXTS[0]].shape[0]} dimensions")
        texts = np.stack([embedded[text] for text in TEXTS])
        for query in QUERIES:
            scores = texts @ embedded[query]
            print(f"{query!r}: {TEXTS[int(scores.argmax())]} ({scores.max():.2f})")
        status = (await serving.status())["models"]["embed"]
        print(f"measured: {status['outcomes']['ok']} in time, {status['batches']} batches")


if __name__ == "__main__":
    asyncio.run(main())
