"""Brings the worker plugin to all workers, present and future."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distributed.protocol.pickle import dumps

from symphony_dask.plugin import worker_stub
from symphony_dask.plugin.start_attempts import waits_s
from symphony_dask.plugin.worker_plugin import SymphonyWorkerPlugin

if TYPE_CHECKING:
    from distributed import Scheduler

logger = logging.getLogger(__name__)


class _PluginFromSource:
    """Is unpickled as ``worker_stub.plugin()``, by whoever has Dask."""

    def __reduce__(self) -> tuple[Any, ...]:
        return eval, ("exec(source) or plugin()", {"source": Path(worker_stub.__file__).read_text("utf-8")})


async def install_on_workers(scheduler: Scheduler) -> None:
    """As ``Scheduler.register_worker_plugin``, but a worker that leaves, or does not answer, is no error.

    Who joins from now on gets the plugin from Dask. Who is here is asked until the plugin is there or the worker gone.
    """
    name = SymphonyWorkerPlugin.name
    if name in scheduler.worker_plugins:
        return
    message = {"op": "plugin-add", "plugin": dumps(_PluginFromSource()), "name": name}
    scheduler.worker_plugins[name] = message["plugin"]
    missing = list(scheduler.workers)
    for wait_s in waits_s():
        replies = await scheduler.broadcast(msg=message, workers=missing, on_error="return")
        missing = [w for w, reply in replies.items() if isinstance(reply, Exception) and w in scheduler.workers]
        if not missing:
            return
        logger.warning("workers %s did not take the plugin, and are asked again: %s", missing, replies[missing[0]])
        await asyncio.sleep(wait_s)
        missing = [w for w in missing if w in scheduler.workers]
