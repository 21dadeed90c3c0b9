"""Keeps the pipelines that clients have declared, so that all clients and gateways see them.

Only what they are made of; the functions in it stay pickled here. No request passes through: clients lead them.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from symphony_dask.errors import BadInput, UnknownModel
from symphony_dask.text import did_you_mean, listed, shown
from symphony_dask.wire.rpc_replies import failure

#: ``stages.to_plain``, the SLO in ns and the rate in Hz.
Declared = dict[str, Any]


class Pipelines:
    """models: the names of what is deployed now. on_change: awaited when there is one more, one less or another."""

    def __init__(
        self,
        models: Callable[[], Iterable[str]],
        on_change: Callable[[], Awaitable[None]],
        declared: dict[str, Declared],
    ) -> None:
        self.declared = declared
        self._models, self._on_change = models, on_change

    async def declare(self, name: str, stages: dict[str, Any], slo_ns: int, rate_hz: float | None) -> dict[str, Any]:
        """Keep a pipeline, or another one in its place."""
        if name in set(self._models()):
            text = f"pipeline {name!r} has the name of a model that is deployed: choose another name"
            return failure(BadInput(text))
        self.declared[name] = {"stages": stages, "slo_ns": slo_ns, "rate_hz": rate_hz}
        await self._on_change()
        return {"ok": name}

    def check_unused(self, model: str) -> None:
        """Raises ``BadInput`` if a pipeline asks a model."""
        users = sorted(name for name, one in self.declared.items() if model in _models(one["stages"]))
        if users:
            text = f"model {model!r} is a stage of the pipeline{'s' * (len(users) > 1)} {', '.join(map(repr, users))}"
            first = "these first" if len(users) > 1 else "that first"
            raise BadInput(f"{text}: undeploy {first}, or pass force=True (symphony apply --force)")

    async def forget(self, name: str) -> bool:
        """Whether there was one of that name."""
        if self.declared.pop(name, None) is None:
            return False
        await self._on_change()
        return True

    async def find(self, name: str) -> dict[str, Any]:
        """One of them."""
        if name not in self.declared:
            known = f"deployed are {listed(self._models())} and the pipelines {listed(self.declared)}"
            near = did_you_mean(name, [*self._models(), *self.declared])
            return failure(UnknownModel(f"model {shown(name)} is not deployed; {known}{near}"))
        return {"ok": self.declared[name]}

    async def all(self) -> dict[str, Any]:
        """All of them by name."""
        return {"ok": self.declared}


def _models(plain: dict[str, Any]) -> set[str]:
    """The models of some stages (``stages.to_plain``)."""
    if "model" in plain:
        return {plain["model"]}
    return {name for part in plain.get("series", plain.get("parallel", ())) for name in _models(part)}
