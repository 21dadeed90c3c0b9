"""Describes the GPUs of a simulation: how many of each class, in which order they fill, and what comes and goes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from symphony_dask.errors import BadInput

#: The class of GPUs that are given by their number alone; a model's default profile holds there.
GPU = "gpu"


class GpuGroup(NamedTuple):
    """``number`` GPUs alike. Those of the lowest rank fill first; among equals, those that were named first."""

    gpu_class: str
    number: int
    rank: int = 0


#: A number of GPUs alike, or groups, also as plain tuples: ``[("fast", 4), ("slow", 8)]``.
Gpus = int | Sequence[GpuGroup | tuple[str, int] | tuple[str, int, int]]


@dataclass(frozen=True)
class AddGpu:
    """A GPU comes at ``time_ns`` and is served at once. Its number is the next after all that there were."""

    time_ns: int
    gpu_class: str = GPU
    rank: int = 0


@dataclass(frozen=True)
class DrainGpu:
    """A GPU gets no more batches from ``time_ns`` on, and leaves when those that it has have ended."""

    time_ns: int
    gpu: int


@dataclass(frozen=True)
class RemoveGpu:
    """A GPU is lost at ``time_ns``: what it has not ended by then is queued again."""

    time_ns: int
    gpu: int


@dataclass(frozen=True)
class AddModel:
    """A model, by its index, is served from ``time_ns`` on; requests that come before are rejected."""

    time_ns: int
    model: int


@dataclass(frozen=True)
class RemoveModel:
    """A model is withdrawn at ``time_ns``: its queued requests are cancelled, later ones rejected."""

    time_ns: int
    model: int


Event = AddGpu | DrainGpu | RemoveGpu | AddModel | RemoveModel


class Change(NamedTuple):
    """One row of the ``gpus`` table; event: "ready", "drain" or "leave"."""

    time_ns: int
    gpu: int
    event: str


@dataclass(frozen=True)
class Fleet:
    """Every GPU that there ever is in a run, by its number.

    classes: names, in the order in which they first appear; gpu_class: index into them; rank: all different, lowest
        fills first. The first ``initial`` GPUs are there from the start; the others are those of ``AddGpu``, in order.
    served: the models that are served from the start, by index: all that are not added before anything else.
    events: by time; those of one time in the order given.
    """

    classes: tuple[str, ...]
    gpu_class: tuple[int, ...]
    rank: tuple[int, ...]
    initial: int
    served: frozenset[int]
    events: tuple[Event, ...] = ()


def plan_fleet(gpus: Gpus, models: int, events: Sequence[Event] = ()) -> Fleet:
    """The fleet that these arguments describe, for so many models. Raises ``BadInput`` when they cannot be used."""
    given = groups(gpus)
    ordered = tuple(sorted(events, key=lambda event: event.time_ns))
    added = [event for event in ordered if isinstance(event, AddGpu)]
    names = [g.gpu_class for g in given for _ in range(g.number)] + [event.gpu_class for event in added]
    ranks = [g.rank for g in given for _ in range(g.number)] + [event.rank for event in added]
    initial = len(names) - len(added)
    if not names:
        raise BadInput("there are 0 GPUs, and none is added: give at least 1")
    served = _served_first(ordered, models)
    _check(ordered, initial, models, set(served))
    # Among GPUs of one rank the engine goes by its own indices, which it uses again.
    order = sorted(range(len(names)), key=lambda number: (ranks[number], number))
    unique = [0] * len(names)
    for rank, number in enumerate(order):
        unique[number] = rank
    classes = tuple(dict.fromkeys(names))
    return Fleet(classes, tuple(classes.index(name) for name in names), tuple(unique), initial, served, ordered)


def groups(gpus: Gpus) -> list[GpuGroup]:
    """``gpus`` as groups. Raises ``BadInput`` when a number is below 0, or a tuple is no group."""
    try:
        given = [GpuGroup(GPU, gpus)] if isinstance(gpus, int) else [GpuGroup(*group) for group in gpus]
    except TypeError:
        raise BadInput(f"gpus {gpus!r}: give a number, or groups such as [('fast', 4), ('slow', 8)]") from None
    for group in given:
        if not isinstance(group.number, int) or group.number < 0 or not group.gpu_class:
            raise BadInput(f"GPU group {tuple(group)}: give a class by name, and a number of at least 0")
    return given


def parse_gpus(text: str) -> int | list[GpuGroup]:
    """GPUs written "8", or by class, in the order in which they fill: "4xfast,8xslow". Raises ``BadInput``."""
    parts = [part.strip() for part in text.split(",")]
    try:
        if len(parts) == 1 and "x" not in parts[0]:
            return int(parts[0])
        found = []
        for part in parts:
            count, cross, name = part.partition("x")
            if not cross or not name:
                raise ValueError(part)
            found.append(GpuGroup(name, int(count)))
    except ValueError:
        raise BadInput(f'GPUs {text!r} cannot be read: write a number, or "4xfast,8xslow"') from None
    return found


def _served_first(events: Sequence[Event], models: int) -> frozenset[int]:
    first: dict[int, Event] = {}
    for event in events:
        if isinstance(event, AddModel | RemoveModel):
            first.setdefault(event.model, event)
    return frozenset(m for m in range(models) if not isinstance(first.get(m), AddModel))


def _check(events: Sequence[Event], initial: int, models: int, served: set[int]) -> None:
    """Raise ``BadInput`` for an event that finds nothing to change."""
    there = set(range(initial))
    draining: set[int] = set()
    numbers = initial
    for event in events:
        if event.time_ns < 0:
            raise BadInput(f"{event}: times are ns from 0 on")
        if isinstance(event, AddGpu):
            there.add(numbers)
            numbers += 1
        elif isinstance(event, DrainGpu):
            if event.gpu not in there - draining:
                raise BadInput(f"{event}: that GPU is not there then, or drains already")
            draining.add(event.gpu)
        elif isinstance(event, RemoveGpu):
            if event.gpu not in there:
                raise BadInput(f"{event}: that GPU is not there then")
            there.remove(event.gpu)
        elif not 0 <= event.model < models:
            raise BadInput(f"{event}: there are {models} models")
        elif isinstance(event, AddModel):
            if event.model in served:
                raise BadInput(f"{event}: that model is served already")
            served.add(event.model)
        elif event.model not in served:
            raise BadInput(f"{event}: that model is not served then")
        else:
            served.remove(event.model)
