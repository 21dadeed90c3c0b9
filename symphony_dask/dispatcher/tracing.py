"""Emits OpenTelemetry traces of requests, through the batch that each was in; needs the extra ``otel``.

The scheduler's process emits them, from what it knows when a request has ended:

    symphony.request            the client's submit .. the answer's arrival there
      symphony.queue            .. dispatch
      symphony.dispatch         .. start on the GPU
      symphony.execute          .. end
      symphony.reply            .. the answer's arrival at the client

A span costs some tens of microseconds where requests cost a few, so a share of the requests is traced, one in so many.
Spans go to the tracer provider of the process: whoever starts the scheduler sets it up.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import numpy.typing as npt

from symphony_dask.clock import now_ns
from symphony_dask.dispatcher.request_table import Rows
from symphony_dask.dispatcher.run_log import Flight, ServedModel
from symphony_dask.engine.start_rules import START_RULES
from symphony_dask.errors import BadInput
from symphony_dask.trace import Outcome
from symphony_dask.units import NS_PER_S


class Tracing:
    """Emits spans of one request in so many. share: of the requests, above 0 and up to 1; raises ``BadInput``."""

    def __init__(self, share: float) -> None:
        if not 0 < share <= 1:
            raise BadInput(
                f"setting symphony.tracing is {share!r}: give the share of requests to trace, 0 < share <= 1"
            )
        try:
            from opentelemetry import trace
        except ImportError:
            text = 'setting symphony.tracing needs OpenTelemetry: pip install "symphony-dask[otel]", or set it to null'
            raise BadInput(text) from None
        self._api = trace
        self._tracer = trace.get_tracer("symphony_dask")
        self._every = round(1 / share)
        self._n = 0
        #: From the host's clock to that of spans, ns.
        self._epoch_ns = time.time_ns() - now_ns()

    def served(
        self,
        flight: Flight,
        entries: npt.NDArray[Any],
        outcomes: npt.NDArray[np.int8],
        worker: str,
        start: int,
        end: int,
        replies: npt.NDArray[np.int64],
    ) -> None:
        """The requests of a batch have ended: ``entries`` as settled, when each one's answer arrives, ns."""
        for i in self._chosen(len(entries)):
            arrival, reply = int(entries["arrival"][i]), int(replies[i])
            outcome = Outcome(int(outcomes[i]))
            attributes: dict[str, Any] = {"symphony.batch": flight.batch, "symphony.batch_size": len(entries)}
            attributes |= {"symphony.gpu": flight.gpu, "symphony.worker": worker}
            window = [at + self._epoch_ns for at in flight.window]
            attributes |= {"symphony.window_open_ns": window[0], "symphony.window_close_ns": window[1]}
            attributes["symphony.rule"] = START_RULES[flight.rule]
            parts = (
                ("queue", arrival, flight.dispatch_ns),
                ("dispatch", flight.dispatch_ns, start),
                ("execute", start, end),
                ("reply", end, reply),
            )
            self._emit(
                flight.model, entries["id"][i], arrival, entries["deadline"][i], reply, outcome, attributes, parts
            )

    def ended(self, model: ServedModel, rows: Rows, outcome: Outcome) -> None:
        """Requests have ended, now, without having run."""
        now = now_ns()
        for i in self._chosen(len(rows.ids)):
            arrival = int(rows.arrivals[i])
            self._emit(model, rows.ids[i], arrival, rows.deadlines[i], now, outcome, {}, (("queue", arrival, now),))

    def _chosen(self, n: int) -> range:
        """Which of the next n requests are traced."""
        first = -self._n % self._every
        self._n += n
        return range(first, n, self._every)

    def _emit(
        self,
        model: ServedModel,
        request: Any,
        arrival: int,
        deadline: Any,
        reply: int,
        outcome: Outcome,
        attributes: dict[str, Any],
        parts: tuple[tuple[str, int, int], ...],
    ) -> None:
        zero = self._epoch_ns
        whole: dict[str, Any] = {
            "symphony.model": model.name,
            "symphony.request": int(request),
            "symphony.outcome": outcome.name.lower(),
        }
        whole["symphony.slo_seconds"] = (int(deadline) - arrival) / NS_PER_S
        span = self._tracer.start_span("symphony.request", start_time=zero + arrival, attributes=whole | attributes)
        inside = self._api.set_span_in_context(span)
        for name, begins, ends in parts:
            part = self._tracer.start_span(f"symphony.{name}", inside, start_time=zero + begins)
            part.end(zero + max(begins, ends))
        if outcome != Outcome.OK:
            span.set_status(self._api.Status(self._api.StatusCode.ERROR, outcome.name.lower()))
        span.end(zero + max(arrival, reply))
