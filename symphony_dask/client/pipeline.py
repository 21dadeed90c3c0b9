"""Leads requests through models one after the other and side by side, served as one: ``Serving.pipeline``.

The client leads each request through the stages: every one is a request of its own to a model, batched with all other
requests to that model. All share one deadline. A stage that has ended early leaves its time to those after it, and one
that was late takes it from them: of what remains, a stage has the part t / (t + t of all after it), where t are the
budgets of ``slo_split``. What the client's own functions take is measured, and kept free for those still to come: a
batch may well end just at its deadline.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from symphony_dask.client.deadline import remaining_ns
from symphony_dask.client.future import InferenceFuture
from symphony_dask.client.model import Model
from symphony_dask.client.notebook import grid
from symphony_dask.client.slo_split import Graph, Split, Work, split
from symphony_dask.client.stages import (
    COMBINE,
    Ask,
    Call,
    Parallel,
    Series,
    Stage,
    describe,
    models_of,
    name_of,
    runs_functions_last,
)
from symphony_dask.client.user_functions import UserFunction
from symphony_dask.clock import now_ns
from symphony_dask.dispatcher.delay import Latency
from symphony_dask.errors import (
    BadInput,
    ConnectionLost,
    DeadlineExceeded,
    NoGPUWorker,
    Overloaded,
    SymphonyError,
    Undeployed,
    UnknownModel,
)
from symphony_dask.text import brief
from symphony_dask.units import NS_PER_S, Seconds, format_duration, parse_duration_ns
from symphony_dask.wait_checks import AnsweringLoop

_OUTCOMES: dict[type[BaseException], str] = {
    DeadlineExceeded: "dropped",
    Overloaded: "rejected",
    NoGPUWorker: "rejected",
    Undeployed: "cancelled",
}


@dataclass(frozen=True)
class _Request:
    """ends_ns: its deadline. options: of its requests to models."""

    ends_ns: int
    options: dict[str, Any]


class Pipeline:
    """Stages served under one name with one SLO.

    split: the budgets, batches and GPU time of the stages (``slo_split.Split``), for ``rate_hz`` requests a second.
    """

    def __init__(
        self,
        name: str,
        stages: Stage,
        slo_ns: int,
        rate_hz: float | None,
        models: dict[str, Model],
        loop: asyncio.AbstractEventLoop,
        find: Callable[[str], Any],
        overhead_ns: int = 0,
    ) -> None:
        self.name = name
        self.stages = stages
        self.slo_ns = slo_ns
        self._models = models
        self._loop, self._answered_in = loop, AnsweringLoop(loop)
        self._find = find
        self._overhead_ns = overhead_ns
        # By the identity of the stage: what its function took, with the wait for a thread.
        self._times: defaultdict[int, Latency] = defaultdict(Latency)
        self._functions: dict[int, UserFunction] = {}
        self.resplit(rate_hz)

    def resplit(self, rate_hz: float | None) -> Split:
        """Split the SLO for another rate, and by what is known of the models now. Raises ``BadInput``.

        rate_hz: requests a second that are expected of all clients together; None: batches may take half a budget.
        """
        if rate_hz is not None and not 0 < rate_hz < 1e9:
            raise BadInput(f"rate_hz={rate_hz!r}: give a number of requests a second above 0, or None")
        self.rate_hz = rate_hz
        self.split = split(self._graph(self.stages), self.slo_ns)
        return self.split

    def submit(
        self, x: object, *, slo: str | Seconds | None = None, priority: int = 0, retries: int = 0
    ) -> InferenceFuture:
        """Submit one sample; returns its future at once. Options, errors and threads are those of ``Model.submit``.

        The future also raises what a function of the pipeline raises, or a ``ModelError`` in its place where a future
        cannot hand that on (``SystemExit``, ``StopIteration``, ...). A function that has not returned by the deadline
        is waited for no longer (``user_functions``). Cancelling the future cancels the stages under way.
        """
        slo_ns = self.slo_ns if slo is None else parse_duration_ns(slo, "slo")
        self._answered_in.check_process()
        left_ns = remaining_ns()
        slo_ns = slo_ns if left_ns is None else min(slo_ns, left_ns)
        running: list[Any] = []
        future = InferenceFuture(on_cancel=lambda request: running[0].cancel() if running else None)
        future.answered_in = self._answered_in
        request = _Request(now_ns() + slo_ns, {"priority": priority, "retries": retries})
        work = self._answer(future, x, request)
        try:
            running.append(asyncio.run_coroutine_threadsafe(work, self._loop))
        except RuntimeError as error:  # the event loop is closed
            work.close()
            raise ConnectionLost("the Dask client is closed: make a new Serving(client)") from error
        return future

    def map(
        self, xs: Iterable[Any], *, slo: str | Seconds | None = None, priority: int = 0, retries: int = 0
    ) -> list[InferenceFuture]:
        """Submit every sample of ``xs``; returns their futures in order."""
        submit = partial(self.submit, slo=slo, priority=priority, retries=retries)
        return [submit(x) for x in xs]

    def __call__(self, x: object, *, slo: str | Seconds | None = None) -> Any:
        """Submit one sample and wait for the answer; raises as ``Model`` does when called."""
        self._answered_in.check_wait()
        return self.submit(x, slo=slo).result()

    @property
    def models(self) -> list[str]:
        """The names of its models."""
        return models_of(self.stages)

    def budgets(self) -> list[tuple[str, int, int]]:
        """(model, budget in ns, batch that is expected) of each stage on GPUs, in order."""
        return [(ask.model, part.budget_ns, part.batch) for ask, part in _pairs(self.stages, self.split)]

    def __reduce__(self) -> Any:
        raise BadInput(
            f"pipeline {self.name!r} cannot be sent: in a Dask graph, make each of its models a task; elsewhere, use "
            f"serving.find({self.name!r})"
        )

    def __repr__(self) -> str:
        return f"<Pipeline {self.name!r}: {describe(self.stages)}, SLO {format_duration(self.slo_ns)}>"

    def _repr_html_(self) -> str:
        rows = [(name, format_duration(budget_ns), batch) for name, budget_ns, batch in self.budgets()]
        title = f"Pipeline {self.name}: {describe(self.stages)}, SLO {format_duration(self.slo_ns)}"
        return grid(title, ("stage", "budget", "batch"), rows)

    def _graph(self, stage: Stage) -> Graph:
        if isinstance(stage, Call):
            return None
        if isinstance(stage, Series):
            return [self._graph(part) for part in stage.parts]
        if isinstance(stage, Parallel):
            return tuple(self._graph(member) for member in stage.members)
        latencies = [profile.latency_ns() for profile in self._models[stage.model].profiles.values()]
        most = min(map(len, latencies))
        # As windows do, by the fastest class.
        return Work(np.min([latency[:most] for latency in latencies], axis=0), self.rate_hz, self._overhead_ns)

    async def _answer(self, future: InferenceFuture, x: object, request: _Request) -> None:
        try:
            result = await self._run(self.stages, self.split, x, request.ends_ns, request)
        except asyncio.CancelledError:
            future.cancel()
            raise
        except Exception as error:
            with suppress(Exception):  # a user's exception may let nobody write to it
                error.add_note(f"in pipeline {self.name!r}: {describe(self.stages)}")
            future._finish(_OUTCOMES.get(type(error), "failed"), None, error)
        else:
            future._finish("ok" if now_ns() <= request.ends_ns else "late", result, None)

    async def _run(self, stage: Stage, part: Split, x: object, ends_ns: int, request: _Request) -> Any:
        """ends_ns: when the models in this stage must have answered."""
        if isinstance(stage, Ask):
            return await self._ask(stage.model, x, ends_ns, request.options)
        if isinstance(stage, Call):
            return await self._call(stage, stage.function, x, request)
        if isinstance(stage, Series):
            left = part.budget_ns
            for i, (inner, inner_part) in enumerate(zip(stage.parts, part.parts, strict=True)):
                now = now_ns()
                own_ns, all_ns = self._kept_ns(stage.parts[i:], ends_ns - now)
                share = inner_part.budget_ns / left if left > inner_part.budget_ns else 1.0
                inner_ends_ns = now + own_ns + int((ends_ns - now - all_ns) * share)
                x = await self._run(inner, inner_part, x, inner_ends_ns, request)
                left -= inner_part.budget_ns
            return x
        members_end_ns = ends_ns - min(self._times[id(stage)].bound_ns(), max(ends_ns - now_ns(), 0) // 2)
        runs = [
            asyncio.ensure_future(self._run(member, member_part, x, members_end_ns, request))
            for member, member_part in zip(stage.members, part.parts, strict=True)
        ]
        try:
            answers = await asyncio.gather(*runs)
        except BaseException:
            for run in runs:
                run.cancel()
            await asyncio.gather(*runs, return_exceptions=True)
            raise
        if callable(stage.combine):
            return await self._call(stage, stage.combine, answers, request)
        combine = COMBINE[stage.combine]
        # What models answered is plain data. What a function returned may have code of its own.
        if any(map(runs_functions_last, stage.members)):
            return await self._call(stage, combine, answers, request)
        return combine(answers)

    def _kept_ns(self, stages: Sequence[Stage], left_ns: int) -> tuple[int, int]:
        """What to keep free for the client's functions in the first of these and in all: no more than half of all."""
        each = [self._client_ns(stage) for stage in stages]
        most = max(left_ns, 0) // 2
        scale = min(1.0, most / sum(each)) if any(each) else 0.0
        return int(each[0] * scale), int(sum(each) * scale)

    def _client_ns(self, stage: Stage) -> int:
        """What the client's functions in a stage nearly never exceed."""
        if isinstance(stage, Ask):
            return 0
        if isinstance(stage, Call):
            return self._times[id(stage)].bound_ns()
        if isinstance(stage, Series):
            return sum(map(self._client_ns, stage.parts))
        return max(map(self._client_ns, stage.members)) + self._times[id(stage)].bound_ns()

    async def _ask(self, name: str, x: object, ends_ns: int, options: dict[str, Any]) -> Any:
        left_ns = ends_ns - now_ns()
        if left_ns <= 0:
            raise DeadlineExceeded(f"the deadline passed {format_duration(-left_ns)} before the stage {name!r} began")
        try:
            return await self._submit(name, x, left_ns, options)
        except UnknownModel:  # undeployed, and perhaps deployed again
            self._models[name] = await self._find(name)
            return await self._submit(name, x, max(ends_ns - now_ns(), 1), options)

    def _submit(self, name: str, x: object, slo_ns: int, options: dict[str, Any]) -> InferenceFuture:
        try:
            return self._models[name].submit(x, slo=Seconds(slo_ns / NS_PER_S), **options)
        except SymphonyError:
            raise
        except BaseException as error:  # of the code of an object that a function returned
            raise BadInput(f"what the stage {name!r} is to get cannot be sent: {brief(error)}") from None

    async def _call(self, stage: Stage, function: Callable[[Any], Any], x: object, request: _Request) -> Any:
        begin_ns, what = now_ns(), f"{name_of(function)}()"
        left_ns = request.ends_ns - begin_ns
        if left_ns <= 0:
            raise DeadlineExceeded(f"the deadline passed {format_duration(-left_ns)} before {what} began")
        if id(stage) not in self._functions:
            self._functions[id(stage)] = UserFunction(function, what)
        try:
            return await self._functions[id(stage)](x, request.ends_ns, left_ns)
        finally:
            self._times[id(stage)].add(now_ns() - begin_ns)


def _pairs(stage: Stage, part: Split) -> Iterator[tuple[Ask, Split]]:
    if isinstance(stage, Ask):
        yield stage, part
    elif not isinstance(stage, Call):
        inner = stage.parts if isinstance(stage, Series) else stage.members
        for one, one_part in zip(inner, part.parts, strict=True):
            yield from _pairs(one, one_part)
