from __future__ import annotations

import functools
from typing import Any

import cloudpickle
import numpy as np
import pytest

from symphony_dask.backends import Emulated, as_spec, load
from symphony_dask.errors import BadInput, DeploymentError
from tests.helpers.runners import answers, run


def double(batch: Any) -> Any:
    return batch * 2


class Offset:
    """A model made with a parameter, called on a batch."""

    def __init__(self, by: int) -> None:
        self.by = by

    def __call__(self, batch: Any) -> Any:
        return batch + self.by


@pytest.mark.parametrize(
    ("obj", "kind"),
    [
        (double, "function"),
        (Offset(1), "function"),
        (lambda batch, temperature=1.0: batch, "function"),
        (lambda: double, "loader"),
        (functools.partial(Offset, 1), "loader"),
        (Emulated(1, 2), "emulated"),
        ((1.053, 5.072), "emulated"),
    ],
)
def test_the_kind_follows_from_what_is_passed(obj: Any, kind: str) -> None:
    assert as_spec(obj).kind == kind


def needs_keyword(batch: Any, *, mode: str) -> Any:
    return batch


@pytest.mark.parametrize(
    ("obj", "words"),
    [
        ("resnet50", "cannot serve a str: pass a torch.nn.Module"),
        (Offset, "cannot serve the class Offset, it needs by: pass an instance"),
        (lambda a, b: a, "it needs a, b"),
        (needs_keyword, "needs mode by name: set them with functools.partial"),
        (dict, "its parameters are unknown: wrap it as lambda batch"),
        ((-1, 2), "must be finite ms, at least 0"),
    ],
)
def test_what_cannot_be_served_is_refused_with_the_remedy(obj: Any, words: str) -> None:
    with pytest.raises(BadInput, match=words):
        as_spec(obj)


@pytest.mark.parametrize("obj", [double, lambda: double, lambda: lambda batch: batch * 2])
def test_a_spec_sent_with_cloudpickle_loads_and_serves(obj: Any) -> None:
    spec = cloudpickle.loads(cloudpickle.dumps(as_spec(obj)))
    assert answers(run(load(spec), np.float64(3), np.float64(4))) == [6, 8]


def test_a_loader_may_return_an_emulated_model() -> None:
    assert load(as_spec(lambda: Emulated(0, 0))) == Emulated(0, 0)


def test_a_callable_gets_what_collate_makes_of_the_samples() -> None:
    def columns(samples: list[Any]) -> dict[str, Any]:
        return {"x": np.array([s["x"] for s in samples]), "n": len(samples)}

    for model in (lambda batch: batch["x"] * batch["n"], lambda: lambda batch: batch["x"] * batch["n"]):
        spec = cloudpickle.loads(cloudpickle.dumps(as_spec(model, collate=columns)))
        assert answers(run(load(spec), {"x": 3}, {"x": 4})) == [6, 8]


def test_arrays_come_to_collate_as_a_list_too() -> None:
    runner = load(as_spec(double, collate=np.concatenate), example=np.zeros(1))
    assert answers(run(runner, np.array([1]), np.array([2]))) == [2, 4]


@pytest.mark.parametrize(
    ("model", "options", "words"),
    [
        (double, {"collate": "pad"}, "collate='pad': give a function of a list of samples"),
        (Emulated(1, 2), {"collate": list}, "collate= is for models that read their samples"),
        (lambda: double, {"collate": list, "optimize": "compile"}, "leave one of them out"),
    ],
)
def test_what_cannot_be_collated_is_refused(model: Any, options: Any, words: str) -> None:
    with pytest.raises(BadInput, match=words):
        as_spec(model, **options)


def broken_loader() -> Any:
    raise FileNotFoundError("weights.pt")


@pytest.mark.parametrize(
    ("obj", "words"),
    [
        (broken_loader, "FileNotFoundError: weights.pt"),
        (lambda: broken_loader, "another loader"),
        (lambda: 3, "cannot serve a int"),
    ],
)
def test_a_loader_that_fails_is_a_deployment_error_with_its_traceback(obj: Any, words: str) -> None:
    with pytest.raises(DeploymentError, match=words):
        load(as_spec(obj))


def test_a_model_that_fails_on_its_example_does_not_load() -> None:
    def fail(batch: Any) -> Any:
        raise RuntimeError("bad weights")

    with pytest.raises(DeploymentError, match=r"its example, float64 \(2,\): RuntimeError: bad weights"):
        load(as_spec(fail), example=np.zeros(2))


def test_a_model_that_answers_its_example_loads() -> None:
    assert answers(run(load(as_spec(double), example=np.zeros(2)), np.ones(1)))[0].tolist() == [2]
