"""Submits samples to a served model, and stands for it as the function of a Dask task: the handle to a model."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from symphony_dask.backends import check_sample
from symphony_dask.client.deadline import remaining_ns
from symphony_dask.client.future import InferenceFuture
from symphony_dask.client.notebook import latency_text, table
from symphony_dask.client.retry import RetriedFuture
from symphony_dask.client.session import Session
from symphony_dask.clock import now_ns
from symphony_dask.engine.latency_profile import LatencyProfile
from symphony_dask.engine.queue_limits import MOST_PRIORITY
from symphony_dask.errors import BadInput, DeadlineExceeded
from symphony_dask.plugin.graph_function import GraphFunction, token
from symphony_dask.units import Seconds, format_duration, parse_duration_ns
from symphony_dask.wire import codec

#: The largest sample, bytes: a batch of some must fit into one frame of the lane.
MAX_SAMPLE_BYTES = 1 << 26


class Model:
    """A served model; made by ``Serving.deploy`` and ``find``. Also the function of Dask tasks (``graph_function``).

    profiles: l(b) by GPU class, as given or measured.
    version: the one that served when it was last asked; requests go to the one that serves when they come.
    function: what it is sent to other processes as.
    """

    def __init__(
        self,
        name: str,
        model_id: int,
        slo_ns: int,
        profiles: dict[str, LatencyProfile],
        signature: bytes | None,
        lane: Session,
        version: str = "1",
        function: Callable[[str, bytes | None, str], GraphFunction] = GraphFunction,
    ) -> None:
        self.name = name
        self.slo_ns = slo_ns
        self.profiles = profiles
        self.version = version
        self._id = model_id
        self._signature = signature
        self._lane = lane
        self._function = function

    def _follow(self, newer: Model) -> None:
        """Another version took over."""
        self.slo_ns, self.profiles, self.version = newer.slo_ns, newer.profiles, newer.version
        self._signature = newer._signature

    @property
    def number(self) -> int:
        """The model's number on the lane, for tools that speak it themselves."""
        return self._id

    def submit(
        self, x: object, *, slo: str | Seconds | None = None, priority: int = 0, retries: int = 0
    ) -> InferenceFuture:
        """Submit one sample; returns its future at once. From any thread.

        slo: of this request alone, instead of the model's; it covers what is between this call and the answer in the
            caller's hands. Within ``symphony_dask.deadline(...)`` no more than is left.
        priority: 0 to 7. In overload, requests of a higher one are served first, and take the room of lower ones, which
            end as ``Overloaded``, in a full queue. Otherwise it changes nothing.
        retries: how often to send it again, while its deadline allows, after ``WorkerLost``, ``Overloaded`` or
            ``NoGPUWorker``; waits double from a sixteenth of the SLO, 50 ms at most. A sample may then run twice.

        Raises ``BadInput`` if ``x`` cannot be sent or has not the shape of the model's example, ``ConnectionLost``. The
        future raises a ``RequestError``: ``DeadlineExceeded``, ``Overloaded``, ``NoGPUWorker``, ``ModelError``, ...
        """
        began_ns, left_ns = now_ns(), remaining_ns()
        payload = codec.encode_payload(x)
        check_sample(self.name, self._signature, payload)
        if len(payload) > MAX_SAMPLE_BYTES:
            text = f"a sample of {len(payload)} bytes for model {self.name!r}: the most is {MAX_SAMPLE_BYTES}"
            raise BadInput(f"{text}; send a path or URL, and have the model read it")
        if not isinstance(priority, int) or not 0 <= priority <= MOST_PRIORITY:
            raise BadInput(f"priority={priority!r}: give a whole number between 0 and {MOST_PRIORITY}")
        slo_ns = 0 if slo is None else parse_duration_ns(slo, "slo")
        if left_ns is not None:
            if left_ns <= 0:
                return self._too_late(left_ns)
            slo_ns = min(slo_ns or self.slo_ns, left_ns)
        if not retries:
            within_ns = slo_ns or self.slo_ns
            return self._lane.submit(self._id, payload, slo_ns, priority, within_ns=within_ns, began_ns=began_ns)
        if not isinstance(retries, int) or retries < 0:
            raise BadInput(f"retries={retries!r}: give a whole number, at least 0")

        def send(slo_ns: int) -> InferenceFuture:
            return self._lane.submit(self._id, payload, slo_ns, priority, within_ns=slo_ns)

        # Encoding counts, too.
        left_ns = max((slo_ns or self.slo_ns) + began_ns - now_ns(), 1)
        return RetriedFuture(send, left_ns, retries, self._lane.later)

    def _too_late(self, left_ns: int) -> InferenceFuture:
        future = InferenceFuture()
        text = f"the deadline of the block passed {format_duration(-left_ns)} before this request to {self.name!r}"
        future._finish("dropped", None, DeadlineExceeded(f"{text}: it was not sent"))
        return future

    def map(
        self, xs: Iterable[Any], *, slo: str | Seconds | None = None, priority: int = 0, retries: int = 0
    ) -> list[InferenceFuture]:
        """Submit every sample of ``xs``; returns their futures in order."""
        submit = partial(self.submit, slo=slo, priority=priority, retries=retries)
        return [submit(x) for x in xs]

    def __call__(self, x: object, *, slo: str | Seconds | None = None) -> Any:
        """Submit one sample and wait for the answer.

        Raises ``WouldDeadlock`` in the thread of the event loop that answers, as in a coroutine of an asynchronous
        client: ``await model.submit(x)`` there.
        """
        self._lane.check_wait()
        return self.submit(x, slo=slo).result()

    @property
    def __name__(self) -> str:
        return self.name

    @property
    def _deployment(self) -> str:
        return f"{self._lane.scheduler_id}-{self._id}-{self.version}"

    def __dask_tokenize__(self) -> tuple[str, str, str]:
        return token(self.name, self._deployment)

    def __reduce__(self) -> tuple[Any, ...]:
        return self._function, (self.name, self._signature, self._deployment)

    def __repr__(self) -> str:
        return f"<Model {self.name!r}: SLO {format_duration(self.slo_ns)}>"

    def _repr_html_(self) -> str:
        rows = [
            ("version", self.version),
            ("SLO", format_duration(self.slo_ns)),
            ("l(b)", latency_text(self.profiles) or "unknown"),
        ]
        return table(f"Model {self.name}", rows)
