"""Holds all that a Dask worker gets from us. This text travels to it (``worker_setup``), so it needs nothing but Dask.

A worker where this package is not installed, or cannot be imported, goes on without serving.
"""

from __future__ import annotations

import logging
from typing import Any

from distributed.diagnostics.plugin import WorkerPlugin


class _Absent(WorkerPlugin):
    def __init__(self, why: str) -> None:
        self.why = why

    async def setup(self, worker: Any) -> None:
        if worker.state.total_resources.get("GPU", 0) < 1:
            return
        text = "this worker has GPUs and serves no models, as symphony_dask cannot be imported here: %s"
        logging.getLogger("distributed.worker").warning(text, self.why)
        try:
            await worker.scheduler.symphony_worker_problem(worker=worker.address, why=self.why)
        except Exception:
            logging.getLogger("distributed.worker").info("the scheduler could not be told", exc_info=True)


def plugin() -> WorkerPlugin:
    """The worker plugin, or one that says why there is none."""
    try:
        from symphony_dask.plugin.worker_plugin import SymphonyWorkerPlugin

        return SymphonyWorkerPlugin()
    except Exception as error:
        return _Absent(f"{type(error).__name__}: {error}"[:500])
