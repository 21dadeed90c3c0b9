"""Says what GPUs cost: EC2's on-demand prices, as dated in ``ec2_gpu_prices.json``, and prices that a user gives."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import dask.config

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
    region: str = "us-east-1"

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
        return f"EC2 on demand, {self.region}, as of {self.as_of}, to be refreshed; --price overrides"


def table() -> dict[str, Any]:
    """The price table: the file that the setting ``symphony.prices`` names, or the one that comes with the package.

    Raises ``BadInput``.
    """
    return _read(dask.config.get("symphony.prices", None))


@cache
def _read(path: str | None) -> dict[str, Any]:
    shipped = files("autoscale.providers").joinpath("ec2_gpu_prices.json")
    try:
        found: dict[str, Any] = json.loads((Path(path).expanduser() if path else shipped).read_text("utf-8"))
        for row in found["instances"]:
            Instance(row["instance"], row["gpu"], int(row["gpus"]), float(row["usd_per_hour"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        text = f"price table {path!r} cannot be read ({type(error).__name__}: {error})"
        raise BadInput(
            f"{text}: have symphony autoscale prices --refresh write it, or unset symphony.prices"
        ) from error
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
    known = table()
    rows = [Instance(r["instance"], r["gpu"], r["gpus"], r["usd_per_hour"]) for r in known["instances"]]
    return Prices(tuple(rows), known["as_of"], known["source"], own, known["region"])
