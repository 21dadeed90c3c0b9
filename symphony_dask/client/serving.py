"""Deploys models on the cluster of a Dask ``Client`` and submits requests to them: ``Serving``.

>>> serving = Serving(client)                                        # doctest: +SKIP
>>> model = serving.deploy("resnet", load_resnet, slo="25ms", example=x)   # doctest: +SKIP
>>> model.submit(x).result()                                         # doctest: +SKIP
"""

from __future__ import annotations

import asyncio
import threading
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any
from weakref import WeakKeyDictionary

from distributed import Client, get_client
from distributed.comm.addressing import get_address_host

from symphony_dask import config, errors
from symphony_dask.backends import as_spec, sample_signature
from symphony_dask.backends.emulated import Emulated
from symphony_dask.backends.sample import ANY_SHAPE
from symphony_dask.client.future import InferenceFuture
from symphony_dask.client.model import Model
from symphony_dask.client.notebook import serving_html
from symphony_dask.client.pipeline import Pipeline
from symphony_dask.client.session import Session
from symphony_dask.client.stages import Series, Stage, as_stage, from_plain, models_of, to_plain
from symphony_dask.client.user_functions import UserFunction
from symphony_dask.clock import now_ns
from symphony_dask.engine.batching import PREFER
from symphony_dask.engine.latency_profile import DEFAULT_MAX_BATCH, LatencyProfile
from symphony_dask.engine.queue_limits import DEFAULT_QUEUE_LIMIT
from symphony_dask.errors import (
    BadInput,
    ConnectionLost,
    DeploymentError,
    NoGPUWorker,
    NotServing,
    UnknownModel,
    WouldDeadlock,
)
from symphony_dask.names import name_list
from symphony_dask.pickling import pickled
from symphony_dask.plugin.graph_function import GraphFunction
from symphony_dask.text import brief, check_name, did_you_mean, listed, shown
from symphony_dask.units import Seconds, parse_duration_ns
from symphony_dask.wait_checks import check_client, is_closed, loop_of
from symphony_dask.wire import codec
from symphony_dask.wire import composite as inputs
from symphony_dask.wire.rpc_replies import checked, value_of

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
        self._lane = Session(client)
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
        model: object,
        *,
        slo: str | Seconds,
        profile: LatencyProfile | str | tuple[float, float] | None = None,
        example: object = None,
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
        prefer: str = "latency",
        max_delay: str | Seconds | None = None,
        policy: str | None = None,
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
        prefer: "latency": a batch starts at once while fewer GPUs are at work than the load needs; "gpus": it waits for
            its window, as late as its SLO allows, so that batches are large and the load takes the least GPU time.
        max_delay: how long a request waits at most, such as "5ms", before its batch is to start on a GPU that is free;
            the batch takes what came by then. By default as long as its SLO allows.
        policy: a scheduling policy of its own, in place of the cluster's (``set_policy``), such as "eager".

        Warns if the SLO is so near l(1) that the network leaves nothing of it.

        Raises ``BadInput``, ``NoGPUWorker``, or ``DeploymentError`` with the worker's traceback.
        """
        slo_ns = parse_duration_ns(slo, "slo")
        timeout_s = parse_duration_ns(timeout, "timeout") / 1e9
        check_name("model name", name)
        if prefer not in PREFER:
            raise BadInput(f"prefer={prefer!r:.60}: choose {' or '.join(PREFER)}")
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
            "batching": [policy, prefer, None if max_delay is None else parse_duration_ns(max_delay, "max_delay")],
        }
        return self._sync(self._change, name, "deploy", request)

    def pipeline(self, name: str, stages: object, *, slo: str | Seconds, rate_hz: float | None = None) -> Any:
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
    def lane(self) -> Session:
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

    def record(self, folder: str, **info: object) -> Any:
        """Record a run into ``folder``, on the scheduler's machine, from now on. Raises ``BadInput``."""
        return self._sync(self._call, "record", folder=str(folder), info=info)

    def stop_recording(self, **info: object) -> Any:
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

    def _sync(self, function: Callable[..., Any], *args: object, **kwargs: object) -> Any:
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
            info = checked(await scheduler.symphony_info())
            await self._lane.open(get_address_host(scheduler.address), info)
        if self.client.asynchronous:  # whose text cannot be asked for from where it is shown
            await self._all_names()

    async def _install(self) -> None:
        from symphony_dask.plugin.scheduler_plugin import SymphonyPlugin  # loads the scheduler's side

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

    async def _call(self, operation: str, **kwargs: object) -> Any:
        await self._connect()
        try:
            reply = await getattr(self._scheduler(), f"symphony_{operation}")(**kwargs)
        except OSError as error:
            check_client(self.client)
            text = f"the scheduler did not answer ({operation}): {brief(error)}"
            raise ConnectionLost(f"{text}; check that it runs, and call again") from error
        return value_of(reply)

    async def _declared(self) -> dict[str, Any]:
        from symphony_dask.client.declarations import Running  # loads the scheduler's side

        return {name: Running(**row) for name, row in (await self._call("declared")).items()}

    async def _change(self, name: str, operation: str, request: dict[str, Any]) -> Model:
        found = await self._call(operation, **request)
        if found["warning"]:
            warnings.warn(found["warning"], UserWarning, stacklevel=2)
        return self._keep(name, found)

    async def _declare_pipeline(
        self, name: str, stages: Stage, plain: dict[str, Any], slo_ns: int, rate_hz: float | None
    ) -> Pipeline:
        made = await self._pipeline(name, stages, slo_ns, rate_hz)
        await self._call("pipeline_declare", name=name, stages=plain, slo_ns=slo_ns, rate_hz=rate_hz)
        self._pipelines[name] = made
        return made

    async def _pipeline(self, name: str, stages: Stage, slo_ns: int, rate_hz: float | None) -> Pipeline:
        models = {model: await self._find_model(model) for model in models_of(stages)}
        status = await self._call("status")
        network_ns = max((w["control_mean_ns"] + w["reply_mean_ns"] for w in _measured(status)), default=0)
        network_ns += status["client_round_trip_ns"] + status["client_in_hand_ns"]
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
        return Model(name, *what, function=ModelRef)

    async def _undeploy(self, name: str, force: bool) -> None:
        await self._call("undeploy", name=name, force=force)
        self._models.pop(name, None)
        self._pipelines.pop(name, None)


class ModelRef(GraphFunction):
    """A served model by name, as the function of a Dask task: ``client.submit(ModelRef("resnet"), x)``.

    Needs no ``Serving``, so that any client of the cluster can use it.
    """

    def submit(self, x: object, *, slo: str | None = None, priority: int = 0, retries: int = 0) -> InferenceFuture:
        """As ``Model.submit``, from within a task that is not the model's own, in which a ``Model`` is a ``ModelRef``.

        The request leaves from this process, over a connection to the scheduler that it opens once. Raises as
        ``Model.submit``; ``UnknownModel``; ``NotServing`` where there is no Dask client.
        """
        return _serving().model(self.name).submit(x, slo=slo, priority=priority, retries=retries)


_servings: WeakKeyDictionary[Any, Serving] = WeakKeyDictionary()
_opening = threading.Lock()


def _serving() -> Serving:
    """The connection of this process for requests from within tasks; raises ``NotServing``, ``WouldDeadlock``."""
    try:
        client = get_client()
    except ValueError:
        text = "a model that was sent here can be asked where there is a Dask client, as within a task"
        raise NotServing(f"{text}: elsewhere use Serving(client).model(name)") from None
    if client.asynchronous:
        raise WouldDeadlock(
            "this thread runs the event loop of the Dask client, so a connection cannot be waited for here: in a "
            "coroutine use serving = await Serving(client), and await (await serving.find(name)).submit(x)"
        )
    with _opening:
        if client not in _servings or is_closed(client):
            _servings[client] = Serving(client)
        return _servings[client]


#: The model that the annotation ``symphony={"model": NAME}`` says, as the function of a task.
infer = ModelRef("")


async def _read_stages(name: str, plain: dict[str, Any]) -> Stage:
    """The stages of a pipeline: not in the event loop, as functions may import anything. Raises ``SymphonyError``."""
    read = UserFunction(from_plain, f"loading pipeline {name!r}")
    try:
        return await read(plain, now_ns() + _READ_STAGES_NS, _READ_STAGES_NS)
    except Exception as error:
        why = brief(error if error.__cause__ is None else error.__cause__)
        text = f"pipeline {name!r} cannot be led by this process, where its functions cannot be loaded: {why}"
        raise DeploymentError(f"{text}; install the modules that they import here too") from error


def _address(client: object) -> str:
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
