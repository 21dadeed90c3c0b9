"""What GPUs cost: EC2's on-demand prices, as dated in ``data/ec2_gpu_prices.json``, and prices that a user gives."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any

from symphony_dask.errors import BadInput


@dataclass(frozen=True)
class Instance:
    """What is rented as one: ``gpus`` GPUs for ``usd_per_hour``."""

    name: str
    gpu: str
    gpus: int
    usd_per_hour: float

    def cost(self, gpus: int) -> float:
        """USD an hour for so many GPUs, in whole instances."""
        return math.ceil(gpus / self.gpus) * self.usd_per_hour


@dataclass(frozen=True)
class Prices:
    """The price table, and ``given``: USD an hour by GPU class, which go first."""

    instances: tuple[Instance, ...]
    as_of: str
    source: str
    given: dict[str, float] = field(default_factory=dict)

    def find(self, gpu_class: str) -> Instance | None:
        """What a GPU class is rented as; None if nothing is known of it.

        A class is the name of an instance type, or holds the name of a GPU as a word ("NVIDIA A100", "t4"), which then
        is the instance that costs the least for one GPU. A given price of a class that is no instance type is that of
        one GPU.
        """
        named = next((i for i in self.instances if i.name == gpu_class), None)
        if gpu_class in self.given:
            usd = self.given[gpu_class]
            return Instance(gpu_class, named.gpu, named.gpus, usd) if named else Instance(gpu_class, gpu_class, 1, usd)
        if named:
            return named
        words = gpu_class.replace("-", " ").replace("_", " ").lower().split()
        alike = [i for i in self.instances if i.gpu.lower() in words]
        return min(alike, key=lambda i: i.usd_per_hour / i.gpus, default=None)

    def basis(self) -> str:
        return f"EC2 on demand, us-east-1, as of {self.as_of}, to be refreshed; --price overrides"


@cache
def _table() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(files("workloads.data").joinpath("ec2_gpu_prices.json").read_text("utf-8"))
    return found


def prices(given: Sequence[str] = ()) -> Prices:
    """The table, with prices written "CLASS=USD" (an hour, of one instance or GPU) before it. Raises ``BadInput``."""
    own = {}
    for text in given:
        name, _, usd = text.rpartition("=")
        try:
            own[name] = float(usd)
        except ValueError:
            own[name] = -1.0
        if not name or not 0 <= own[name] < math.inf:
            raise BadInput(f'price {text!r} cannot be read: write CLASS=USD an hour, such as "g5.xlarge=1.006"')
    table = _table()
    rows = [Instance(r["instance"], r["gpu"], r["gpus"], r["usd_per_hour"]) for r in table["instances"]]
    return Prices(tuple(rows), table["as_of"], table["source"], own)
