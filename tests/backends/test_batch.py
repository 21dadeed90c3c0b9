from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from symphony_dask.backends import BatchRunner
from symphony_dask.errors import BadInput
from symphony_dask.wire import codec
from tests.helpers.runners import answers, run


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


def test_an_exception_among_the_results_fails_the_request_that_it_stands_for() -> None:
    def picky(batch: np.ndarray) -> list[Any]:
        return [ValueError(f"{x[0]:g} is odd") if x[0] % 2 else x * 2 for x in batch]

    result = run(BatchRunner(picky), np.array([2.0]), np.array([3.0]), np.array([4.0]))
    assert answers(result) == [4.0, "failed", 8.0]
    assert result.errors == {1: "ValueError: 3 is odd\n"}
    assert result.sizes[1] == 0


def test_an_exception_that_was_caught_brings_its_traceback() -> None:
    def careful(batch: list[str]) -> list[Any]:
        found: list[Any] = []
        for text in batch:
            try:
                found.append(int(text))
            except ValueError as error:
                found.append(error)
        return found

    result = run(BatchRunner(careful), "1", "x", "3")
    assert answers(result) == [1, "failed", 3]
    assert result.errors[1].startswith("Traceback (most recent call last):")
    assert result.errors[1].endswith("ValueError: invalid literal for int() with base 10: 'x'\n")


@pytest.mark.parametrize("bad", [object(), "\udce9", 1 << 64, {1: {object()}}], ids=["object", "text", "int", "set"])
def test_a_result_that_cannot_be_sent_fails_only_its_own_request(bad: Any) -> None:
    result = run(BatchRunner(lambda batch: [1, bad, 3]), np.zeros(1), np.zeros(1), np.zeros(1))
    assert answers(result) == [1, "failed", 3]
    assert "BadInput: cannot send" in result.errors[1]


def test_exceptions_in_an_array_of_objects_and_in_one_group_of_shapes_fail_alone() -> None:
    def mixed(batch: np.ndarray) -> np.ndarray:
        found = np.empty(len(batch), object)
        found[:] = [LookupError("no") if x.sum() < 0 else float(x.sum()) for x in batch]
        return found

    result = run(BatchRunner(mixed), np.array([1.0, 2]), np.array([-5.0]), np.array([-3.0, 1]), np.array([4.0]))
    assert answers(result) == [3, "failed", "failed", 4]
    assert result.errors == {1: "LookupError: no\n", 2: "LookupError: no\n"}


class Liar(list[Any]):
    def __len__(self) -> int:
        return 2


def test_a_sequence_that_says_another_length_than_it_has_fails_the_batch_and_no_more() -> None:
    result = run(BatchRunner(lambda batch: Liar([1, 2, 3])), np.zeros(1), np.zeros(1))
    assert sorted(result.errors) == [0, 1]
    assert "model returned 3 results, though their len() is 2" in result.errors[0]


@pytest.mark.parametrize("bad", [b"\xff", codec.encode(np.zeros(2))[:-1], b"\x02\xc1"], ids=["kind", "cut", "msgpack"])
def test_a_malformed_payload_fails_only_itself(bad: bytes) -> None:
    result = run(BatchRunner(lambda batch: [1] * len(batch)), np.zeros(2), bad, np.zeros(2), "text")
    assert answers(result) == [1, "failed", 1, 1]
    assert "BadInput" in result.errors[1]


def test_text_that_cannot_be_read_fails_only_itself() -> None:
    good = codec.encode(np.array(["a", "b"]))
    bad = good[:-4] + b"\x00\x00\x11\x00"  # U+110000, which there is not
    assert answers(run(BatchRunner(len_of_each), good, bad, good)) == [2, "failed", 2]
    assert answers(run(BatchRunner(len_of_each), bad)) == ["failed"]


def len_of_each(samples: Any) -> list[int]:
    return [len(sample) for sample in samples]


def test_a_batch_of_malformed_payloads_does_not_call_the_model() -> None:
    def never(batch: Any) -> Any:
        raise AssertionError("called")

    result = run(BatchRunner(never), b"\xff", b"\xff")
    assert all("BadInput" in result.errors[i] for i in (0, 1))


def test_sizes_that_do_not_add_up_are_refused() -> None:
    with pytest.raises(BadInput, match="add up"):
        BatchRunner(list).run(memoryview(b"abc"), np.array([1, 1]))
