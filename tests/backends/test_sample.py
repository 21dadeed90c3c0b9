from __future__ import annotations

import numpy as np
import pytest

from symphony_dask.backends import check_sample, sample_signature
from symphony_dask.errors import BadInput
from symphony_dask.wire import codec

EXPECTED = sample_signature(np.zeros((3, 224, 224), "f4"))


def test_a_sample_of_the_examples_dtype_and_shape_passes() -> None:
    check_sample("resnet", EXPECTED, codec.encode(np.ones((3, 224, 224), "f4")))


def test_a_tensor_passes_for_an_array() -> None:
    torch = pytest.importorskip("torch")
    check_sample("resnet", EXPECTED, codec.encode(torch.ones(3, 224, 224)))


def test_a_wrong_shape_is_refused_with_both_shapes() -> None:
    words = r"^model 'resnet' takes float32 \(3, 224, 224\); got float32 \(3, 32, 32\)$"
    with pytest.raises(BadInput, match=words):
        check_sample("resnet", EXPECTED, codec.encode(np.ones((3, 32, 32), "f4")))


def test_a_wrong_dtype_or_kind_is_refused() -> None:
    with pytest.raises(BadInput, match="got float64"):
        check_sample("resnet", EXPECTED, codec.encode(np.ones((3, 224, 224))))
    with pytest.raises(BadInput, match="got bytes"):
        check_sample("resnet", EXPECTED, codec.encode(b"jpeg"))


def test_of_several_inputs_the_wrong_one_is_named() -> None:
    expected = sample_signature({"ids": np.zeros(3, "i8"), "mask": np.zeros(3, "i8")})
    check_sample("bert", expected, codec.encode({"mask": np.ones(3, "i8"), "ids": np.ones(3, "i8")}))
    takes = r"^model 'bert' takes a dict of 'ids' int64 \(3,\) and 'mask' int64 \(3,\); "
    with pytest.raises(BadInput, match=takes + "entry 'mask' is missing$"):
        check_sample("bert", expected, codec.encode({"ids": np.zeros(3, "i8")}))
    with pytest.raises(BadInput, match=takes + r"entry 'mask' is float32 \(3,\)$"):
        check_sample("bert", expected, codec.encode({"ids": np.zeros(3, "i8"), "mask": np.zeros(3, "f4")}))


def test_a_dict_for_one_array_is_refused_with_what_is_in_it() -> None:
    with pytest.raises(BadInput, match=r"got a dict of 'x' float32 \(3, 224, 224\)$"):
        check_sample("resnet", EXPECTED, codec.encode({"x": np.ones((3, 224, 224), "f4")}))


def test_without_an_array_as_example_everything_passes() -> None:
    assert sample_signature({"text": "hi"}) is None
    check_sample("bert", None, codec.encode(b"anything"))
