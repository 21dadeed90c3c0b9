"""Keeps the requests that a model sends, in place of a connection, and answers or refuses futures."""

from __future__ import annotations

from collections.abc import Callable

from symphony_dask.client.future import InferenceFuture
from symphony_dask.errors import (
    Overloaded,
)

MS = 1_000_000


def answered(request: int, result: object = 42) -> InferenceFuture:
    future = InferenceFuture(request)
    future._finish("ok", result, None)
    return future


def refuse(future: InferenceFuture, error: Exception | None = None) -> None:
    future._finish("rejected", None, error or Overloaded("full"))


class Sent:
    """In place of the lane: keeps what is submitted."""

    scheduler_id = "test"

    def __init__(self) -> None:
        self.slos_ns: list[int] = []
        self.futures: list[InferenceFuture] = []
        self.waits_s: list[float] = []
        self.cancelled: list[int] = []

    def submit(
        self, model_id: int, payload: bytes, slo_ns: int, priority: int, *, within_ns: int, began_ns: int = 0
    ) -> InferenceFuture:
        self.slos_ns.append(slo_ns)
        self.futures.append(InferenceFuture(len(self.futures), self.cancelled.append))
        return self.futures[-1]

    def later(self, wait_s: float, future: InferenceFuture, call: Callable[[], None]) -> None:
        self.waits_s.append(wait_s)
        call()
