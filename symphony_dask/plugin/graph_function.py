"""Makes models functions in Dask graphs: what a user writes, and what becomes of it on the worker.

>>> client.submit(model, x)                                    # doctest: +SKIP
>>> client.map(model, xs)                                      # doctest: +SKIP
>>> dask.delayed(postprocess)(dask.delayed(model)(dask.delayed(preprocess)(x)))   # doctest: +SKIP
>>> with dask.annotate(symphony={"slo": "50ms", "priority": 1}):                  # doctest: +SKIP
...     client.submit(model, x)

A ``Model`` travels in a graph as a ``ModelRef``, which is a ``GraphFunction``. The scheduler's plugin holds each task
whose function is one (``graph_tasks.GraphTasks``), has the engine batch it with all other requests, and sends it to the
worker of its batch with ``run_graph_task`` in place of the function.
"""

from __future__ import annotations

from collections.abc import Coroutine
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from symphony_dask.backends.sample import check_sample
from symphony_dask.engine.queue_limits import MOST_PRIORITY
from symphony_dask.errors import BadInput, NotServing, SymphonyError
from symphony_dask.text import brief, did_you_mean, plain, shown
from symphony_dask.units import parse_duration_ns
from symphony_dask.wire import codec

_KEYS = {"model", "slo", "priority"}


@dataclass(frozen=True)
class GraphFunction:
    """A served model by name, as the function of a Dask task.

    signature: what requests must look like (``backends.sample_signature``); None lets everything pass.
    deployment: tells deployments of one name apart, so that Dask does not take results of one for those of another.
    """

    name: str
    signature: bytes | None = field(default=None, repr=False)
    deployment: str = field(default="", repr=False)

    @property
    def __name__(self) -> str:
        return self.name or "infer"

    def __dask_tokenize__(self) -> tuple[str, str, str]:
        return token(self.name, self.deployment)

    def __call__(self, x: object, *, slo: str | None = None) -> Any:
        """Raises ``NotServing``: only the scheduler's plugin can have a model called, for a task of its own."""
        raise NotServing(
            f"model {self.name!r} was called inside another task, or without Symphony on the scheduler: make it a task "
            "of its own, as in client.submit(model, x), and do not fuse tasks (optimization.fuse.delayed); or ask it "
            "from within the task, model.submit(x).result()"
        )


def token(name: str, deployment: str) -> tuple[str, str, str]:
    """What a model is to ``dask.base.tokenize``."""
    return ("symphony_dask.Model", name, deployment)


@dataclass(frozen=True)
class ModelCall:
    """What a task asks of which model. ``slo_ns`` 0 is the model's own."""

    model: GraphFunction
    slo_ns: int
    priority: int


def model_call_of(spec: Any, annotations: dict[str, Any] | None) -> ModelCall | SymphonyError | None:
    """What a Dask task with this ``run_spec`` asks for: None if its function is no model, else a wish or what is wrong.

    The annotation ``symphony={"model": NAME, "slo": "50ms", "priority": 1}``, each key optional, holds for tasks whose
    function is a model; it leaves others alone, so that it may span a whole graph. "model" is for ``infer``.
    """
    model = getattr(spec, "func", None)
    if not isinstance(model, GraphFunction):
        return None
    try:
        asked = dict((annotations or {}).get("symphony") or {})
        if not asked.keys() <= _KEYS:
            unknown = sorted(map(str, asked.keys() - _KEYS))
            text = (
                f"annotation symphony={shown(asked)} has {plain(', '.join(unknown), 100)}: it may have {sorted(_KEYS)}"
            )
            raise BadInput(f"{text}{did_you_mean(unknown[0], _KEYS)}")
        if not model.name:
            model = GraphFunction(str(asked.get("model") or ""))
        if not model.name:
            raise BadInput('task of symphony_dask.infer has no model: set dask.annotate(symphony={"model": NAME})')
        priority = asked.get("priority", 0)
        if not isinstance(priority, int) or not 0 <= priority <= MOST_PRIORITY:
            raise BadInput(f"priority={priority!r}: give a whole number between 0 and {MOST_PRIORITY}")
        samples, others = len(spec.args) + ("x" in spec.kwargs), sorted(map(str, spec.kwargs.keys() - {"x", "slo"}))
        if samples != 1 or others:
            got = f"{samples} arguments" + (f" and {plain(', '.join(others), 100)}" if others else "")
            text = f"model {model.name!r} takes one sample, and slo= if you like; this task calls it with {got}"
            raise BadInput(f"{text}: write client.submit(model, x), and put several inputs into a dict or tuple")
        slo = spec.kwargs.get("slo", asked.get("slo"))
        return ModelCall(model, 0 if slo is None else parse_duration_ns(slo, "slo"), priority)
    except SymphonyError as error:
        return error
    except Exception as error:  # of whatever a user annotated
        given = shown((annotations or {}).get("symphony"))
        return BadInput(f"annotation symphony={given} cannot be read: {brief(error)}")


async def run_graph_task(task: str, model: GraphFunction, x: object, *, slo: object = None) -> Any:
    """On the worker: bring the sample to its batch and wait for the answer.

    A coroutine, because a task that waits must not hold a thread of the worker.

    Raises ``BadInput``, or ``ModelError`` with the traceback of the model.
    """
    from distributed import get_worker

    plugin: Any = get_worker().plugins["symphony"]
    rendezvous = plugin.rendezvous
    try:
        payload = _encoded(model.name, x)
        check_sample(model.name, model.signature, payload)
        answer = await rendezvous.arrive(task, payload)
    finally:
        rendezvous.leave(task)
    return codec.decode(answer)


def _encoded(model: str, x: object) -> bytes | memoryview:
    try:
        return codec.encode_payload(x)
    except SymphonyError:
        raise
    except BaseException as error:  # of the code of a user's object, in the event loop of a worker
        raise BadInput(f"the sample for model {model!r} cannot be sent: {brief(error)}") from None


def graph_task_function(task: str, model: GraphFunction) -> partial[Coroutine[Any, Any, Any]]:
    """The function that a graph task is sent to its worker with."""
    return partial(run_graph_task, task, model)


def graph_task_name(spec: object) -> str | None:
    """The name of a graph task by its ``run_spec``; None for all others."""
    func = getattr(spec, "func", None)
    return func.args[0] if isinstance(func, partial) and func.func is run_graph_task else None
