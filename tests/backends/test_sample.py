from __future__ import annotations

import numpy as np
import pytest

from symphony_dask import codec
from symphony_dask.backends import check_sample, sample_signature
from symphony_dask.errors import BadInput

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


def test_without_an_array_as_example_everything_passes() -> None:
    assert sample_signature({"text": "hi"}) is None
    check_sample("bert", None, codec.encode(b"anything"))
