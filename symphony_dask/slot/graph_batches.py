"""Defines what a slot needs of batches with graph tasks, whose samples come from Dask (``plugin.task_rendezvous``)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from symphony_dask.backends import BatchResult, Runner
from symphony_dask.slot.batch_inbox import Batch


class GraphBatch(Protocol):
    """The graph tasks of one batch, once they have arrived."""

    def run(self, runner: Runner, batch: Batch) -> BatchResult:
        """Run the batch with them; returns the answers of the other requests."""

    def fail(self, text: str) -> None:
        """End them when the batch could not be run."""

    def dismiss(self) -> None:
        """Send them back to the scheduler: the batch is not run, or not waited for any longer."""


class GraphBatches(Protocol):
    """Brings graph tasks and their batches together."""

    def gather(self, names: Mapping[int, str], start: Callable[[GraphBatch], None]) -> None:
        """Call ``start`` in the event loop once the tasks of a batch, by their place in it, are here."""
