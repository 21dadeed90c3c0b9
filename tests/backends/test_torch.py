from __future__ import annotations

from typing import Any

import cloudpickle
import numpy as np
import pytest

from symphony_dask.backends import as_spec, load
from tests.backends.helpers import answers, run

torch = pytest.importorskip("torch")


class Probe(torch.nn.Module):
    """Returns ``outputs(x)``, whatever that is."""

    def __init__(self, outputs: Any) -> None:
        super().__init__()
        self.outputs = outputs

    def forward(self, x: Any) -> Any:
        return self.outputs(x)


def serve(module: Any) -> Any:
    return load(as_spec(module), device="cpu")


def scaler() -> Any:
    module = torch.nn.Linear(2, 1, bias=False)
    torch.nn.init.ones_(module.weight)
    return module


def test_arrays_are_answered_with_arrays() -> None:
    got = answers(run(serve(scaler()), np.array([1, 2], "f4"), np.array([3, 4], "f4")))
    assert [type(a) for a in got] == [np.ndarray, np.ndarray]
    assert [a.tolist() for a in got] == [[3], [7]]


def test_tensors_are_answered_with_tensors_without_gradients() -> None:
    got = answers(run(serve(scaler()), torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0])))
    assert [a.tolist() for a in got] == [[3], [7]]
    assert not any(a.requires_grad for a in got)


def test_a_batch_of_arrays_and_tensors_answers_each_in_kind() -> None:
    got = answers(run(serve(scaler()), np.array([1, 2], "f4"), torch.tensor([3.0, 4.0])))
    assert [type(a) for a in got] == [np.ndarray, torch.Tensor]


def test_modules_run_in_eval_and_inference_mode() -> None:
    seen = []
    module = Probe(lambda x: seen.append((module.training, torch.is_inference_mode_enabled())) or x)
    run(serve(module), np.zeros(1, "f4"))
    assert seen == [(False, True)]


def test_tuples_and_dicts_of_tensors_are_cut_into_samples() -> None:
    module = Probe(lambda x: {"twice": x * 2, "rest": (x[:, 0], None, [x + 1])})
    got = answers(run(serve(module), np.array([1, 2]), np.array([3, 4])))
    assert got[1]["twice"].tolist() == [6, 8]
    first, nothing, more = got[1]["rest"]
    assert (first, nothing, more[0].tolist()) == (3, None, [4, 5])


def test_bfloat16_results_for_arrays_become_float32() -> None:
    (got,) = answers(run(serve(Probe(lambda x: x.to(torch.bfloat16))), np.array([1.5], "f4")))
    assert got.dtype == np.float32
    assert got.tolist() == [1.5]


def test_a_missing_batch_dimension_is_the_models_failure() -> None:
    result = run(serve(Probe(lambda x: (x, x.sum()))), np.zeros(2))
    assert "module returned a tensor of shape () for a batch of 1" in result.errors[0]


def test_samples_that_are_no_arrays_are_refused_with_the_remedy() -> None:
    result = run(serve(scaler()), "text", "text")
    assert "a torch module takes arrays or tensors; got str" in result.errors[0]


def test_a_wrong_shape_fails_without_harming_the_others() -> None:
    got = answers(run(serve(scaler()), np.array([1, 2], "f4"), np.zeros(5, "f4")))
    assert got[0].tolist() == [3]
    assert got[1] == "failed"


def test_a_module_class_is_a_loader() -> None:
    class Doubler(torch.nn.Module):
        def forward(self, x: Any) -> Any:
            return x * 2

    assert as_spec(Doubler).kind == "loader"
    assert answers(run(serve(Doubler), np.array([2])))[0].tolist() == [4]


def test_a_module_travels_by_cloudpickle() -> None:
    spec = cloudpickle.loads(cloudpickle.dumps(as_spec(scaler())))
    assert answers(run(load(spec, "cpu"), np.array([1, 2], "f4")))[0].tolist() == [3]


@pytest.mark.gpu
def test_modules_go_to_the_gpu_and_answers_come_back() -> None:
    module = scaler()
    runner = load(as_spec(module))
    assert next(module.parameters()).is_cuda
    assert answers(run(runner, np.array([1, 2], "f4")))[0].tolist() == [3]
