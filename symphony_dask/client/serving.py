"""The user's side: deploy models on the cluster of a Dask ``Client`` and submit requests to them.

>>> serving = Serving(client)                                        # doctest: +SKIP
>>> model = serving.deploy("resnet", load_resnet, slo="25ms", example=x)   # doctest: +SKIP
>>> model.submit(x).result()                                         # doctest: +SKIP
"""

from __future__ import annotations

import asyncio
import re
import threading
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import dask.config
import numpy as np
from distributed import Client
from distributed.comm.addressing import get_address_host

from symphony_dask import config, errors
from symphony_dask.backends import as_spec, check_sample, sample_signature
from symphony_dask.backends.emulated import Emulated
from symphony_dask.backends.sample import ANY_SHAPE
from symphony_dask.client.deadline import remaining_ns
from symphony_dask.client.future import InferenceFuture, Waiting
from symphony_dask.client.notebook import latency_text, serving_html, table
from symphony_dask.client.pickling import pickled
from symphony_dask.client.retry import RetriedFuture
from symphony_dask.client.transfer import Direct
from symphony_dask.clock import now_ns
from symphony_dask.engine.engine import DEFAULT_QUEUE_LIMIT, MOST_PRIORITY
from symphony_dask.engine.latency_profile import DEFAULT_MAX_BATCH, LatencyProfile
from symphony_dask.errors import (
    BadInput,
    ConnectionLost,
    DeadlineExceeded,
    DeploymentError,
    NoAnswer,
    NoGPUWorker,
    NotServing,
    SymphonyError,
    UnknownModel,
)
from symphony_dask.names import name_list
from symphony_dask.plugin.graph_function import ModelRef, token
from symphony_dask.text import brief, check_name, did_you_mean, listed, shown
from symphony_dask.trace.schema import Outcome
from symphony_dask.units import Seconds, format_duration, parse_duration_ns
from symphony_dask.wait_checks import AnsweringLoop, check_client, is_closed, loop_of
from symphony_dask.wire import codec
from symphony_dask.wire import composite as inputs
from symphony_dask.wire.connection import (
    ANSWER,
    CANCEL,
    OVERDUE_NS,
    PLACE,
    RELAYED,
    RESULT,
    RESULT_ROW,
    SUBMIT,
    SUBMIT_ROW,
    VERSION,
    Connection,
    column,
    connect,
    pack_rows,
    read_column,
    read_rows,
)

if TYPE_CHECKING:
    from symphony_dask.client.pipeline import Pipeline

#: The largest sample, bytes: a batch of some must fit into one frame of the lane.
MAX_SAMPLE_BYTES = 1 << 26

#: A frame of requests ends with the one that reaches so many bytes.
FRAME_BYTES = 1 << 24

#: How long a notebook waits for the status of a cluster that it shows, and between looks whether one is ready, s.
_REPR_S = 1.0
_READY_POLL_S = 0.05

#: Names of models that the text of a ``Serving`` shows.
_MOST_SHOWN = 20

_SPEC_REMEDY = (
    "pass a loader function, which makes the model on the workers (def load(): ...; deploy(name, load, ...)), or take "
    "out what cannot be pickled, such as locks, connections and open files"
)

#: Modules that the functions of a pipeline import must be imported in this, ns.
_READ_STAGES_NS = 120_000_000_000

#: The scheduler pings its clients every 0.2 s. One that has said nothing for so long is silent, and requests whose
#: deadline is longer ago than OVERDUE_NS then end here; ends of requests are looked for every WATCH_S.
_SILENT_NS = 300_000_000
_WATCH_S = 0.1

#: A look that is later than this is late, ns: this process stood still, and may have answers that it has not read yet.
_LATE_LOOK_NS = 300_000_000

W = TypeVar("W", bound=Waiting)

_NUMBERED = re.compile(r"model (\d+) is not deployed")

_OUTCOMES = {int(o): o.name.lower() for o in Outcome}


class Serving:
    """Serves models on the cluster that ``client`` is connected to.

    Installs the scheduler plugin if the cluster does not run it yet. With an asynchronous client, ``await
    Serving(client)``, and each method below but ``model`` gives an awaitable.

    Raises ``NotServing`` if the plugin cannot be installed, ``ConnectionLost`` if the lane cannot be reached.
    """

    def __init__(self, client: Client) -> None:
        if not isinstance(client, Client):
            text = f"Serving({shown(client)}) is given a {type(client).__name__}: pass a Dask client"
            raise BadInput(f"{text}, as in Serving(distributed.Client({_address(client)}))")
        config.load()
        check_client(client)
        self.client = client
        self._lane = _Lane(client)
        self._models: dict[str, Model] = {}
        self._pipelines: dict[str, Pipeline] = {}
        self._seen: list[str] = []
        self._connecting: asyncio.Lock | None = None
        if not client.asynchronous:
            self._sync(self._connect)

    def __await__(self) -> Generator[Any, None, Serving]:
        async def connected() -> Serving:
            await self._connect()
            return self

        return connected().__await__()

    def deploy(
        self,
        name: str,
        model: Any,
        *,
        slo: str | Seconds,
        profile: LatencyProfile | str | tuple[float, float] | None = None,
        example: Any = None,
        max_batch: int = DEFAULT_MAX_BATCH,
        queue_limit: int = DEFAULT_QUEUE_LIMIT,
        optimize: str | None = None,
        collate: Callable[[list[Any]], Any] | None = None,
        timeout: str = "60s",
        version: str | int | None = None,
        canary: float | None = None,
        memory: str | int | None = None,
        pinned: bool = False,
        force: bool = False,
        declared: dict[str, Any] | None = None,
    ) -> Any:
        """Load ``model`` on the GPU workers and serve it under ``name``; returns a ``Model`` when it is ready.

        Where ``name`` is served already, this is a new version of it: it is loaded beside the old one and takes over
        when it is ready, all at once; requests that are queued are still served by the old one. Every ``Model`` of that
        name goes on, and no request fails. If the new version does not come up, the old one stays.

        model: a ``torch.nn.Module``; a callable that takes a batch; a callable without parameters that returns either,
            called on the workers; or ``Emulated(alpha_ms, beta_ms)``. For a batch of n it returns an array or tensor
            whose first dimension is n, or a list of n results. An exception in that list, as in ``[1.5,
            ValueError("no face found"), 2.5]``, fails that request alone: its future raises ``ModelError`` with its
            text.
        slo: how soon after its submission a request must be answered, such as "25ms".
        profile: l(b), as a ``LatencyProfile``, "alpha,beta" or (alpha, beta) in ms; measured on a worker if not given.
        example: one sample. Needed to measure the profile; requests of another dtype or shape are refused. A sample of
            several inputs is a dict of arrays or tensors, each entry of which is checked. A torch module gets the
            entries stacked, each as the keyword argument of its name; those of a tuple or list by position. A callable
            gets a list of such samples.
        max_batch: the largest batch to form.
        queue_limit: requests beyond it are rejected as ``Overloaded``.
        optimize: of torch modules, "compile" (``torch.compile``) or "cuda-graphs". Batches are then padded to a few
            sizes, each compiled or captured on deployment with ``example``.
        collate: a function that makes one batch of the list of n samples of any kind, on the worker. A callable is
            called with what it returns; a torch module too, with a mapping as keyword arguments, with a plain tuple
            by position, and arrays and tensors moved to its device. It must return n results still. What ``collate``
            raises ends the requests of the batch as ``ModelError``. Samples are then not checked against ``example``.
        timeout: how long to wait for a first GPU worker.
        version: what to call the version; by default a number, one more than the last.
        canary: the share of requests, such as 0.1, that the new version gets while the old one goes on; then
            ``promote`` or ``rollback``.
        memory: what the model needs in a GPU slot, "2GiB" or bytes; measured for torch modules. Where slots have a
            limit (the setting ``symphony.gpu.memory`` of workers), models are loaded and evicted as they are asked for.
        pinned: stay loaded in at least one slot.
        force: also where ``example`` is no sample of the version that serves now, whose clients would fail.
        declared: what a file says of it; see ``symphony apply``.

        Warns if the SLO is so near l(1) that the network leaves nothing of it.

        Raises ``BadInput``, ``NoGPUWorker``, or ``DeploymentError`` with the worker's traceback.
        """
        slo_ns = parse_duration_ns(slo, "slo")
        timeout_s = parse_duration_ns(timeout, "timeout") / 1e9
        check_name("model name", name)
        for what, value in (("max_batch", max_batch), ("queue_limit", queue_limit)):
            if not isinstance(value, int) or value < 1:
                raise BadInput(f"{what}={value!r}: give a whole number, at least 1")
        spec = as_spec(model, optimize, max_batch, collate)
        if optimize is not None and example is None:
            raise BadInput(f"optimize={optimize!r} prepares the model with a sample: pass example=one_sample")
        given = _profile(profile, max_batch)
        if given is None and isinstance(spec.target, Emulated):
            given = spec.target.profile(max_batch)
        if given is None and example is None:
            raise BadInput(
                f"model {name!r} has neither profile nor example: pass example=one_sample to have l(b) measured, or "
                'profile="alpha,beta" in ms'
            )
        sample = codec.encode(example) if example is not None else None
        if sample is not None and spec.kind == "torch" and collate is None and (why := inputs.obstacle(sample)):
            raise BadInput(f"model {name!r} cannot take its example: {why}")
        request = {
            "name": name,
            "spec": pickled(spec, f"model {name!r}", _SPEC_REMEDY),
            "slo_ns": slo_ns,
            "profile": given.to_dict() if given is not None else None,
            "max_batch": max_batch,
            "queue_limit": queue_limit,
            "example": sample,
            "timeout_s": timeout_s,
            "version": str(version) if version is not None else None,
            "canary": canary,
            "memory": config.parse_memory(memory, "memory") if memory is not None else None,
            "pinned": bool(pinned),
            "signature": None if example is None else sample_signature(example) if collate is None else ANY_SHAPE,
            "declared": declared,
            "force": bool(force),
        }
        return self._sync(self._change, name, "deploy", request)

    def pipeline(self, name: str, stages: Any, *, slo: str | Seconds, rate_hz: float | None = None) -> Any:
        """Serve models one after the other, and side by side, under one name with one SLO; returns a ``Pipeline``.

        stages: a list of names of models (or models), functions of one argument, which run on the client, and
            ``Ensemble([...], combine="mean")``; they may be nested. A model is asked by its name: by whatever version
            serves.
        slo: of a request through all stages. Its split over the stages is the one that uses the least GPU time
            (``symphony_dask/client/slo_split.py``).
        rate_hz: requests a second to expect, for the split.

        The scheduler keeps the pipeline: ``serving.model(name)`` and ``find`` give it to other clients, and
        ``undeploy`` forgets it. Raises ``BadInput``, ``UnknownModel``.
        """
        from symphony_dask.client.stages import Series, as_stage, to_plain

        slo_ns = parse_duration_ns(slo, "slo")
        check_name("pipeline name", name)
        stage = as_stage(stages)
        whole = stage if isinstance(stage, Series) else Series((stage,))
        plain = to_plain(whole)  # here, as it runs code of the functions' objects
        return self._sync(self._declare_pipeline, name, whole, plain, slo_ns, rate_hz)

    def pipelines(self) -> Any:
        """The pipelines that were declared, by whomever: by name what they are made of, their SLO in ns and rate."""
        return self._sync(self._call, "pipeline_all")

    def rollback(self, name: str, *, timeout: str = "60s") -> Any:
        """Take the canary of a model away, or without one go back to the version before; returns its ``Model``.

        Raises ``UnknownModel``, ``BadInput`` if there is no version before, or as ``deploy``.
        """
        timeout_s = parse_duration_ns(timeout, "timeout") / 1e9
        return self._sync(self._change, name, "rollback", {"name": name, "timeout_s": timeout_s})

    def promote(self, name: str) -> Any:
        """Have the canary of a model take all requests; Raises ``UnknownModel``, ``BadInput``."""
        return self._sync(self._change, name, "promote", {"name": name})

    def set_canary(self, name: str, share: float) -> Any:
        """Give the canary of a model another share of its requests. Raises ``UnknownModel``, ``BadInput``."""
        return self._sync(self._change, name, "set_share", {"name": name, "share": share})

    def versions(self, name: str) -> Any:
        """The versions of a model, a dict for each with its state, share of requests, SLO and number of slots.

        States are "loading", "serving", "canary", "draining", and "retired" for those to go back to. Raises
        ``UnknownModel``.
        """
        return self._sync(self._call, "versions", name=name)

    def undeploy(self, name: str, *, force: bool = False) -> Any:
        """Stop serving a model, whose queued requests end as ``Undeployed``, or a pipeline.

        force: also a model that a pipeline asks. Raises ``UnknownModel``, ``BadInput``.
        """
        return self._sync(self._undeploy, name, force)

    def declared(self) -> Any:
        """What serves, by name, with what files of ``symphony apply`` said of it (``declarations.Running``)."""
        return self._sync(self._declared)

    def model(self, name: str) -> Model | Pipeline:
        """The model or pipeline under ``name``, by whomever; raises ``UnknownModel``."""
        if name in self._models or name in self._pipelines:
            return self._models[name] if name in self._models else self._pipelines[name]
        if self.client.asynchronous:
            text = f"model {shown(name)} was not deployed through this object, which knows {listed(self._models)}"
            raise errors.UnknownModel(f"{text}: use await serving.find(name){did_you_mean(name, self._known())}")
        found: Model | Pipeline = self.find(name)
        return found

    def find(self, name: str, version: str | None = None) -> Any:
        """The ``Model`` of whatever version serves ``name``, or of one that does, or a ``Pipeline``; whoever made it.

        Requests to one version fail as ``UnknownModel`` once it serves no more. Raises ``UnknownModel``.
        """
        return self._sync(self._find, name, version)

    def deployed(self) -> Any:
        """What serves on the cluster, whoever deployed it: a list of dicts.

        name, version, model_id (its number on the lane), slo_ns, max_batch, slots (that serve now), takes and gives
        (``codec.form`` of sample and answer, None where there was no example), any_shape (their arrays may have another
        shape, as with ``collate``).
        """
        return self._sync(self._deployed)

    @property
    def lane(self) -> _Lane:
        """The connection that requests leave on, for who has payloads and no ``Model``, such as the gateway."""
        return self._lane

    def status(self) -> Any:
        """Models, workers, queues, outcome counts and latency estimates, as a dict."""
        return self._sync(self._call, "status")

    def wait_ready(self, model: str | None = None, *, gpus: int = 1, timeout: str = "60s") -> Any:
        """Wait until ``gpus`` GPU slots take batches and ``model``, if named, is deployed; returns how many slots do.

        Raises ``NoGPUWorker`` or ``UnknownModel``, whichever it lacked, after ``timeout``.
        """
        return self._sync(self._wait_ready, model, gpus, parse_duration_ns(timeout, "timeout") / 1e9)

    def signals(self) -> Any:
        """Each model's load and each GPU's use over the last minute, as a dict (``autoscale.Signals.from_reply``)."""
        return self._sync(self._call, "signals")

    def overview(self) -> Any:
        """How each model and GPU did in the last ten seconds, as a dict: what ``symphony top`` shows."""
        return self._sync(self._call, "overview")

    def record_scaling(self, inputs: dict[str, Any], decision: dict[str, Any]) -> Any:
        """Write one tick of a scaling policy, plain JSON values, into the recording; False when there is none."""
        return self._sync(self._call, "record_scaling", inputs=inputs, decision=decision)

    def record(self, folder: str, **info: Any) -> Any:
        """Record a run into ``folder``, on the scheduler's machine, from now on. Raises ``BadInput``."""
        return self._sync(self._call, "record", folder=str(folder), info=info)

    def stop_recording(self, **info: Any) -> Any:
        """Close the recording, with ``info`` in its run.json; returns its folder, or None if there was none."""
        return self._sync(self._call, "stop_recording", info=info)

    def set_policy(self, policy: str) -> Any:
        """Schedule by another policy of ``engine.engine.POLICIES`` from now on. Raises ``BadInput``."""
        return self._sync(self._call, "set_policy", policy=policy)

    def drain(
        self, workers: str | int | Iterable[str | int], why: str = "asked", *, may_join_later: bool = False
    ) -> Any:
        """Give workers no more batches; returns how many each still runs.

        workers: addresses or names of workers, or names of instances, "ID" for workers ID, ID-0, ID-1, ...; one, or a
            list. Where no other worker is left, they still serve what is queued.
        may_join_later: take names that no worker has yet; one that joins under it takes no batches.

        Raises ``BadInput``, also for a worker that is not there.
        """
        names = name_list(workers, "worker")
        return self._sync(self._call, "drain", workers=names, why=why, known=not may_join_later)

    def undrain(self, workers: str | int | Iterable[str | int]) -> Any:
        """Let drained workers take batches again; returns the names of those that do.

        One that still runs batches of before does not yet, and one that is being retired never does. Raises
        ``BadInput`` for a worker that is not there.
        """
        return self._sync(self._call, "undrain", workers=name_list(workers, "worker"), known=True)

    def retire(self, workers: str | int | Iterable[str | int], *, force: bool = False, timeout: str = "30s") -> Any:
        """Take drained workers off the cluster; returns the state of each, "retired" when its process may end.

        force: hand what is in flight there back to the queues; otherwise a worker that runs batches stays "draining".
        timeout: how long to wait for Dask to move what the workers hold.

        Raises ``BadInput`` for a worker that is not there, or not drained.
        """
        wait_s = parse_duration_ns(timeout, "timeout") / 1e9
        names = name_list(workers, "worker")
        return self._sync(self._call, "retire", workers=names, force=force, wait_s=wait_s, known=True)

    def close(self) -> Any:
        """Close the lane connection; requests without an answer end as ``ConnectionLost``. Models stay deployed."""
        if loop_of(self.client).is_closed():
            return None
        return self.client.sync(self._lane.close)

    def __enter__(self) -> Serving:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    async def __aenter__(self) -> Serving:
        await self._connect()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._lane.close()

    def __reduce__(self) -> Any:
        raise BadInput("a Serving cannot be sent: make a Serving(client) where it is needed; a Model can be sent")

    def __repr__(self) -> str:
        names = self._ask_briefly(self._all_names)
        if names is not None:
            shown_names = ", ".join(names[:_MOST_SHOWN]) or "no models"
            return f"<Serving on {self._address()}: {shown_names}{', ...' if len(names) > _MOST_SHOWN else ''}>"
        known = ", ".join(self._known()[:_MOST_SHOWN]) or "no models"
        # An asynchronous client cannot be asked from here.
        state = "known so far" if self._lane.connected else "it does not answer; known"
        return f"<Serving on {self._address()}, {state}: {known}>"

    def _repr_html_(self) -> str:
        async def ask() -> tuple[dict[str, Any], list[str]]:
            return await self._call("status"), await self._all_names()

        found = self._ask_briefly(ask)
        if found is None:
            return serving_html(self._address(), self._known(), None)
        status, names = found
        return serving_html(self._address(), [name for name in names if name not in status["models"]], status)

    def _address(self) -> str:
        scheduler: Any = self.client.scheduler
        return "closed" if is_closed(self.client) or scheduler is None else str(scheduler.address)

    def _known(self) -> list[str]:
        """What is deployed, as last heard of."""
        return sorted({*self._models, *self._pipelines, *self._seen})

    def _ask_briefly(self, ask: Callable[[], Any]) -> Any:
        """What the cluster says, for people; None where it does not in _REPR_S, or a coroutine would have to ask."""
        try:
            if not self._lane.connected or self.client.asynchronous:
                return None
            return self._sync(ask, callback_timeout=_REPR_S)
        except Exception:  # whatever keeps the cluster from answering, who only looks at an object goes on
            return None

    async def _all_names(self) -> list[str]:
        names = sorted({row["name"] for row in await self._deployed()} | {*await self._call("pipeline_all")})
        self._seen = names
        return names

    async def _deployed(self) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = await self._call("models")
        self._lane.names.update((row["model_id"], row["name"]) for row in rows)
        return rows

    def _sync(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """As ``Client.sync``; raises ``ConnectionLost`` where that would never end, or find the client closed."""
        check_client(self.client)
        return self.client.sync(function, *args, **kwargs)

    async def _wait_ready(self, model: str | None, gpus: int, timeout_s: float) -> int:
        loop = asyncio.get_running_loop()
        ends = loop.time() + timeout_s
        while True:
            status = await self._call("status")
            ready = sum(worker.get("answering") or 0 for worker in status["workers"].values())
            known = model is None or model in status["models"]
            if known and ready >= gpus:
                return int(ready)
            if loop.time() > ends:
                break
            await asyncio.sleep(_READY_POLL_S)
        if not known:
            text = (
                f"model {shown(model)} is not deployed after {timeout_s:g} s; deployed are {listed(status['models'])}"
            )
            raise UnknownModel(f"{text}{did_you_mean(model, status['models'])}")
        there, with_gpu = status["dask_workers"]["all"], status["dask_workers"]["gpu"]
        have = f"{with_gpu or 'none'} {'have' if with_gpu > 1 else 'has'} a GPU resource"
        text = f"{ready} of {gpus} GPU slots serve after {timeout_s:g} s ({there} worker{'s' * (there != 1)}, {have})"
        raise NoGPUWorker(f'{text}: start workers with dask worker SCHEDULER --resources "GPU=1"')

    async def _connect(self) -> None:
        if self._connecting is None:
            self._connecting = asyncio.Lock()
        async with self._connecting:
            if self._lane.connected:
                return
            scheduler: Any = self._scheduler()
            if not await scheduler.get_metadata(keys=["symphony"], default=None):
                await self._install()
            info = await scheduler.symphony_info()
            if "error" in info:
                raise NotServing(info["error"][1])
            await self._lane.open(get_address_host(scheduler.address), info)
        if self.client.asynchronous:  # whose text cannot be asked for from where it is shown
            await self._all_names()

    async def _install(self) -> None:
        from symphony_dask.plugin.scheduler_plugin import SymphonyPlugin

        try:
            await self.client.register_plugin(SymphonyPlugin())
        except Exception as error:
            text = f"the scheduler does not run Symphony, and installing it failed with {type(error).__name__}: {error}"
            remedy = "start it with dask scheduler --preload symphony_dask, with symphony-dask installed there"
            raise NotServing(f"{text}; {remedy}") from error

    def _scheduler(self) -> Any:
        check_client(self.client)
        if self.client.scheduler is None:
            raise NotServing("the Dask client is not connected to a scheduler: await it, or make a new one")
        return self.client.scheduler

    async def _call(self, operation: str, **kwargs: Any) -> Any:
        await self._connect()
        try:
            reply = await getattr(self._scheduler(), f"symphony_{operation}")(**kwargs)
        except OSError as error:
            check_client(self.client)
            text = f"the scheduler did not answer ({operation}): {brief(error)}"
            raise ConnectionLost(f"{text}; check that it runs, and call again") from error
        if "error" in reply:
            kind, text = reply["error"]
            raise getattr(errors, kind, SymphonyError)(text)
        return reply["ok"]

    async def _declared(self) -> dict[str, Any]:
        from symphony_dask.client.declarations import Running

        return {name: Running(**row) for name, row in (await self._call("declared")).items()}

    async def _change(self, name: str, operation: str, request: dict[str, Any]) -> Model:
        found = await self._call(operation, **request)
        if found["warning"]:
            warnings.warn(found["warning"], UserWarning, stacklevel=2)
        return self._keep(name, found)

    async def _declare_pipeline(
        self, name: str, stages: Any, plain: dict[str, Any], slo_ns: int, rate_hz: float | None
    ) -> Pipeline:
        made = await self._pipeline(name, stages, slo_ns, rate_hz)
        await self._call("pipeline_declare", name=name, stages=plain, slo_ns=slo_ns, rate_hz=rate_hz)
        self._pipelines[name] = made
        return made

    async def _pipeline(self, name: str, stages: Any, slo_ns: int, rate_hz: float | None) -> Pipeline:
        from symphony_dask.client.pipeline import Pipeline
        from symphony_dask.client.stages import models_of

        models = {model: await self._find_model(model) for model in models_of(stages)}
        status = await self._call("status")
        network_ns = max((w["control_mean_ns"] + w["reply_mean_ns"] for w in _measured(status)), default=0)
        network_ns += status["client_round_trip_mean_ns"]
        return Pipeline(name, stages, slo_ns, rate_hz, models, self._lane.loop, self._find_model, network_ns)

    async def _find(self, name: str, version: str | None) -> Model | Pipeline:
        try:
            return await self._find_model(name, version)
        except UnknownModel:
            if version is not None:
                raise
        declared = await self._call("pipeline_find", name=name)
        stages = await _read_stages(name, declared["stages"])
        found = await self._pipeline(name, stages, declared["slo_ns"], declared["rate_hz"])
        self._pipelines[name] = found
        return found

    async def _find_model(self, name: str, version: str | None = None) -> Model:
        found = await self._call("find", name=name, version=version)
        return self._keep(name, found) if version is None else self._made(name, found)

    def _keep(self, name: str, found: dict[str, Any]) -> Model:
        """The model that requests to ``name`` go to: the object that there is, if it is still the same deployment."""
        model, made = self._models.get(name), self._made(name, found)
        if model is None or model._id != made._id:
            self._models[name] = made
            return made
        model._follow(made)
        return model

    def _made(self, name: str, found: dict[str, Any]) -> Model:
        self._lane.names[found["model_id"]] = name
        profiles = {c: LatencyProfile.from_dict(p) for c, p in found["profiles"].items()}
        what = (found["model_id"], found["slo_ns"], profiles, found["signature"], self._lane, found["version"])
        return Model(name, *what)

    async def _undeploy(self, name: str, force: bool) -> None:
        await self._call("undeploy", name=name, force=force)
        self._models.pop(name, None)
        self._pipelines.pop(name, None)


class Model:
    """A served model; made by ``Serving.deploy`` and ``find``. Also the function of Dask tasks (``graph_function``).

    profiles: l(b) by GPU class, as given or measured.
    version: the one that served when it was last asked; requests go to the one that serves when they come.
    """

    def __init__(
        self,
        name: str,
        model_id: int,
        slo_ns: int,
        profiles: dict[str, LatencyProfile],
        signature: bytes | None,
        lane: _Lane,
        version: str = "1",
    ) -> None:
        self.name = name
        self.slo_ns = slo_ns
        self.profiles = profiles
        self.version = version
        self._id = model_id
        self._signature = signature
        self._lane = lane

    def _follow(self, newer: Model) -> None:
        """Another version took over."""
        self.slo_ns, self.profiles, self.version = newer.slo_ns, newer.profiles, newer.version
        self._signature = newer._signature

    @property
    def number(self) -> int:
        """The model's number on the lane, for tools that speak it themselves."""
        return self._id

    def submit(
        self, x: Any, *, slo: str | Seconds | None = None, priority: int = 0, retries: int = 0
    ) -> InferenceFuture:
        """Submit one sample; returns its future at once. From any thread.

        slo: of this request alone, instead of the model's. Within ``symphony_dask.deadline(...)`` no more than is left.
        priority: 0 to 7. In overload, requests of a higher one are served first, and take the room of lower ones, which
            end as ``Overloaded``, in a full queue. Otherwise it changes nothing.
        retries: how often to send it again, while its deadline allows, after ``WorkerLost``, ``Overloaded`` or
            ``NoGPUWorker``; waits double from a sixteenth of the SLO, 50 ms at most. A sample may then run twice.

        Raises ``BadInput`` if ``x`` cannot be sent or has not the shape of the model's example, ``ConnectionLost``. The
        future raises a ``RequestError``: ``DeadlineExceeded``, ``Overloaded``, ``NoGPUWorker``, ``ModelError``, ...
        """
        payload = codec.encode_payload(x)
        check_sample(self.name, self._signature, payload)
        if len(payload) > MAX_SAMPLE_BYTES:
            text = f"a sample of {len(payload)} bytes for model {self.name!r}: the most is {MAX_SAMPLE_BYTES}"
            raise BadInput(f"{text}; send a path or URL, and have the model read it")
        if not isinstance(priority, int) or not 0 <= priority <= MOST_PRIORITY:
            raise BadInput(f"priority={priority!r}: give a whole number between 0 and {MOST_PRIORITY}")
        slo_ns = 0 if slo is None else parse_duration_ns(slo, "slo")
        left_ns = remaining_ns()
        if left_ns is not None:
            if left_ns <= 0:
                return self._too_late(left_ns)
            slo_ns = min(slo_ns or self.slo_ns, left_ns)
        if not retries:
            return self._lane.submit(self._id, payload, slo_ns, priority, within_ns=slo_ns or self.slo_ns)
        if not isinstance(retries, int) or retries < 0:
            raise BadInput(f"retries={retries!r}: give a whole number, at least 0")

        def send(slo_ns: int) -> InferenceFuture:
            return self._lane.submit(self._id, payload, slo_ns, priority, within_ns=slo_ns)

        return RetriedFuture(send, slo_ns or self.slo_ns, retries, self._lane.later)

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

    def __call__(self, x: Any, *, slo: str | Seconds | None = None) -> Any:
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
        return ModelRef, (self.name, self._signature, self._deployment)

    def __repr__(self) -> str:
        return f"<Model {self.name!r}: SLO {format_duration(self.slo_ns)}>"

    def _repr_html_(self) -> str:
        rows = [
            ("version", self.version),
            ("SLO", format_duration(self.slo_ns)),
            ("l(b)", latency_text(self.profiles) or "unknown"),
        ]
        return table(f"Model {self.name}", rows)


class _Lane:
    """The client's lane connection: submissions from any thread, one frame a tick of the client's event loop."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._connection: Connection | None = None
        self._direct: Direct | None = None
        self._pending: dict[int, Waiting] = {}
        self._outbox: deque[tuple[int, int, int, int, int, bytes | memoryview]] = deque()
        self._cancels: deque[int] = deque()
        self._flush_due = False
        self._next = 0
        self._numbering = threading.Lock()
        self._watch: asyncio.Task[None] | None = None
        self._answering: AnsweringLoop | None = None
        self._wait_ns = 0  # for so long the scheduler lets requests wait for a first GPU
        self.scheduler_id = ""
        #: Names of models that were heard of, by their number here.
        self.names: dict[int, str] = {}

    @property
    def connected(self) -> bool:
        return self._connection is not None and not self._connection.closed and not is_closed(self._client)

    def check_wait(self) -> None:
        """Raises ``ConnectionLost`` or ``WouldDeadlock`` where to wait for an answer would never end."""
        if self._answering is not None:
            self._answering.check_wait()

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The event loop that the connection is in; there is none before ``open``."""
        return self._loop

    async def open(self, host: str, info: dict[str, Any]) -> None:
        self._fail_all("the connection to the scheduler was lost")  # what an earlier connection may have left
        self._loop = asyncio.get_running_loop()
        self.scheduler_id = info["scheduler"]
        self._thread = threading.get_ident()
        self._answering = AnsweringLoop(self._loop)
        hello = {"token": info["token"], "version": VERSION, "role": "client"}
        ssl_context = self._client.security.get_connection_args("client").get("ssl_context")
        try:
            self._connection = await connect(
                host, info["port"], hello, self._frame, self._lost, ssl_context=ssl_context
            )
        except (OSError, TimeoutError) as error:
            text = f"the lane at {host}:{info['port']} cannot be reached: {error or type(error).__name__}"
            raise ConnectionLost(f"{text}; check that the port is open, or set symphony.lane.port") from error
        self._connection.on_drained = self._wake
        self._wait_ns = int(self._connection.welcome.get("wait_ns", 0))
        self._direct = Direct(
            self._connection,
            info["token"],
            ssl_context=ssl_context,
            relay=str(dask.config.get("symphony.lane.relay")),
            pending=self._pending,
            on_answer=self._answered,
            on_broken=self._broken,
        )
        if self._watch is None:
            self._watch = self._loop.create_task(self._watch_loop())

    async def _watch_loop(self) -> None:
        """End requests that a silent scheduler does not end, and all of them when the event loop does, as when the Dask
        client is closed: it cancels its tasks then.
        """
        heard, heard_ns, looked_ns = -1, 0, 0
        # Answers that are under way from workers: what has been read from there, and when that was less.
        expected: dict[int, tuple[int, int]] = {}
        try:
            while True:
                await asyncio.sleep(_WATCH_S)
                if is_closed(self._client):  # in an event loop that goes on, as that of a cluster in this process
                    return
                now, connection, direct = now_ns(), self._connection, self._direct
                read = connection.bytes_in if connection is not None else 0
                late = now - looked_ns > _LATE_LOOK_NS
                looked_ns = now
                if read != heard:
                    heard, heard_ns = read, now
                if now - heard_ns > _SILENT_NS and not late:
                    text = f"the scheduler has been silent for {format_duration(now - heard_ns)}"
                    self._end_overdue(now, list(self._pending), text)
                before, expected = expected, {}
                for request, come in (direct.expected if direct is not None else {}).items():
                    known = before.get(request)
                    expected[request] = known if known is not None and known[0] == come else (come, now)
                stuck = [r for r, (_, since_ns) in expected.items() if now - since_ns > _SILENT_NS]
                if stuck and not late:
                    self._end_overdue(now, stuck, "its answer does not arrive from the worker")
        finally:
            self._watch = None
            self._hang_up("the Dask client was closed")

    def _end_overdue(self, now: int, requests: list[int], why: str) -> None:
        """Wait no longer for those of some requests that should have ended."""
        for request in requests:
            future = self._pending.get(request)
            if future is None or now <= future.ends_ns + OVERDUE_NS + self._wait_ns:
                continue
            self._cancel(request)
            text = f"{why}, and the deadline is over: whether the request ran is not known; check the network"
            future._finish("failed", None, NoAnswer(text))

    async def close(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
        self._hang_up("the lane was closed by Serving.close()")

    def _hang_up(self, text: str) -> None:
        if self._connection is not None:
            self._flush()
            self._connection.close()
        if self._direct is not None:
            self._direct.close()
        self._fail_all(text)

    def submit(
        self,
        model_id: int,
        payload: bytes | memoryview,
        slo_ns: int,
        priority: int,
        make: Callable[[int, Callable[[int], None]], W] = InferenceFuture,  # type: ignore[assignment]
        *,
        within_ns: int,
    ) -> W:
        """What ``make(request, on_cancel)`` gives, once the request is in the outbox.

        slo_ns: 0 for the model's. within_ns: what its SLO is as far as is known here.
        """
        if self._answering is None:
            raise ConnectionLost("the lane to the scheduler was never opened: await Serving(client) first")
        self._answering.check_process()
        if not self.connected:
            closed = is_closed(self._client)
            text = "the Dask client is closed" if closed else "the connection to the scheduler is gone"
            raise ConnectionLost(f"{text}: make a new {'Client and Serving' if closed else 'Serving(client)'}")
        with self._numbering:
            request = self._next
            self._next += 1
        future = make(request, self._cancel)
        now = now_ns()
        future.ends_ns, future.answered_in = now + within_ns, self._answering
        self._pending[request] = future
        self._outbox.append((model_id, slo_ns, now, request, priority, payload))
        self._wake()
        if not self.connected:  # lost between the check and the append: nobody will look at the outbox again
            self._fail_all("the connection to the scheduler was lost")
        return future

    def _wake(self) -> None:
        """Have the outbox sent at the end of the event loop's tick, from whichever thread this is."""
        if self._flush_due:
            return
        self._flush_due = True
        try:
            if threading.get_ident() == self._thread:
                self._loop.call_soon(self._flush)
            else:
                self._loop.call_soon_threadsafe(self._flush)
        except RuntimeError:  # the event loop is closed
            self._flush_due = False
            self._fail_all("the Dask client is closed")

    def later(self, wait_s: float, future: InferenceFuture, call: Callable[[], None]) -> None:
        """Have ``call()`` made in the event loop after ``wait_s``; ``future`` fails if the connection ends before."""
        waits = -1 - future.request  # no request has this number
        self._pending[waits] = future

        def due() -> None:
            if self._pending.pop(waits, None) is not None:
                call()

        try:
            self._loop.call_soon_threadsafe(self._loop.call_later, wait_s, due)
        except RuntimeError:  # the event loop is closed
            self._fail_all("the Dask client is closed")

    def _cancel(self, request: int) -> None:
        self._pending.pop(request, None)
        self._cancels.append(request)
        self._wake()

    def _flush(self) -> None:
        self._flush_due = False
        connection, direct = self._connection, self._direct
        if connection is None or direct is None or connection.stuck:
            return
        rows: list[tuple[int, int, int, int, int, bytes | memoryview]] = []
        payloads: list[bytes | memoryview] = []
        held: list[bool] = []
        left = FRAME_BYTES
        while self._outbox and left > 0:
            try:
                rows.append(self._outbox.popleft())
            except IndexError:  # another thread found the connection lost
                break
            payload = rows[-1][-1]
            held.append(direct.keeps(len(payload)))
            if held[-1]:
                direct.hold(rows[-1][3], payload)
            else:
                payloads.append(payload)
                left -= len(payload)
        if rows:
            models, slos, times, requests, priorities, samples = zip(*rows, strict=True)
            try:
                frame = pack_rows(
                    SUBMIT_ROW, len(rows), id=requests, slo=slos, age=now_ns() - np.array(times, np.int64),
                    model=models, bytes=[len(p) for p in samples], priority=priorities, held=held,
                )  # fmt: skip
                connection.send([SUBMIT, frame], *payloads)
            except Exception as error:  # they have left the outbox, and nobody else would end them
                for request in requests:
                    direct.forget(request)
                    if (future := self._pending.pop(request, None)) is not None:
                        future._finish("failed", None, errors.RequestError(f"it cannot be sent: {brief(error)}"))
        if self._cancels:
            cancels = [self._cancels.popleft() for _ in range(len(self._cancels))]
            connection.send([CANCEL, column(cancels)])
            for request in cancels:
                direct.forget(request)
        if self._outbox:
            self._wake()

    def _frame(self, connection: Connection, op: int, fields: list[Any], blob: memoryview) -> None:
        direct = self._direct
        assert direct is not None
        if op == PLACE:
            batch, host, port, ids = fields
            direct.place(batch, host, port, read_column(ids).tolist())
            return
        if op == ANSWER:
            direct.take(RELAYED, fields, blob)
            return
        if op != RESULT:
            raise BadInput(f"lane op {op!r:.40} does not come from a scheduler")
        failed = fields[1]
        at = 0
        for i, (request, size, link, outcome) in enumerate(read_rows(fields[0], RESULT_ROW).tolist()):
            if link >= 0:
                direct.outcome(request, link, _OUTCOMES[outcome])
                continue
            direct.forget(request)
            future = self._pending.pop(request, None)
            payload = blob[at : at + size]
            at += size
            if future is None:
                continue
            if i in failed:
                kind, text = failed[i]
                error = getattr(errors, kind, errors.RequestError)(self._named(kind, text))
                future._finish(_OUTCOMES[outcome], None, error)
            else:
                future._answer(_OUTCOMES[outcome], payload)

    def _named(self, kind: str, text: str) -> str:
        """An error's text; one about a number that the scheduler no longer knows says the name that it was of."""
        number = _NUMBERED.match(text) if kind == "UnknownModel" else None
        if number is None or int(number[1]) not in self.names:
            return text
        remedy = "serving.deployed() has what is, and serving.find(name) a handle to what serves now"
        return f"model {self.names[int(number[1])]!r} is not deployed any more: deploy it again ({remedy})"

    def _answered(self, request: int, outcome: str, payload: memoryview) -> None:
        future = self._pending.pop(request, None)
        if future is not None:
            future._answer(outcome, payload)

    def _broken(self, request: int, text: str) -> None:
        future = self._pending.pop(request, None)
        if future is not None:
            future._finish("failed", None, ConnectionLost(f"{text} before the answer came"))

    def _lost(self, connection: Connection, error: Exception | None) -> None:
        if connection is self._connection:  # and not an earlier one
            if self._direct is not None:
                self._direct.close()
            self._fail_all(f"the connection to the scheduler was lost ({error or 'closed'})")

    def _fail_all(self, text: str) -> None:
        """End every request without an answer; whether it ran is not known."""
        self._outbox.clear()
        while self._pending:
            try:
                _, future = self._pending.popitem()
            except KeyError:  # another thread took the last one
                break
            future._finish("failed", None, ConnectionLost(f"{text} before the answer came"))


async def _read_stages(name: str, plain: dict[str, Any]) -> Any:
    """The stages of a pipeline: not in the event loop, as functions may import anything. Raises ``SymphonyError``."""
    from symphony_dask.client.stages import from_plain
    from symphony_dask.client.user_functions import UserFunction

    read = UserFunction(from_plain, f"loading pipeline {name!r}")
    try:
        return await read(plain, now_ns() + _READ_STAGES_NS, _READ_STAGES_NS)
    except Exception as error:
        why = brief(error if error.__cause__ is None else error.__cause__)
        text = f"pipeline {name!r} cannot be led by this process, where its functions cannot be loaded: {why}"
        raise DeploymentError(f"{text}; install the modules that they import here too") from error


def _address(client: Any) -> str:
    """How the address of what was given in place of a client is written."""
    address = client if isinstance(client, str) else getattr(client, "scheduler_address", None)
    return shown(address) if isinstance(address, str) else '"tcp://HOST:8786"'


def _measured(status: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The workers whose network is known."""
    return (worker for worker in status["workers"].values() if "control_mean_ns" in worker)


def _profile(profile: Any, max_batch: int) -> LatencyProfile | None:
    """What a user may write for a profile; raises ``BadInput``."""
    if profile is None or isinstance(profile, LatencyProfile):
        return profile
    try:
        if isinstance(profile, str):
            return LatencyProfile.parse(profile, max_batch)
        alpha, beta = profile
        return LatencyProfile(float(alpha), float(beta), max_batch)
    except (TypeError, ValueError) as error:
        text = f'profile {profile!r} cannot be read ({error}): give a LatencyProfile or "alpha,beta" in ms'
        raise BadInput(text) from None
