"""Serves models with latency objectives on Dask: deferred batch scheduling, GPU load packing, traces of every run."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Public names load on first use, so that `import symphony_dask` stays quick.
_WHERE = {
    "Serving": "symphony_dask.client.serving",
    "Model": "symphony_dask.client.model",
    "InferenceFuture": "symphony_dask.client.future",
    "as_completed": "symphony_dask.client.as_completed",
    "deadline": "symphony_dask.client.deadline",
    "Ensemble": "symphony_dask.client.stages",
    "Pipeline": "symphony_dask.client.pipeline",
    "ModelRef": "symphony_dask.client.serving",
    "infer": "symphony_dask.client.serving",
    "LatencyProfile": "symphony_dask.engine.latency_profile",
    "SymphonyPlugin": "symphony_dask.plugin.scheduler_plugin",
    "dask_setup": "symphony_dask.preload",
}
__all__ = [
    "Ensemble",
    "InferenceFuture",
    "LatencyProfile",
    "Model",
    "ModelRef",
    "Pipeline",
    "Serving",
    "SymphonyPlugin",
    "__version__",
    "as_completed",
    "deadline",
    "infer",
]

if TYPE_CHECKING:
    from symphony_dask.client.as_completed import as_completed
    from symphony_dask.client.deadline import deadline
    from symphony_dask.client.future import InferenceFuture
    from symphony_dask.client.model import Model
    from symphony_dask.client.pipeline import Pipeline
    from symphony_dask.client.serving import ModelRef, Serving, infer
    from symphony_dask.client.stages import Ensemble
    from symphony_dask.engine.latency_profile import LatencyProfile
    from symphony_dask.plugin.scheduler_plugin import SymphonyPlugin


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(importlib.import_module(_WHERE[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
