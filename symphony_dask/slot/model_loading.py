"""Loads models into slots and takes them out, and runs a model between the batches of its slot."""

from __future__ import annotations

import time

import numpy as np
import numpy.typing as npt
from distributed.protocol.pickle import loads

from symphony_dask.backends import BatchResult, ModelSpec, Runner, free_memory, load, memory_of
from symphony_dask.clock import now_ns
from symphony_dask.errors import DeploymentError
from symphony_dask.slot.executor import Loading, Slot
from symphony_dask.slot.profiling import is_out_of_memory
from symphony_dask.text import brief
from symphony_dask.wire import batch_codec, codec


def load_into(slot: Slot, model_id: int, spec: bytes, example: bytes | None, loading: Loading) -> None:
    """In a thread of its own. An optimized module is loaded in the slot's, where what it captures has to run."""

    def make() -> Runner:
        sample = None if example is None else codec.decode(example)
        try:
            return load(model, slot.device, sample)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        free_memory()  # of what models that are gone have left; not sooner, because it holds up every batch
        return load(model, slot.device, sample)

    began_ns = now_ns()
    try:
        model: ModelSpec = loads(spec)
        runner = make() if model.optimize is None else slot.call(make).result()
        if loading.abandoned:
            raise DeploymentError("it was loaded too late")
        slot.runners[model_id] = runner
        loading.done.set_result({"load_ns": now_ns() - began_ns, "memory": memory_of(runner)})
    except BaseException as error:  # whatever a loader raises, SystemExit included, the worker goes on
        known = isinstance(error, DeploymentError)
        loading.done.set_exception(error if known else DeploymentError(f"loading it raised {brief(error)}"))


def drop_runner(slot: Slot, model_id: int) -> None:
    slot.runners.pop(model_id, None)


class BetweenBatches:
    """A runner whose runs take their turn with the batches of its slot. ``clock`` counts only the runs themselves."""

    def __init__(self, runner: Runner, slot: Slot) -> None:
        self.batch_sizes = getattr(runner, "batch_sizes", ())
        self._runner, self._slot = runner, slot
        self._ran_ns = 0

    def clock(self) -> int:
        return self._ran_ns

    def run(self, blob: batch_codec.Blob, sizes: npt.NDArray[np.int64]) -> BatchResult:
        """See ``backends.Runner.run``."""
        return self._slot.call(self._timed, blob, sizes).result()

    def _timed(self, blob: batch_codec.Blob, sizes: npt.NDArray[np.int64]) -> BatchResult:
        start = time.perf_counter_ns()
        result = self._runner.run(blob, sizes)
        self._ran_ns += time.perf_counter_ns() - start
        return result
