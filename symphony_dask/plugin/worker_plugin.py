"""Starts the GPU slots of a Dask worker, and stops them with it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from functools import partial, wraps
from typing import TYPE_CHECKING, Any

from distributed.diagnostics.plugin import WorkerPlugin

from symphony_dask import config
from symphony_dask.errors import BadInput, DeploymentError
from symphony_dask.plugin.graph_function import graph_task_name
from symphony_dask.plugin.start_attempts import Attempts
from symphony_dask.plugin.task_rendezvous import Rendezvous
from symphony_dask.slot.executor import Slot
from symphony_dask.slot.metrics import expose
from symphony_dask.slot.runtime import SlotWorker
from symphony_dask.text import brief, plain
from symphony_dask.wire.rpc_replies import failure

if TYPE_CHECKING:
    from dask.typing import Key
    from distributed import Worker

logger = logging.getLogger(__name__)

#: The scheduler has so long to hear that a worker cannot serve, s.
_REPORT_S = 10.0


def _plain_errors(rpc: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    """``rpc`` with errors of this package's only, of plain text, as values (``rpc_replies``): of an error that is
    raised, the scheduler, which unpickles nothing, gets the repr alone.
    """

    @wraps(rpc)
    async def call(*args: object, **kwargs: object) -> Any:
        try:
            return await rpc(*args, **kwargs)
        except (BadInput, DeploymentError) as error:
            return failure((BadInput if isinstance(error, BadInput) else DeploymentError)(plain(error)))
        except Exception as error:
            return failure(DeploymentError(brief(error)))

    return call


def gpu_class_of(worker: Worker) -> str:
    """What kind of GPU a Dask worker has: its ``symphony.gpu-class`` setting, its CUDA device's name, or "cpu"."""
    import dask.config

    configured = dask.config.get("symphony.gpu-class", None)
    if configured:
        return str(configured)
    try:
        import torch

        return str(torch.cuda.get_device_name()) if torch.cuda.is_available() else "cpu"
    except ImportError:
        return "cpu"


class SymphonyWorkerPlugin(WorkerPlugin):
    """Installed on every worker by the scheduler's plugin; makes a slot of each unit of the worker's GPU resource."""

    name = "symphony"
    idempotent = True
    _slot_worker: SlotWorker | None = None
    _forget_metrics: Callable[[], None] | None = None
    _attempts: Attempts | None = None
    _problem_reported = False

    async def setup(self, worker: Worker) -> None:
        """Serve, or say why not and try again; the worker is Dask's, and goes on in any case."""
        units = int(worker.state.total_resources.get("GPU", 0))
        if units >= 1:
            what = "Symphony cannot serve from this worker, and the worker goes on without it"
            self._attempts = Attempts(partial(self._try, worker, units), what)
            await self._attempts.outcome()

    async def _try(self, worker: Worker, units: int) -> None:
        try:
            await self._serve(worker, units)
        except Exception as error:
            await self._report_problem(worker, brief(error))
            raise
        if self._problem_reported:
            await self._report_problem(worker, "")

    async def _report_problem(self, worker: Worker, why: str) -> None:
        """Have the scheduler's status say why this worker does not serve."""
        self._problem_reported = bool(why)
        try:
            async with asyncio.timeout(_REPORT_S):
                await worker.scheduler.symphony_worker_problem(worker=worker.address, why=why)
        except Exception as error:
            logger.info("the scheduler could not be told: %s", brief(error))

    async def _serve(self, worker: Worker, units: int) -> None:
        config.load()
        gpu_class = await asyncio.to_thread(gpu_class_of, worker)
        memory, timeouts = config.memory_bytes("symphony.gpu.memory"), config.connection_timeouts()
        config.ports("symphony.lane.worker-port")
        slots = [Slot(i, None) for i in range(units)]
        self._state = worker.state
        self._graph_tasks: dict[Key, str] = {}
        self.rendezvous = Rendezvous(worker.state)
        self._slot_worker = slot_worker = SlotWorker(
            worker.address, slots, gpu_class, self.rendezvous, memory=memory, timeouts=timeouts
        )
        worker.handlers["symphony_load"] = _plain_errors(slot_worker.load)
        worker.handlers["symphony_unload"] = _plain_errors(slot_worker.unload)
        worker.handlers["symphony_loaded"] = _plain_errors(slot_worker.loaded)
        worker.handlers["symphony_answer"] = _plain_errors(slot_worker.answer)
        worker.handlers["symphony_profile"] = _plain_errors(slot_worker.profile)
        await slot_worker.listen(worker)
        slot_worker.start(worker.scheduler, worker.security)
        try:
            self._forget_metrics = expose(slot_worker)
        except Exception:
            logger.exception("slots cannot be shown on Dask's /metrics")

    def transition(self, key: Key, start: str, finish: str, **kwargs: object) -> None:
        """Watch when graph tasks come and go; called by Dask for every task. What has gone has no ``run_spec``."""
        if self._slot_worker is None:
            return
        if finish == "waiting":
            task = self._state.tasks.get(key)
            name = None if task is None else graph_task_name(task.run_spec)
            if name is not None:
                self._graph_tasks[key] = name
                self.rendezvous.lend_thread(name)
        elif self._graph_tasks and finish not in ("ready", "executing"):
            name = self._graph_tasks.pop(key, None)
            if name is not None:
                self.rendezvous.forget(name)

    async def teardown(self, worker: Worker) -> None:
        """Raises nothing: a worker that closes would not end."""
        if self._attempts is not None:
            self._attempts.stop()
        for take_down in (None if self._slot_worker is None else self._slot_worker.close, self._forget_metrics):
            try:
                if take_down is not None:
                    take_down()
            except Exception:
                logger.exception("Symphony did not leave this worker as it should")
