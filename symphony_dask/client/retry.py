"""Sends requests again that were refused or lost, for models that may run twice on one sample."""

from __future__ import annotations

import random
from collections.abc import Callable

from symphony_dask.client.future import InferenceFuture
from symphony_dask.clock import now_ns
from symphony_dask.errors import NoGPUWorker, Overloaded, SymphonyError, WorkerLost

#: What another try may mend. A connection that is lost is not among it, because then there is no way to send.
RETRIED = (WorkerLost, Overloaded, NoGPUWorker)

#: The wait before the first retry is this part of the SLO, and no more than so long; it doubles each time.
FIRST_WAIT_SHARE = 1 / 16
FIRST_WAIT_NS = 50_000_000


class RetriedFuture(InferenceFuture):
    """The answer of whichever try has one; all tries share one deadline.

    send: submits the request with an SLO in ns. later: has a function called after so many seconds, or ends this future
    if that cannot be. Errors of the first try are raised at once, as ``Model.submit`` does.
    """

    def __init__(
        self,
        send: Callable[[int], InferenceFuture],
        slo_ns: int,
        retries: int,
        later: Callable[[float, InferenceFuture, Callable[[], None]], None],
    ) -> None:
        super().__init__(-1, self._withdraw)
        self._send = send
        self._later = later
        self._ends_ns = now_ns() + slo_ns
        self._wait_ns = min(slo_ns * FIRST_WAIT_SHARE, FIRST_WAIT_NS)
        self._left = retries
        self._try: InferenceFuture | None = None
        self._submit(slo_ns)

    def _submit(self, slo_ns: int) -> None:
        self._try = self._send(slo_ns)
        self.request, self.answered_in = self._try.request, self._try.answered_in
        self._try.add_done_callback(self._ended)  # type: ignore[arg-type]
        if self.cancelled():  # while it was being sent
            self._try.cancel()

    def _again(self) -> None:
        if self.cancelled():
            return
        try:
            self._submit(max(self._ends_ns - now_ns(), 1))
        except SymphonyError as error:
            self._finish("failed", None, error)

    def _ended(self, future: InferenceFuture) -> None:
        if future.cancelled():
            self.cancel()
            return
        error = future.exception()
        # Requests that were refused together must not all come back together.
        wait_ns = self._wait_ns * random.uniform(0.5, 1.5)  # noqa: S311 - spreads retries, keeps no secret
        if isinstance(error, RETRIED) and self._left > 0 and now_ns() + wait_ns < self._ends_ns:
            self._left -= 1
            self._wait_ns *= 2
            self._later(wait_ns / 1e9, self, self._again)
        else:
            self._finish(future.outcome or "failed", None if error is not None else future.result(), error)

    def _withdraw(self, request: int) -> None:
        if self._try is not None:
            self._try.cancel()
