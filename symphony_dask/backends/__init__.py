"""Makes what a user deploys into what runs batches: a torch module, a callable on a batch, or an emulation of one."""

from __future__ import annotations

import gc
import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from symphony_dask.backends.batch import BatchCallable, BatchResult, BatchRunner, Runner, Staging
from symphony_dask.backends.emulated import Emulated
from symphony_dask.backends.sample import check_sample, sample_signature
from symphony_dask.engine.latency_profile import DEFAULT_MAX_BATCH
from symphony_dask.errors import BadInput, DeploymentError
from symphony_dask.text import did_you_mean, error_text, last_line, shown
from symphony_dask.wire import codec, composite

__all__ = [
    "BatchCallable",
    "BatchResult",
    "BatchRunner",
    "Emulated",
    "ModelSpec",
    "Runner",
    "Staging",
    "as_spec",
    "check_sample",
    "free_memory",
    "load",
    "memory_of",
    "sample_signature",
]

_REMEDY = (
    "pass a torch.nn.Module, a callable with one parameter that takes a batch, a callable without parameters that "
    "loads either on the worker, or Emulated(alpha_ms, beta_ms)"
)


@dataclass(frozen=True)
class ModelSpec:
    """What to load, as the client sends it to workers with cloudpickle, over Dask's own channel.

    kind: "torch" (a module), "function" (a callable on a batch), "loader" (a callable without parameters that returns
        one of the other kinds, called on the worker) or "emulated".
    target: the module, callable or ``Emulated``.
    optimize: how a torch module is made faster, "compile" or "cuda-graphs" (``backends.torch.TorchModel``).
    max_batch: the largest batch to prepare for, where ``optimize`` is given.
    collate: makes what the model is called with of a list of samples (``Serving.deploy``).
    """

    kind: Literal["torch", "function", "loader", "emulated"]
    target: Any
    optimize: str | None = None
    max_batch: int = DEFAULT_MAX_BATCH
    collate: Callable[[list[Any]], Any] | None = None


#: What ``ModelSpec.optimize`` may be.
OPTIMIZE = ("compile", "cuda-graphs")


def as_spec(
    obj: object,
    optimize: str | None = None,
    max_batch: int = DEFAULT_MAX_BATCH,
    collate: Callable[[list[Any]], Any] | None = None,
) -> ModelSpec:
    """The spec of ``obj`` (``_kind``). Raises ``BadInput``, also where ``obj`` cannot be optimized, or has no samples
    to collate.
    """
    spec = _kind(obj)
    if collate is not None:
        if not callable(collate):
            raise BadInput(f"collate={collate!r:.60}: give a function of a list of samples")
        if spec.kind == "emulated":
            raise BadInput("collate= is for models that read their samples; an Emulated does not: leave it out")
        if optimize is not None:
            text = f"optimize={optimize!r} pads batches of stacked samples, and collate= makes batches of any kind"
            raise BadInput(f"{text}: leave one of them out")
        spec = replace(spec, collate=collate)
    if optimize is None:
        return spec
    if optimize not in OPTIMIZE:
        known = ", ".join(map(repr, OPTIMIZE))
        raise BadInput(f"optimize={shown(optimize)}: give one of {known}{did_you_mean(optimize, OPTIMIZE)}")
    if spec.kind not in ("torch", "loader"):
        raise BadInput(f"optimize={optimize!r} is for torch modules; got a {type(obj).__name__}: leave it out")
    return replace(spec, optimize=optimize, max_batch=max_batch)


def _kind(obj: object) -> ModelSpec:
    """The spec of ``obj``: a torch module, a batch callable, a loader, an ``Emulated``, or a pair (alpha_ms, beta_ms).

    A callable is a loader if it has no required positional parameter, and takes a batch if it has one.

    Raises ``BadInput`` for anything else.
    """
    if isinstance(obj, Emulated):
        return ModelSpec("emulated", obj)
    if isinstance(obj, tuple) and len(obj) == 2 and all(isinstance(x, (int, float)) for x in obj):
        return ModelSpec("emulated", Emulated(*obj))
    # A module cannot exist before torch is imported, so there is no need to import it here.
    module_class = getattr(sys.modules.get("torch.nn"), "Module", None)
    if module_class is not None and isinstance(obj, module_class):
        return ModelSpec("torch", obj)
    if not callable(obj):
        raise BadInput(f"cannot serve a {type(obj).__name__}: {_REMEDY}")
    required = _required_parameters(obj)
    if not required:
        return ModelSpec("loader", obj)
    if isinstance(obj, type):
        raise BadInput(f"cannot serve the class {obj.__name__}, it needs {', '.join(required)}: pass an instance of it")
    if len(required) > 1:
        raise BadInput(f"cannot serve {obj!r}, it needs {', '.join(required)}: {_REMEDY}")
    return ModelSpec("function", obj)


def load(spec: ModelSpec, device: str | None = None, example: object = None) -> Runner:
    """The runner of ``spec``, loaded on this machine.

    device: of torch modules, such as "cuda:0"; by default "cuda" if there is one, else "cpu".
    example: one sample; if given, it is run once, so that a model that cannot answer it fails here. An optimized module
        is compiled or captured for each padded batch size with it.

    Raises ``DeploymentError`` with the traceback if loading or the example fails.
    """
    try:
        runner = _runner(spec, device)
    except Exception as error:
        text = error_text(error)
        raise DeploymentError(f"model could not be loaded: {last_line(text)}\n{text}") from None
    if example is not None:
        payload = codec.encode(example)
        errors = runner.run(memoryview(payload), np.array([len(payload)])).errors
        if errors:
            why = f"{composite.describe(payload)}: {last_line(errors[0])}\n{errors[0]}"
            raise DeploymentError(f"model failed on its example, {why}")
        for b in getattr(runner, "batch_sizes", ()):
            errors = runner.run(memoryview(payload * b), np.full(b, len(payload))).errors
            if errors:
                raise DeploymentError(f"model failed on a batch of {b} x {composite.describe(payload)}:\n{errors[0]}")
    return runner


def memory_of(runner: Runner) -> int | None:
    """Bytes that a loaded model needs on its device: what its ``memory_bytes`` says, None if it has none."""
    found = getattr(getattr(runner, "call", runner), "memory_bytes", None)
    return None if found is None else int(found)


def free_memory() -> None:
    """Give back what a model that was dropped has left behind."""
    gc.collect()
    cuda = getattr(sys.modules.get("torch"), "cuda", None)
    if cuda is not None and cuda.is_initialized():
        cuda.empty_cache()


def _runner(spec: ModelSpec, device: str | None) -> Runner:
    if spec.kind == "loader":
        spec = as_spec(spec.target(), spec.optimize, spec.max_batch, spec.collate)
        if spec.kind == "loader":
            raise BadInput(f"loader returned {spec.target!r}, another loader: return a module or a callable on a batch")
    if spec.kind == "emulated":
        emulated: Emulated = spec.target
        return emulated
    if spec.kind == "torch":
        from symphony_dask.backends.torch import TorchModel

        module = TorchModel(spec.target, device, spec.optimize, spec.max_batch, spec.collate)
        return BatchRunner(module, takes="inputs" if spec.collate is None else "list")
    if spec.collate is not None:
        return BatchRunner(Collated(spec.target, spec.collate), takes="list")
    return BatchRunner(spec.target)


@dataclass(frozen=True)
class Collated:
    """A batch callable that calls ``model`` with what ``collate`` makes of the list of samples."""

    model: BatchCallable
    collate: Callable[[list[Any]], Any]

    def __call__(self, samples: list[Any]) -> Any:
        return self.model(self.collate(samples))


def _required_parameters(call: Callable[..., object]) -> list[str]:
    """Names of the parameters that a call must give by position; raises ``BadInput`` if there is no telling."""
    try:
        parameters = inspect.signature(call).parameters.values()
    except (ValueError, TypeError):
        raise BadInput(f"cannot serve {call!r}, its parameters are unknown: wrap it as lambda batch: ...") from None
    required = [p for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    by_name = [p.name for p in required if p.kind == p.KEYWORD_ONLY]
    if by_name:
        raise BadInput(f"cannot serve {call!r}, it needs {', '.join(by_name)} by name: set them with functools.partial")
    return [p.name for p in required]
