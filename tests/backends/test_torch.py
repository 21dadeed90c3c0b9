from __future__ import annotations

from collections import UserDict
from typing import Any

import cloudpickle
import numpy as np
import pytest

from symphony_dask.backends import as_spec, load
from symphony_dask.errors import BadInput, DeploymentError
from symphony_dask.slot.profiling import profile_runner
from symphony_dask.wire import codec
from tests.helpers.models import encoder, pad, tokens, weighted
from tests.helpers.runners import answers, run

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


IDS = tokens(1, 2, 3)


def test_entries_of_dicts_are_keyword_arguments() -> None:
    got = answers(run(serve(encoder()), IDS, tokens(4, 5, 6, mask=0)))
    assert [a["pooled"].tolist() for a in got] == [[6, 6, 6, 6], [0, 0, 0, 0]]
    assert (got[0]["last"].shape, got[0]["length"], type(got[0]["last"])) == ((3, 4), 3, np.ndarray)


def test_entries_of_tuples_and_lists_are_positional_arguments() -> None:
    got = answers(run(serve(weighted()), (np.array([1, 2]), np.int64(3)), [np.array([3, 4]), np.int64(2)]))
    assert [(product.tolist(), total.tolist()) for product, total in got] == [([3, 6], [4, 5]), ([6, 8], [5, 6])]


def test_several_inputs_of_one_batch_are_one_call_whatever_their_order() -> None:
    calls = []
    module = encoder()
    module.register_forward_pre_hook(lambda m, args, given: calls.append(list(given)), with_kwargs=True)
    got = answers(run(serve(module), IDS, dict(reversed(IDS.items())), IDS))
    assert [a["length"] for a in got] == [3, 3, 3]
    assert calls == [["attention_mask", "input_ids"]]


def test_several_inputs_of_other_shapes_or_entries_are_calls_of_their_own() -> None:
    samples = [IDS, tokens(4), {"input_ids": np.array([1])}, tokens(1, 1, 1), "text"]
    result = run(serve(encoder()), *samples)
    pooled = [a if isinstance(a, str) else a["pooled"].tolist()[0] for a in answers(result)]
    assert pooled == [6, 4, "failed", 3, "failed"]
    assert "missing 1 required positional argument: 'attention_mask'" in result.errors[2]
    assert "a torch module takes arrays or tensors; got str" in result.errors[4]


def test_an_entry_that_is_no_array_is_named() -> None:
    result = run(serve(encoder()), IDS | {"attention_mask": [1, 1, 1]})
    assert "got a dict whose entry 'attention_mask' is a list: send one, or a dict" in result.errors[0]


def test_several_inputs_with_a_tensor_among_them_are_answered_with_tensors() -> None:
    got = answers(run(serve(encoder()), IDS, IDS | {"input_ids": torch.tensor([7, 8, 9])}))
    assert [type(a["pooled"]) for a in got] == [np.ndarray, torch.Tensor]
    assert got[1]["pooled"].tolist() == [24, 24, 24, 24]


def test_several_inputs_are_padded_too(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[tuple[int, int]] = []

    def compile_(module: Any, dynamic: bool) -> Any:
        def call(input_ids: Any, attention_mask: Any) -> Any:
            sizes.append((len(input_ids), len(attention_mask)))
            return module(input_ids, attention_mask)

        return call

    monkeypatch.setattr(torch, "compile", compile_)
    runner = load(as_spec(encoder(), "compile", 4), "cpu", IDS)
    assert sizes == [(1, 1), (1, 1), (2, 2), (3, 3), (4, 4)]
    assert [a["length"] for a in answers(run(runner, *[IDS] * 5))] == [3] * 5
    assert sizes[-1] == (5, 5)


def test_the_profile_of_several_inputs_is_measured() -> None:
    profile = profile_runner(serve(encoder()), IDS, 4)
    assert [b for b, _ in profile.table] == [1, 2, 4]


def test_a_collate_function_makes_one_batch_of_samples_of_several_lengths() -> None:
    runner = load(as_spec(encoder(), collate=pad), "cpu", IDS)
    got = answers(run(runner, tokens(1), tokens(2, 3), tokens(4, 5, 6)))
    assert [a["pooled"].tolist()[0] for a in got] == [1, 5, 15]
    assert [a["last"].shape for a in got] == [(3, 4)] * 3


def test_what_collate_returns_is_by_name_by_position_or_the_only_argument() -> None:
    by_position = load(as_spec(weighted(), collate=lambda samples: (np.zeros((len(samples), 2)), torch.ones(2))), "cpu")
    assert [total.tolist() for _, total in answers(run(by_position, "a", "b"))] == [[1, 1], [1, 1]]
    alone = load(as_spec(scaler(), collate=lambda texts: torch.tensor([[len(t), 1.0] for t in texts])), "cpu")
    assert [a.tolist() for a in answers(run(alone, "a", "abc"))] == [[2], [4]]


def test_a_packed_sequence_is_one_argument() -> None:
    def packed(samples: list[Any]) -> Any:
        return torch.nn.utils.rnn.pack_sequence([torch.from_numpy(s) for s in samples], enforce_sorted=False)

    def lengths(batch: Any) -> Any:
        return torch.nn.utils.rnn.pad_packed_sequence(batch, batch_first=True)[1]

    runner = load(as_spec(Probe(lengths), collate=packed), "cpu")
    assert answers(run(runner, np.zeros((2, 3), "f4"), np.zeros((5, 3), "f4"))) == [2, 5]


def test_collated_answers_are_of_each_samples_kind() -> None:
    runner = load(as_spec(encoder(), collate=pad), "cpu")
    got = answers(run(runner, IDS, {name: torch.from_numpy(entry) for name, entry in IDS.items()}))
    assert [type(a["pooled"]) for a in got] == [np.ndarray, torch.Tensor]
    assert [a["pooled"].tolist() for a in got] == [[6] * 4, [6] * 4]


def test_a_collate_function_that_raises_fails_its_batch_and_says_so() -> None:
    result = run(load(as_spec(encoder(), collate=pad), "cpu"), IDS, {"input_ids": np.array([1])}, b"\xff")
    assert sorted(result.errors) == [0, 1, 2]
    assert "KeyError: 'attention_mask'" in result.errors[0]
    assert "BadInput: payload of 1 bytes" in result.errors[2]


def test_a_mapping_that_is_no_dict_is_an_answer() -> None:
    module = Probe(lambda x: UserDict(twice=x * 2, nothing=None))
    (got,) = answers(run(serve(module), np.array([1, 2])))
    assert (got["twice"].tolist(), got["nothing"]) == ([2, 4], None)


def test_a_module_class_is_a_loader() -> None:
    class Doubler(torch.nn.Module):
        def forward(self, x: Any) -> Any:
            return x * 2

    assert as_spec(Doubler).kind == "loader"
    assert answers(run(serve(Doubler), np.array([2])))[0].tolist() == [4]


def test_a_module_travels_by_cloudpickle() -> None:
    spec = cloudpickle.loads(cloudpickle.dumps(as_spec(scaler())))
    assert answers(run(load(spec, "cpu"), np.array([1, 2], "f4")))[0].tolist() == [3]


def test_optimized_batches_are_padded_and_answers_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []

    def compile_(module: Any, dynamic: bool) -> Any:
        assert not dynamic
        return lambda x: sizes.append(len(x)) or {"y": module(x), "x": x}

    monkeypatch.setattr(torch, "compile", compile_)
    runner = load(as_spec(scaler(), "compile", 10), "cpu", np.array([1, 1], "f4"))
    assert sizes == [1, 1, 2, 3, 4, 6, 8, 10]  # the example, then what is to be compiled
    got = answers(run(runner, *[np.array([i, 1], "f4") for i in range(5)]))
    assert sizes[-1] == 6
    assert [a["y"].tolist() for a in got] == [[i + 1] for i in range(5)]
    assert len(answers(run(runner, *[np.zeros(2, "f4")] * 11))) == 11
    assert sizes[-1] == 11


def test_an_output_without_the_batch_dimension_fails_padded_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda module, dynamic: module)
    runner = load(as_spec(Probe(lambda x: x[:5]), "compile", 8), "cpu")
    result = run(runner, *[np.zeros(1, "f4")] * 7)
    assert "module returned a tensor of shape (5, 1) for a batch of 8" in result.errors[0]


def test_the_profile_of_padded_batches_has_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda module, dynamic: module)
    example = np.array([1, 1], "f4")
    profile = profile_runner(load(as_spec(scaler(), "compile", 8), "cpu", example), example, 8)
    assert [b for b, _ in profile.table] == [1, 2, 3, 4, 5, 6, 7, 8]
    ms = dict(profile.table)
    assert (ms[5], ms[7]) == (ms[6], ms[8])


def test_cuda_graphs_elsewhere_are_refused_with_the_remedy() -> None:
    with pytest.raises(DeploymentError, match='optimize="cuda-graphs" needs a CUDA device; the model is on cpu'):
        load(as_spec(scaler(), "cuda-graphs", 4), "cpu")


@pytest.mark.parametrize("model", [lambda batch: batch, (1.0, 2.0)])
def test_only_torch_modules_are_optimized(model: Any) -> None:
    with pytest.raises(BadInput, match="optimize='compile' is for torch modules; got a"):
        as_spec(model, "compile")


def test_an_unknown_way_to_optimize_is_refused() -> None:
    with pytest.raises(BadInput, match="optimize='fast': give one of 'compile', 'cuda-graphs'"):
        as_spec(scaler(), "fast")


@pytest.mark.slow
def test_a_compiled_module_answers_as_the_module_does() -> None:
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3))
    plain, compiled = serve(module), load(as_spec(module, "compile", 4), "cpu", np.zeros(8, "f4"))
    samples = [np.random.default_rng(i).normal(size=8).astype("f4") for i in range(3)]
    for got, expected in zip(answers(run(compiled, *samples)), answers(run(plain, *samples)), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_compiled_module_of_several_inputs_answers_as_the_module_does() -> None:
    runner = load(as_spec(encoder(), "compile", 4), "cpu", IDS)
    got = answers(run(runner, IDS, tokens(1, 1, 1), tokens(2, 2, 2)))
    assert [a["pooled"].tolist()[0] for a in got] == [6, 3, 6]


@pytest.mark.gpu
def test_several_inputs_go_to_the_gpu_staged_and_captured() -> None:
    for optimize in (None, "cuda-graphs"):
        runner = load(as_spec(encoder(), optimize, 4), None, IDS)
        payloads = [codec.encode(tokens(i, i, i)) for i in range(3)]
        staged = runner.stage(memoryview(b"".join(payloads)), np.array([len(p) for p in payloads]))
        assert [a["pooled"].tolist()[0] for a in answers(staged())] == [0, 3, 6]
    collated = load(as_spec(encoder(), collate=pad), None, IDS)
    assert [a["pooled"].tolist()[0] for a in answers(run(collated, tokens(1), tokens(2, 3)))] == [1, 5]


@pytest.mark.gpu
def test_modules_go_to_the_gpu_and_answers_come_back() -> None:
    module = scaler()
    runner = load(as_spec(module))
    assert next(module.parameters()).is_cuda
    assert answers(run(runner, np.array([1, 2], "f4")))[0].tolist() == [3]


@pytest.mark.gpu
def test_staged_batches_answer_as_others_do() -> None:
    runner = load(as_spec(scaler()))
    payloads = [codec.encode(np.array([i, 1], "f4")) for i in range(3)]
    sizes = np.array([len(p) for p in payloads])
    rest = [runner.stage(memoryview(b"".join(payloads)), sizes) for _ in range(2)]
    for run_staged in rest:
        assert [a.tolist() for a in answers(run_staged())] == [[1], [2], [3]]


@pytest.mark.gpu
def test_captured_graphs_answer_as_the_module_does() -> None:
    example = np.array([1, 2], "f4")
    runner = load(as_spec(scaler(), "cuda-graphs", 8), None, example)
    for n in (1, 5, 8, 9, 5):
        got = answers(run(runner, *[np.array([i, n], "f4") for i in range(n)]))
        assert [a.tolist() for a in got] == [[i + n] for i in range(n)]
