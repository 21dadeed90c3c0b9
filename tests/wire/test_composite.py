"""Samples of several inputs: dicts and tuples of arrays, as payloads."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from symphony_dask.wire import codec, composite

IDS, MASK = np.array([1, 2, 3]), np.array([True, True, False])
SAMPLE = {"ids": IDS, "mask": MASK}


def stacked(*samples: Any) -> Any:
    payloads = [codec.encode(sample) for sample in samples]
    return composite.stack(memoryview(b"".join(payloads)), np.array([len(payload) for payload in payloads]))


def mismatch(example: Any, sample: Any) -> str:
    expected = composite.signature(codec.encode(example))
    assert expected is not None
    return composite.mismatch(expected, codec.encode(sample))


def test_dicts_are_stacked_by_name() -> None:
    found = stacked(SAMPLE, {"ids": IDS + 1, "mask": ~MASK})
    assert {name: entry.tolist() for name, entry in found.items()} == {
        "ids": [[1, 2, 3], [2, 3, 4]],
        "mask": [[True, True, False], [False, False, True]],
    }


@pytest.mark.parametrize("kind", [tuple, list])
def test_tuples_and_lists_are_stacked_by_position(kind: Any) -> None:
    first, second = stacked(kind((IDS, np.float32(0.5))), kind((IDS, np.float32(2))))
    assert (first.shape, second.tolist()) == ((2, 3), [0.5, 2])


# The bytes of msgpack before an extension are 2, 3, 4 or 6, and other numbers of names are written otherwise.
@pytest.mark.parametrize(
    "sample",
    [
        {"a": np.int64(1), "b": np.zeros(0)},
        {"a": np.zeros(300, np.uint8), "b": np.zeros((2, 40_000), np.uint8)},
        {f"input {i}": np.full(2, i) for i in range(40)},
        {"x" * 300: np.arange(3), "ä": np.arange(2)},
        tuple(np.full(2, i) for i in range(40)),
        (np.zeros(70_000, np.uint8), np.arange(2)),
    ],
    ids=["scalars and nothing", "large", "many", "long names", "many by position", "a large tuple"],
)
def test_what_was_stacked_is_what_was_sent(sample: Any) -> None:
    found = stacked(sample, sample)
    names = list(sample) if isinstance(sample, dict) else range(len(sample))
    for entry, sent in ((found[name], sample[name]) for name in names):
        assert entry.dtype == sent.dtype
        np.testing.assert_array_equal(entry, [sent, sent])
        entry[...] = 0  # it is theirs to write to


def test_tensors_are_stacked_to_tensors() -> None:
    torch = pytest.importorskip("torch")
    found = stacked({"x": torch.ones(2, dtype=torch.bfloat16), "y": IDS}, {"x": torch.zeros(2).bfloat16(), "y": IDS})
    assert found["x"].dtype == torch.bfloat16
    assert found["x"].tolist() == [[1, 1], [0, 0]]
    assert isinstance(found["y"], np.ndarray)


@pytest.mark.parametrize(
    "other",
    [{"ids": IDS}, SAMPLE | {"more": IDS}, SAMPLE | {"mask": IDS}, SAMPLE | {"ids": IDS[:2]}, SAMPLE | {"mask": "text"},
     (IDS, MASK), {1: IDS, 2: MASK}, {}, IDS, {"mask": MASK, "ids": IDS}],
)  # fmt: skip
def test_what_differs_is_not_stacked(other: Any) -> None:
    assert stacked(SAMPLE, other) is None


def test_names_in_another_order_are_of_one_group_and_joined() -> None:
    payloads = [codec.encode(sample) for sample in (SAMPLE, {"mask": ~MASK, "ids": IDS})]
    assert composite.group_of(payloads[0]) == composite.group_of(payloads[1])
    found = composite.join([memoryview(payload) for payload in payloads])
    assert list(found) == ["ids", "mask"]
    assert found["mask"].tolist() == [[True, True, False], [False, False, True]]


def test_a_payload_cut_short_is_not_stacked() -> None:
    payload = codec.encode(SAMPLE)
    assert composite.entries_of(payload[:-1]) is None
    assert composite.stack(memoryview(payload * 2)[:-2], np.full(2, len(payload) - 1)) is None


@pytest.mark.parametrize(
    ("sample", "wrong"),
    [
        (SAMPLE, ""),
        ({"mask": MASK, "ids": IDS}, ""),
        ({"ids": IDS}, "entry 'mask' is missing"),
        (SAMPLE | {"token_type_ids": IDS}, "entry 'token_type_ids' is unknown"),
        (SAMPLE | {"ids": IDS.astype("i4")}, "entry 'ids' is int32 (3,)"),
        (SAMPLE | {"ids": IDS[:2]}, "entry 'ids' is int64 (2,)"),
        (IDS, "got int64 (3,)"),
        ((IDS, MASK), "got a tuple of int64 (3,) and bool (3,)"),
        (SAMPLE | {"ids": [1, 2, 3]}, "got plain data"),
        (b"text", "got bytes"),
    ],
)
def test_what_is_wrong_with_a_sample_is_told(sample: Any, wrong: str) -> None:
    assert mismatch(SAMPLE, sample) == wrong


def test_a_list_passes_for_a_tuple_and_tensors_for_arrays() -> None:
    torch = pytest.importorskip("torch")
    assert mismatch((IDS, MASK), [torch.tensor([4, 5, 6]), MASK]) == ""
    assert mismatch((IDS, MASK), (IDS,)) == "entry 1 is missing"
    assert mismatch((IDS, MASK), (IDS, IDS)) == "entry 1 is int64 (3,)"


def test_what_is_shown_of_names_is_bounded() -> None:
    assert len(mismatch(SAMPLE, SAMPLE | {"\n" * 10_000: IDS})) < 100
    entries = composite.entries_of(codec.encode({f"input {i}": IDS for i in range(1000)}))
    assert str(entries).endswith("'input 11' int64 (3,) and ...")


@pytest.mark.parametrize(
    ("sample", "what"),
    [
        ("text", "got str:"),
        ({"ids": IDS, "scale": 0.5}, "got a dict whose entry 'scale' is a float:"),
        ({"ids": {"left": IDS}}, "got a dict whose entry 'ids' is a dict:"),
        ((IDS, None), "got a tuple whose entry 1 is a NoneType:"),
        ({1: IDS}, "got a dict whose key 1 is no string:"),
        ([], "got an empty list:"),
    ],
)
def test_what_no_torch_module_takes_is_told_with_the_remedy(sample: Any, what: str) -> None:
    why = composite.obstacle(codec.encode(sample))
    assert what in why
    assert why.endswith("or pass collate= for a function that makes a batch of samples")


@pytest.mark.parametrize("sample", [IDS, SAMPLE, (IDS, MASK), np.float32(1)])
def test_what_a_torch_module_takes_has_no_obstacle(sample: Any) -> None:
    assert composite.obstacle(codec.encode(sample)) == ""
