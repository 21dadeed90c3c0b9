"""Defines cells, the settings in which schedulers are compared, and the grids of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import polars as pl

from symphony_dask.engine.batching import AS_ALL, Batching
from symphony_dask.errors import BadInput
from symphony_dask.names import name_list
from symphony_dask.units import NS_PER_MS, NS_PER_S
from workloads.compare.bound import BoundModel, goodput_bound
from workloads.simulation.result import SimModel
from workloads.traces.zoo import POPULARITIES, ZOO, parse_profile

#: A simulation lasts for at least so many SLOs and at most so many seconds, whatever number of requests is aimed at.
LEAST_SLOS = 100
LONGEST_S = 60.0


#: Types of ``Cell.columns``.
CELL_SCHEMA: dict[str, Any] = {
    "profile": pl.String,
    "models": pl.Int64,
    "gpus": pl.Int64,
    "slo_ms": pl.Float64,
    "shape": pl.Float64,
    "popularity": pl.String,
}


@dataclass(frozen=True)
class Cell:
    """``models`` models alike on ``gpus`` GPUs.

    profile: a name of the zoo, or "alpha,beta" in ms.
    shape: of each model's gamma distributed gaps; 1 is a Poisson process, less is burstier.
    popularity: a name in ``zoo.POPULARITIES``.
    batching: how each model's batches are formed.
    """

    profile: str
    models: int
    gpus: int
    slo_ns: int
    shape: float
    popularity: str = "equal"
    batching: Batching = AS_ALL

    @property
    def columns(self) -> dict[str, Any]:
        """The cell as tables show it."""
        return {
            "profile": self.profile,
            "models": self.models,
            "gpus": self.gpus,
            "slo_ms": self.slo_ns / NS_PER_MS,
            "shape": self.shape,
            "popularity": self.popularity,
        }

    def shares(self) -> list[float]:
        return POPULARITIES[self.popularity](self.models)

    def sim_models(self) -> list[SimModel]:
        profile = parse_profile(self.profile)
        return [SimModel(f"model-{m}", profile, self.slo_ns, batching=self.batching) for m in range(self.models)]

    def bound_models(self) -> list[BoundModel]:
        profile = parse_profile(self.profile)
        return [BoundModel(profile, self.slo_ns, share) for share in self.shares()]

    def bound_hz(self) -> float:
        return goodput_bound(self.bound_models(), self.gpus).bound_hz

    def span_s(self, rate_hz: float, requests: int) -> float:
        """How long to simulate: for that many requests at that rate, within ``LEAST_SLOS`` and ``LONGEST_S``."""
        return min(max(requests / rate_hz, LEAST_SLOS * self.slo_ns / NS_PER_S), LONGEST_S)


@dataclass(frozen=True)
class Grid:
    """The product of these; without ``slos_ns``, a profile's own SLO in the zoo times each of ``slo_factors``."""

    profiles: Sequence[str] = ("resnet50", "inception-resnet-v2")
    models: Sequence[int] = (1, 10, 100)
    gpus: Sequence[int] = (8, 64)
    slos_ns: Sequence[int] = ()
    slo_factors: Sequence[int] = (1, 2, 4)
    shapes: Sequence[float] = (0.1, 0.3, 1.0)
    popularities: Sequence[str] = ("equal",)

    def cells(self) -> list[Cell]:
        """Raises ``BadInput`` when a number is not positive, or a profile has no SLO of its own and none is given."""
        for name, values in (("models", self.models), ("gpus", self.gpus), ("shape", self.shapes)):
            for value in values:
                if not value > 0:
                    raise BadInput(f"{name} is {value}: it must be above 0")
        return [
            Cell(profile, models, gpus, slo_ns, shape, popularity)
            for profile in name_list(self.profiles, "profile")
            for models, gpus, slo_ns, shape, popularity in product(
                self.models, self.gpus, self._slos_ns(profile), self.shapes, name_list(self.popularities, "popularity")
            )
        ]

    def _slos_ns(self, profile: str) -> list[int]:
        parse_profile(profile)
        if self.slos_ns:
            return list(self.slos_ns)
        if profile not in ZOO:
            raise BadInput(f"profile {profile!r} has no SLO of its own: give --slo, such as 25ms")
        return [factor * ZOO[profile].slo_ns for factor in self.slo_factors]


#: "default" has 108 cells; "gpus" 24, for counting GPUs; "small" 4, for a first look.
GRIDS = {
    "default": Grid(),
    "gpus": Grid(slo_factors=(1,), shapes=(0.1, 1.0)),
    "small": Grid(models=(1, 20), gpus=(16,), slo_factors=(1,), shapes=(1.0,)),
}
