from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from symphony_dask import codec
from symphony_dask.backends import BatchRunner
from symphony_dask.errors import BadInput
from tests.backends.helpers import answers, run


def test_uniform_arrays_are_one_call_on_the_stacked_array() -> None:
    seen = []

    def double(batch: np.ndarray) -> np.ndarray:
        seen.append(batch.shape)
        return batch * 2

    result = run(BatchRunner(double), np.array([1, 2]), np.array([3, 4]))
    assert seen == [(2, 2)]
    assert [a.tolist() for a in answers(result)] == [[2, 4], [6, 8]]
    assert result.errors == {}


def test_objects_that_are_no_arrays_are_one_call_on_a_list() -> None:
    seen = []

    def lengths(batch: list[Any]) -> list[int]:
        seen.append(batch)
        return [len(x) for x in batch]

    assert answers(run(BatchRunner(lengths), "a", [1, 2], {})) == [1, 2, 0]
    assert seen == [["a", [1, 2], {}]]


def test_each_shape_is_a_call_of_its_own_and_answers_keep_the_order() -> None:
    def total(batch: np.ndarray) -> np.ndarray:
        return batch.sum(axis=1)

    result = run(BatchRunner(total), np.array([1, 2]), np.array([5]), np.array([3, 4]))
    assert answers(result) == [3, 5, 7]


def test_a_call_that_raises_fails_only_its_own_samples() -> None:
    def fussy(batch: np.ndarray) -> np.ndarray:
        if batch.shape[1] == 1:
            raise RuntimeError("one is too short")
        return batch.sum(axis=1)

    result = run(BatchRunner(fussy), np.array([1, 2]), np.array([5]), np.array([3, 4]))
    assert answers(result) == [3, "failed", 7]
    assert list(result.errors) == [1]
    assert result.errors[1].endswith("RuntimeError: one is too short\n")
    assert result.sizes[1] == 0


def test_a_uniform_batch_that_raises_fails_whole() -> None:
    def broken(batch: np.ndarray) -> np.ndarray:
        raise RuntimeError("no")

    result = run(BatchRunner(broken), np.zeros(1), np.zeros(1))
    assert sorted(result.errors) == [0, 1]
    assert (result.blob, result.sizes.tolist()) == (b"", [0, 0])


def test_a_wrong_number_of_results_is_the_models_failure() -> None:
    result = run(BatchRunner(lambda batch: batch[:1]), np.zeros(1), np.zeros(1))
    assert "model returned shape (1, 1) for a batch of 2" in result.errors[0]


@pytest.mark.parametrize("bad", [b"\xff", codec.encode(np.zeros(2))[:-1], b"\x02\xc1"], ids=["kind", "cut", "msgpack"])
def test_a_malformed_payload_fails_only_itself(bad: bytes) -> None:
    result = run(BatchRunner(lambda batch: [1] * len(batch)), np.zeros(2), bad, np.zeros(2), "text")
    assert answers(result) == [1, "failed", 1, 1]
    assert "BadInput" in result.errors[1]


def test_a_batch_of_malformed_payloads_does_not_call_the_model() -> None:
    def never(batch: Any) -> Any:
        raise AssertionError("called")

    result = run(BatchRunner(never), b"\xff", b"\xff")
    assert all("BadInput" in result.errors[i] for i in (0, 1))


def test_sizes_that_do_not_add_up_are_refused() -> None:
    with pytest.raises(BadInput, match="add up"):
        BatchRunner(list).run(memoryview(b"abc"), np.array([1, 1]))
