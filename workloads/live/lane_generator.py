"""Offers requests over the lane from a process of its own: ``python -m workloads.live.lane_generator PLAN RESULT``; see
``load_generator``.

A request costs it an entry in a few columns and no object of its own, so one process keeps a schedule of tens of
thousands of requests a second:

Rule 1. A timer rings when the next request is due; all that are due by then, or within TOGETHER_NS, leave in one frame.
        Frames are at least APART_NS apart. The generator never waits for an answer (open loop).
Rule 2. Each request says how long ago it was due, so its deadline counts from its own time, however late it left.
Rule 3. Payloads that are too large for the scheduler go to the workers, as a user's client sends them
        (``symphony_dask.client.transfer``).
Rule 4. In a closed loop there are so many requests under way at any time; each answer sets off the next.
"""

from __future__ import annotations

import asyncio
import gc
import pickle
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from symphony_dask.client.transfer import Direct
from symphony_dask.clock import now_ns
from symphony_dask.dispatcher.timer import Timer
from symphony_dask.trace import Outcome
from symphony_dask.units import NS_PER_S
from symphony_dask.wire.connection import Connection
from symphony_dask.wire.directions import SCHEDULER_TO_CLIENT
from symphony_dask.wire.handshake import connect
from symphony_dask.wire.hello import ClientHello
from symphony_dask.wire.messages import RELAYED, Place, Result, Submit
from symphony_dask.wire.records import SUBMIT_ROW, make_records

if TYPE_CHECKING:
    from distributed import Security

#: Requests due within so long leave together, and frames leave so far apart, ns.
TOGETHER_NS, APART_NS = 50_000, 500_000

#: A frame of requests carries at most so many bytes of payload.
_FRAME_BYTES = 1 << 24

#: Outcome of a request without an answer.
NO_ANSWER = -1


@dataclass(frozen=True)
class Plan:
    """What one process offers. Times in ns; n requests.

    due: (n,) rising, from the common start; None in a closed loop.
    models: (n,) the model's number on the lane; the first alone counts in a closed loop.
    payloads: encoded sample by model number. relay: the setting ``symphony.lane.relay``.
    under_way: of a closed loop, how many requests at any time; then at most n requests in all.
    span: from the start to the last request.
    drain: how long to wait for the last answers.
    """

    host: str
    port: int
    token: str
    security: Security
    due: npt.NDArray[np.int64] | None
    models: npt.NDArray[np.int32]
    payloads: dict[int, bytes]
    relay: str
    under_way: int
    span: int
    drain: int


class _Generator:
    def __init__(self, plan: Plan) -> None:
        n = len(plan.models)
        self._plan = plan
        self._sizes = np.zeros(max(plan.payloads, default=0) + 1, np.int64)
        for model, payload in plan.payloads.items():
            self._sizes[model] = len(payload)
        self._most = max(1, _FRAME_BYTES // max(1, int(self._sizes.max())))
        self._same = next(iter(plan.payloads.values())) if len(plan.payloads) == 1 else None
        self.submitted = np.full(n, -1, np.int64)
        self.done = np.full(n, -1, np.int64)
        self.outcome = np.full(n, NO_ANSWER, np.int8)
        self._next = 0
        self._answered = 0
        self._end = 0
        self._lost = ""

    async def run(self) -> dict[str, Any]:
        plan = self._plan
        loop = asyncio.get_running_loop()
        self._finished = loop.create_future()
        ssl_context = plan.security.get_connection_args("client").get("ssl_context")
        hello = ClientHello(token=plan.token)
        self._connection, welcome = await connect(
            plan.host, plan.port, hello, self._frame, self._gone, peer=None, ssl_context=ssl_context
        )
        self._direct = Direct(
            self._connection,
            welcome,
            plan.token,
            ssl_context=ssl_context,
            relay=plan.relay,
            pending=range(len(self.done)),
            on_answer=self._answered_directly,
            on_broken=lambda request, text: self._answer(np.array([request]), Outcome.FAILED),
        )
        self._holds = [self._direct.keeps(int(size)) for size in self._sizes]
        print("ready", flush=True)
        self._start = int(await asyncio.to_thread(sys.stdin.readline))
        gc.collect()
        gc.disable()
        self._timer = Timer(loop, self._ring)
        if plan.due is None:
            self._end = self._start + plan.span
            self._timer.set(self._start)
            last = self._end
        else:
            self._due = plan.due + self._start
            self._timer.set(int(self._due[0]))
            last = int(self._due[-1])
        try:
            await asyncio.wait_for(self._finished, (last + plan.drain - now_ns()) / NS_PER_S)
        except TimeoutError:
            pass
        self._timer.close()
        self._direct.close()
        self._connection.close()
        sent = self._next
        return {
            "submitted": self.submitted[:sent] - self._start,
            "done": np.where(self.done[:sent] >= 0, self.done[:sent] - self._start, -1),
            "outcome": self.outcome[:sent],
            "lost": self._lost,
        }

    def _ring(self) -> None:
        if self._plan.due is None:
            self._send(min(self._plan.under_way, len(self.done)), now_ns())
            return
        now = now_ns()
        n = len(self._due)
        i = self._next
        j = max(i + 1, int(np.searchsorted(self._due, now + TOGETHER_NS, "right")))
        while i < j:
            k = min(j, i + self._most)
            self._send(k - i, now)
            i = k
        if j < n:
            self._timer.set(max(int(self._due[j]), now + APART_NS))

    def _send(self, count: int, now: int) -> None:
        """Send the next ``count`` requests in one frame."""
        i, j = self._next, self._next + count
        self._next = j
        models = self._plan.models[i:j]
        ages = np.zeros(count, np.int64) if self._plan.due is None else np.maximum(now - self._due[i:j], 0)
        payloads, held = self._plan.payloads, bytes(count)
        if any(self._holds):
            held = bytes(self._holds[m] for m in models.tolist())
            for request, model in enumerate(models.tolist(), i):
                if self._holds[model]:
                    self._direct.hold(request, payloads[model])
        if self._same is None or any(held):
            blob = b"".join([payloads[m] for m, kept in zip(models.tolist(), held, strict=True) if not kept])
        else:
            blob = self._same * count
        records = make_records(
            SUBMIT_ROW, count, id=np.arange(i, j), age=ages, bytes=self._sizes[models], model=models,
            held=np.frombuffer(held, np.int8),
        )  # fmt: skip
        self._connection.send(Submit(records), blob)
        self.submitted[i:j] = now

    def _frame(self, connection: Connection[None], op: int, fields: list[Any], blob: memoryview) -> None:
        message = SCHEDULER_TO_CLIENT.read(op, fields, blob)
        if isinstance(message, Place):
            self._direct.place(message.batch, message.host, message.port, message.ids.tolist())
        elif isinstance(message, Result):
            results = message.rows
            far = results["link"] >= 0
            if far.any():
                for request, _, link, outcome in results[far].tolist():
                    self._direct.outcome(request, link, Outcome(outcome).name)
                results = results[~far]
            ids, outcomes = results["id"], results["outcome"]
            if any(self._holds):
                for request in ids.tolist():
                    self._direct.forget(request)
            self._answer(ids, outcomes)
        else:
            self._direct.take(RELAYED, message, blob)

    def _answered_directly(self, request: int, outcome: str, payload: memoryview) -> None:
        self._answer(np.array([request]), Outcome[outcome])

    def _answer(self, ids: npt.NDArray[np.int64], outcomes: Any) -> None:
        """These requests have ended."""
        now = now_ns()
        self.done[ids] = now
        self.outcome[ids] = outcomes
        self._answered += len(ids)
        if self._plan.due is None:
            more = min(len(ids), len(self.done) - self._next)
            if now < self._end and more > 0:
                self._send(more, now)
            if self._answered == self._next:
                self._finish()
        elif self._answered == len(self.done):
            self._finish()

    def _gone(self, connection: Connection[None], error: Exception | None) -> None:
        self._lost = f"the lane connection was lost ({error or 'closed'})"
        self._finish()

    def _finish(self) -> None:
        if not self._finished.done():
            self._finished.set_result(None)


def main(make: Callable[[Any], Any]) -> None:
    """Run ``make(plan).run()`` on the plan in the file named first, and write what it returns into the second."""
    plan_file, result_file = sys.argv[1:]
    plan = pickle.loads(Path(plan_file).read_bytes())  # noqa: S301 - of the parent, in a folder of this user's only
    Path(result_file).write_bytes(pickle.dumps(asyncio.run(make(plan).run())))


if __name__ == "__main__":
    main(_Generator)
