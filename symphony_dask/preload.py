"""Sets up a Dask process that was started with ``--preload symphony_dask``: Dask calls ``dask_setup`` in it."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from distributed.core import Server

logger = logging.getLogger(__name__)


async def dask_setup(server: Server) -> None:
    """Serve from a scheduler, which goes on whatever fails. Others need no preload: the plugin comes to workers."""
    from distributed import Scheduler
    from distributed.core import Status

    if not isinstance(server, Scheduler):
        logger.info("a %s needs no preload of symphony_dask: the scheduler does", type(server).__name__)
        return
    try:
        from symphony_dask.plugin.scheduler_plugin import SymphonyPlugin

        plugin = SymphonyPlugin()
        server.add_plugin(plugin, name=plugin.name)
        if server.status == Status.running:  # plugins added from here on are not started by the scheduler
            await plugin.start(server)
    except Exception:
        logger.exception("Symphony cannot be loaded, and the scheduler goes on without it")
