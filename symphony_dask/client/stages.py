"""Describes what a pipeline is made of, as users write it and as the scheduler keeps it.

A list runs one after the other: names of models (or models), functions of one argument, which run on the client, and
``Ensemble``s, whose members all get the same input.

>>> ["detector", crop, Ensemble(["small", ["large", calibrate]], combine="mean")]          # doctest: +SKIP
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from distributed.protocol.pickle import loads

from symphony_dask.client.model import Model
from symphony_dask.errors import BadInput
from symphony_dask.pickling import pickled
from symphony_dask.plugin.graph_function import GraphFunction
from symphony_dask.text import did_you_mean, plain, shown

#: Characters of a function's name that are shown.
MOST_NAME = 100


@dataclass(frozen=True)
class Ensemble:
    """Stages that get the same input side by side, and how their answers become one.

    combine: "mean" of numbers, arrays and tensors, also within dicts, lists and tuples; "vote", the label that most
        members say (an array or tensor of scores says where it is largest; of equals, the one that came first in
        ``members``); or a function of the list of answers, in the members' order, which runs on the client.
    """

    members: Sequence[Any]
    combine: str | Callable[[list[Any]], Any] = "mean"


@dataclass(frozen=True)
class Ask:
    """A model by name: whatever version serves."""

    model: str


@dataclass(frozen=True)
class Call:
    """A function of one argument, on the client."""

    function: Callable[[Any], Any]


@dataclass(frozen=True)
class Series:
    parts: tuple[Stage, ...]


@dataclass(frozen=True)
class Parallel:
    members: tuple[Stage, ...]
    combine: str | Callable[[list[Any]], Any]


Stage: TypeAlias = "Ask | Call | Series | Parallel"


def as_stage(given: object) -> Stage:
    """What a user wrote (the module's grammar); raises ``BadInput``."""
    if isinstance(given, str) and given:
        return Ask(given)
    if isinstance(given, (Model, GraphFunction)) and given.name:
        return Ask(given.name)
    if isinstance(given, Ensemble):
        if isinstance(given.members, str) or not isinstance(given.members, Iterable):
            raise BadInput(f"an Ensemble of {shown(given.members)}: give it a list of two models or more")
        members = tuple(as_stage(member) for member in given.members)
        if not members:
            raise BadInput("an Ensemble has no members: give it two models or more")
        if not callable(given.combine) and given.combine not in COMBINE:
            known = f"give one of {', '.join(map(repr, COMBINE))} or a function"
            raise BadInput(f"combine={shown(given.combine)}: {known}{did_you_mean(given.combine, COMBINE)}")
        return Parallel(members, given.combine)
    if isinstance(given, (list, tuple)):
        if not given:
            raise BadInput("a pipeline has an empty list of stages: give it a model")
        return Series(tuple(as_stage(part) for part in given))
    if callable(given):
        return Call(given)
    remedy = "give the name of a model, a model, a function of one argument, a list of these, or an Ensemble"
    raise BadInput(f"stage {given!r} is a {type(given).__name__}: {remedy}")


def models_of(stage: Stage) -> list[str]:
    """The names of its models, each once, in their order."""
    return list(dict.fromkeys(ask.model for ask in asks(stage)))


def ends_of(stage: Stage) -> tuple[str | None, str | None]:
    """A model that gets what the pipeline gets, and one that gives what it gives; None where a function does."""
    if isinstance(stage, Ask):
        return stage.model, stage.model
    if isinstance(stage, Call):
        return None, None
    if isinstance(stage, Series):
        return ends_of(stage.parts[0])[0], ends_of(stage.parts[-1])[1]
    # A vote gives a label, and the mean of integers none of theirs.
    return ends_of(stage.members[0])[0], None


def asks(stage: Stage) -> Iterator[Ask]:
    """The models in it, in their order."""
    if isinstance(stage, Ask):
        yield stage
    elif isinstance(stage, Series):
        for part in stage.parts:
            yield from asks(part)
    elif isinstance(stage, Parallel):
        for member in stage.members:
            yield from asks(member)


def to_plain(stage: Stage) -> dict[str, Any]:
    """As plain values; functions pickled, for Dask's channel only. Raises ``BadInput``."""
    if isinstance(stage, Ask):
        return {"model": stage.model}
    if isinstance(stage, Call):
        return {"function": _pickled(stage.function)}
    if isinstance(stage, Series):
        return {"series": [to_plain(part) for part in stage.parts]}
    combine = _pickled(stage.combine) if callable(stage.combine) else stage.combine
    return {"parallel": [to_plain(member) for member in stage.members], "combine": combine}


def _pickled(function: object) -> bytes:
    remedy = "have it create what cannot be pickled, such as locks, connections and open files, when it is called"
    return pickled(function, f"the function {name_of(function)}()", remedy)


def from_plain(plain: dict[str, Any]) -> Stage:
    """What ``to_plain`` wrote."""
    if "model" in plain:
        return Ask(plain["model"])
    if "function" in plain:
        return Call(loads(plain["function"]))
    if "series" in plain:
        return Series(tuple(from_plain(part) for part in plain["series"]))
    combine = plain["combine"]
    return Parallel(
        tuple(from_plain(member) for member in plain["parallel"]),
        loads(combine) if isinstance(combine, bytes) else combine,
    )


def name_of(function: Any) -> str:
    """The name of a user's function, for people."""
    try:
        name = function.__name__
    except BaseException:
        name = None
    return plain(name if isinstance(name, str) and name else type(function).__name__, MOST_NAME)


def runs_functions_last(stage: Stage) -> bool:
    """Whether what it answers may be what a user's function returned, and not what a model did."""
    if isinstance(stage, Series):
        return runs_functions_last(stage.parts[-1])
    if isinstance(stage, Parallel):
        return callable(stage.combine) or any(map(runs_functions_last, stage.members))
    return isinstance(stage, Call)


def describe(stage: Stage) -> str:
    """On one line: ``a -> f() -> mean(b, c)``."""
    if isinstance(stage, Ask):
        return stage.model
    if isinstance(stage, Call):
        return f"{name_of(stage.function)}()"
    if isinstance(stage, Series):
        return " -> ".join(describe(part) for part in stage.parts)
    combine = name_of(stage.combine) if callable(stage.combine) else stage.combine
    return f"{combine}({', '.join(describe(member) for member in stage.members)})"


def mean(answers: list[Any]) -> Any:
    """The mean of answers of one form."""
    first = answers[0]
    if isinstance(first, dict):
        return {key: mean([answer[key] for answer in answers]) for key in first}
    if isinstance(first, (list, tuple)):
        return type(first)(mean(list(entries)) for entries in zip(*answers, strict=True))
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(first, torch.Tensor):
        return torch.stack(answers).to(torch.promote_types(first.dtype, torch.float16)).mean(0)
    if isinstance(first, (int, float)):
        return sum(answers) / len(answers)
    stacked = np.stack([np.asarray(answer) for answer in answers])
    return stacked.mean(0, dtype=stacked.dtype if stacked.dtype.kind in "fc" else np.float64)


def vote(answers: list[Any]) -> Any:
    """The label that most answers say."""
    return Counter(map(_label, answers)).most_common(1)[0][0]


def _label(answer: object) -> Any:
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(answer, torch.Tensor):
        answer = answer.numpy()
    if isinstance(answer, (np.ndarray, np.generic)):
        return answer.item() if answer.size == 1 else int(answer.argmax())
    return answer


COMBINE: dict[str, Callable[[list[Any]], Any]] = {"mean": mean, "vote": vote}
