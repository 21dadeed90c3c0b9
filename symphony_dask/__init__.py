"""SLO-aware inference serving on Dask: deferred batch scheduling, GPU load packing, and traces of every run."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Public names load on first use, so that `import symphony_dask` stays quick.
_WHERE = {
    "Serving": "symphony_dask.client",
    "Model": "symphony_dask.client",
    "InferenceFuture": "symphony_dask.future",
    "as_completed": "symphony_dask.completions",
    "deadline": "symphony_dask.deadlines",
    "Ensemble": "symphony_dask.stages",
    "Pipeline": "symphony_dask.pipeline",
    "ModelRef": "symphony_dask.graph",
    "infer": "symphony_dask.graph",
    "LatencyProfile": "symphony_dask.scheduling.profile",
    "SymphonyPlugin": "symphony_dask.plugin",
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
    from symphony_dask.client import Model, Serving
    from symphony_dask.completions import as_completed
    from symphony_dask.deadlines import deadline
    from symphony_dask.future import InferenceFuture
    from symphony_dask.graph import ModelRef, infer
    from symphony_dask.pipeline import Pipeline
    from symphony_dask.plugin import SymphonyPlugin
    from symphony_dask.scheduling.profile import LatencyProfile
    from symphony_dask.stages import Ensemble


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(importlib.import_module(_WHERE[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
