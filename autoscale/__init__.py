"""Scales the GPU fleet in proportion to the load."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

# Public names load on first use, so that `import autoscale` stays quick.
_WHERE = {"Adaptive": "autoscale.clusters.adaptive", "EC2GPUCluster": "autoscale.clusters.ec2_cluster"}
__all__ = ["Adaptive", "EC2GPUCluster"]

if TYPE_CHECKING:
    from autoscale.clusters.adaptive import Adaptive
    from autoscale.clusters.ec2_cluster import EC2GPUCluster


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(importlib.import_module(_WHERE[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
