"""Splits the SLO of a pipeline over its stages, so that they use the least GPU time.

A stage with budget t runs batches of b, the largest for which

    l(b) + b/rate <= t

(the target batch of engine/policy/window.py: with n = rate*l(b)/b GPUs' worth of work it says l(b)*(1 + 1/n)). One
alone gathers no others, so it needs l(1) + min(l(1), 1/rate). A stage takes rate*l(b)/b GPUs, so wanted are budgets
that

    minimise  sum over stages of rate*l(b)/b    subject to    sum of t along each way through the graph <= SLO

The graph is nested: what runs one after the other in a list, what runs side by side in a tuple. On a grid of budgets
the least cost of a list at k steps is the least over all ways to split k among its parts, of a tuple the sum of its
members' at k; both are exact (a dynamic programme over the nesting, as Nexus, Shen et al., SOSP 2019, has for trees).
What is left over is given to all in proportion, because every stage gains from a wider window.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from symphony_dask.errors import BadInput
from symphony_dask.units import NS_PER_S, format_duration

#: Budgets are whole multiples of this part of the SLO.
STEPS = 400

#: Every stage on GPUs gets at least this part of what it shares in: also one that takes no time has its way to go.
LEAST_SHARE = 0.01

Costs: TypeAlias = npt.NDArray[np.float64]
Times: TypeAlias = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Work:
    """A stage on GPUs. latency_ns: l(b) at b, for b = 0 to the largest batch and one more (``LatencyProfile``).

    rate_hz: requests that it gets a second; None where nobody knows: then n = 1, so l(b) may take half of the budget.
    overhead_ns: of the budget, what the network takes.
    """

    latency_ns: npt.NDArray[np.int64]
    rate_hz: float | None = None
    overhead_ns: int = 0

    def needs_ns(self) -> Times:
        """The smallest budget for which batches of b may run, at b; entry 0 is not used."""
        latency = self.latency_ns[:-1].astype(float)
        sizes = np.arange(len(latency))
        gather = sizes * NS_PER_S / self.rate_hz if self.rate_hz else latency
        needs: Times = latency + gather + self.overhead_ns
        if len(needs) > 1:
            needs[1] = latency[1] + min(latency[1], gather[1]) + self.overhead_ns
        return needs

    def cost(self, batch: int) -> float:
        """GPUs that it takes in batches of ``batch``, or GPU seconds a request where the rate is not known."""
        per_request = float(self.latency_ns[batch]) / batch / NS_PER_S
        return per_request * (self.rate_hz or 1.0)


#: ``Work`` on GPUs; None: no GPU, and no time to speak of; a list: one after the other; a tuple: side by side.
Graph: TypeAlias = "Work | list[Graph] | tuple[Graph, ...] | None"

#: A batch for each ``Work`` of a graph.
Chosen: TypeAlias = "int | list[Chosen]"


@dataclass(frozen=True)
class Split:
    """A part of the graph with its budget. cost: its GPUs, or GPU seconds a request (``Work.cost``).

    batch: that a ``Work`` is expected to run, 0 of all else. parts: of a list or tuple, in their order.
    """

    budget_ns: int
    cost: float
    batch: int = 0
    parts: tuple[Split, ...] = ()


@dataclass(frozen=True)
class _Plan:
    """The least cost at each budget, and for lists the steps that each part has then (STEPS + 1 by parts)."""

    costs: Costs
    steps: npt.NDArray[np.int64] | None
    parts: tuple[_Plan, ...]


def split(graph: Graph, slo_ns: int, steps: int = STEPS) -> Split:
    """The budgets that use the least GPU time (the module's formula); raises ``BadInput`` if l(1) alone takes too long.

    Where the SLO is too short for the formula budgets are in proportion to l(1).
    """
    alone_ns = _longest_ns(graph)
    if alone_ns > slo_ns:
        text = f"SLO {format_duration(slo_ns)} cannot be met: one request alone takes {format_duration(alone_ns)}"
        raise BadInput(f"{text} through all stages; raise the SLO or use faster GPUs")
    plan = _plan(graph, slo_ns, steps)
    chosen = _choose(graph, plan, steps, slo_ns / steps) if np.isfinite(plan.costs[steps]) else _alone(graph)
    return _stretch(graph, chosen, slo_ns)


def _longest_ns(graph: Graph) -> float:
    if graph is None:
        return 0.0
    if isinstance(graph, Work):
        return float(graph.latency_ns[1])
    times = [_longest_ns(part) for part in graph]
    return sum(times) if isinstance(graph, list) else max(times, default=0.0)


def _plan(graph: Graph, slo_ns: int, steps: int) -> _Plan:
    if graph is None:
        return _Plan(np.zeros(steps + 1), None, ())
    if isinstance(graph, Work):
        return _Plan(_work_costs(graph, slo_ns, steps), None, ())
    parts = tuple(_plan(part, slo_ns, steps) for part in graph)
    if isinstance(graph, tuple):
        return _Plan(np.sum([p.costs for p in parts], axis=0), None, parts)
    costs, taken = np.zeros(steps + 1), np.zeros((steps + 1, 0), np.int64)
    for part in parts:
        costs, last = _one_after_the_other(costs, part.costs)
        taken = np.hstack([taken[np.arange(steps + 1) - last], last[:, None]])
    return _Plan(costs, taken, parts)


def _work_costs(work: Work, slo_ns: int, steps: int) -> Costs:
    budgets = np.arange(steps + 1) * (slo_ns / steps)
    needs = work.needs_ns()
    costs = np.full(steps + 1, np.inf)
    for batch in range(1, len(needs)):
        allowed = budgets >= needs[batch]
        costs[allowed] = np.minimum(costs[allowed], work.cost(batch))
    return costs


def _one_after_the_other(first: Costs, second: Costs) -> tuple[Costs, npt.NDArray[np.int64]]:
    """The least of first[k - j] + second[j] for each k, and its j."""
    costs, taken = np.empty_like(first), np.zeros(len(first), np.int64)
    for k in range(len(first)):
        sums = first[k::-1] + second[: k + 1]
        taken[k] = np.argmin(sums)
        costs[k] = sums[taken[k]]
    return costs, taken


def _choose(graph: Graph, plan: _Plan, k: int, step_ns: float) -> Chosen:
    """For each part the batch that its steps allow: a number for ``Work`` and None, else a list."""
    if graph is None:
        return 0
    if isinstance(graph, Work):
        needs, allowed = graph.needs_ns(), k * step_ns
        fit = [b for b in range(1, len(needs)) if needs[b] <= allowed]
        return min(fit, key=lambda b: (graph.cost(b), b))
    shares = plan.steps[k] if plan.steps is not None else [k] * len(plan.parts)
    return [_choose(g, p, int(j), step_ns) for g, p, j in zip(graph, plan.parts, shares, strict=True)]


def _alone(graph: Graph) -> Chosen:
    if graph is None or isinstance(graph, Work):
        return 0 if graph is None else 1
    return [_alone(part) for part in graph]


def _least_ns(graph: Graph, chosen: Any) -> float:
    """What a part needs for the batches chosen in it."""
    if graph is None:
        return 0.0
    if isinstance(graph, Work):
        return float(graph.needs_ns()[chosen])
    times = [_least_ns(g, c) for g, c in zip(graph, chosen, strict=True)]
    return sum(times) if isinstance(graph, list) else max(times, default=0.0)


def _stretch(graph: Graph, chosen: Any, budget_ns: float) -> Split:
    """All of a budget for a part: lists share it as their parts need it, and all members of a tuple have it."""
    if graph is None:
        return Split(0, 0.0)
    if isinstance(graph, Work):
        return Split(int(budget_ns), graph.cost(chosen), chosen)
    floor_ns = LEAST_SHARE * budget_ns
    needs = [max(_least_ns(g, c), floor_ns) if _works(g) else 0.0 for g, c in zip(graph, chosen, strict=True)]
    if isinstance(graph, list):
        total = sum(needs) or 1.0
        budgets = [budget_ns * need / total for need in needs]
    else:
        budgets = [budget_ns] * len(needs)
    parts = tuple(_stretch(g, c, t) for g, c, t in zip(graph, chosen, budgets, strict=True))
    return Split(int(budget_ns), sum(p.cost for p in parts), 0, parts)


def _works(graph: Graph) -> bool:
    return isinstance(graph, Work) or (graph is not None and any(map(_works, graph)))
