from __future__ import annotations

import struct
import subprocess
import sys
from collections import OrderedDict, namedtuple
from collections.abc import Callable
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from symphony_dask.errors import BadInput
from symphony_dask.wire import array_codec, batch_codec, codec


def round_trip(obj: Any) -> Any:
    return codec.decode(codec.encode(obj))


def same(a: Any, b: Any) -> bool:
    """Equal in type, dtype, shape and value, NaN equal to NaN, at any depth."""
    if type(a) is not type(b):
        return False
    if isinstance(a, (np.ndarray, np.generic)):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    return bool(a == b)


ARRAYS = hnp.arrays(
    st.one_of(
        hnp.boolean_dtypes(),
        hnp.integer_dtypes(endianness="?"),
        hnp.floating_dtypes(endianness="?"),
        hnp.complex_number_dtypes(),
        hnp.byte_string_dtypes(max_len=5),
        hnp.unicode_string_dtypes(max_len=5),
        hnp.datetime64_dtypes(),
    ),
    hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4),
)
LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
    st.floats(allow_nan=False),
    st.text(),
    st.binary(),
    ARRAYS,
    ARRAYS.filter(lambda a: a.size > 0).map(lambda a: a.flat[0]).filter(lambda x: isinstance(x, np.generic)),
)
OBJECTS = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.dictionaries(st.one_of(st.text(), st.integers(-5, 5), st.tuples(st.integers(0, 9))), inner, max_size=4),
    ),
    max_leaves=8,
)


@settings(max_examples=200, deadline=None)
@given(OBJECTS)
def test_what_is_encoded_comes_back_with_its_type_and_value(obj: Any) -> None:
    assert same(round_trip(obj), obj)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=80))
def test_decoding_random_bytes_raises_nothing_but_bad_input(buf: bytes) -> None:
    try:
        codec.decode(buf)
    except BadInput:
        pass
    array_codec.signature(buf)


@settings(max_examples=300, deadline=None)
@given(
    kind=st.sampled_from([array_codec.ARRAY, array_codec.SCALAR, array_codec.TENSOR]),
    dtype=st.one_of(
        st.sampled_from(["<f4", "|O", "<U3", "<U999999999", "<M8[ns]", "<M8[xx]", "|V0", "float32", "object", "<i3"]),
        st.text(max_size=12),
    ),
    shape=st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(0, 3), max_size=40),
    data=st.binary(max_size=40),
)
def test_a_forged_header_raises_nothing_but_bad_input(kind: int, dtype: str, shape: list[int], data: bytes) -> None:
    name = dtype.encode()
    start = bytes([kind, len(shape), len(name)]) + name
    header = start + bytes(-len(start) % 8) + struct.pack(f"<{len(shape)}q", *shape)
    try:
        codec.decode(header + data)
    except BadInput:
        pass


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_payload_with_changed_bytes_raises_nothing_but_bad_input(data: st.DataObject) -> None:
    payload = bytearray(codec.encode(data.draw(OBJECTS)))
    for i in data.draw(st.lists(st.integers(0, len(payload) - 1), min_size=1, max_size=4)):
        payload[i] = data.draw(st.integers(0, 255))
    try:
        codec.decode(payload[: data.draw(st.integers(0, len(payload)))])
    except BadInput:
        pass


@pytest.mark.parametrize("text", [np.array(["xyz"], "<U3"), np.array(["xyz"], ">U3"), np.str_("xyz")])
@pytest.mark.parametrize("wrap", [lambda text: text, lambda text: {"a": (text, 1)}])
def test_text_with_a_character_that_there_is_not_is_refused(text: Any, wrap: Callable[[Any], Any]) -> None:
    payload = codec.encode(wrap(text))
    order = text.dtype.newbyteorder("=").str[0] if np.isscalar(text) else text.dtype.str[0]
    last = payload.rindex(np.array(ord("z"), f"{order}u4").tobytes())
    above = np.array(0x110000, f"{order}u4").tobytes()
    with pytest.raises(BadInput, match="has the character 0x110000: the last one is 0x10ffff"):
        codec.decode(payload[:last] + above + payload[last + 4 :])


def test_an_array_payload_is_header_then_raw_data_at_a_multiple_of_eight() -> None:
    payload = codec.encode(np.array([1, 2], "<i2"))
    assert payload == b"\x03\x01\x03<i2" + bytes(2) + b"\x02" + bytes(7) + b"\x01\x00\x02\x00"


def test_bytes_like_objects_come_back_as_bytes() -> None:
    assert [round_trip(x) for x in (b"ab", bytearray(b"ab"), memoryview(b"axbx")[::2])] == [b"ab"] * 3


def test_reading_a_subclass_of_a_container_runs_no_code_of_its_own() -> None:
    class AList(list[int]):
        def __iter__(self) -> Any:
            raise AssertionError("list")

    class ADict(dict[str, int]):
        def __iter__(self) -> Any:
            raise AssertionError("dict")

        keys = items = __iter__

    class ATuple(tuple[int, ...]):
        def __iter__(self) -> Any:
            raise AssertionError("tuple")

    sent = [AList([1]), ADict(a=2), ATuple((3,))]
    assert codec.decode(codec.encode(sent)) == [[1], {"a": 2}, (3,)]


def test_subclasses_of_containers_come_back_as_their_base() -> None:
    point = namedtuple("point", "x y")
    assert same(round_trip([point(1, 2), OrderedDict(a=1)]), [(1, 2), {"a": 1}])


def test_an_array_that_is_not_in_c_order_keeps_its_values() -> None:
    assert round_trip(np.arange(6).reshape(2, 3).T).tolist() == [[0, 3], [1, 4], [2, 5]]


def test_a_decoded_array_can_be_written_to() -> None:
    array = round_trip(np.zeros(2))
    array[0] = 1
    assert array.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("obj", "words"),
    [
        ({1, 2}, "cannot send a set: send bytes, a numpy array"),
        ([object()], "cannot send a object"),
        (2**64, "int of 65 bits"),
        ("\ud800", "valid Unicode"),
        (np.array([None]), "dtype object: convert it"),
        (np.zeros(2, "i4,f4"), "fields of a structured array as a dict"),
        (np.ma.array([1, 2], mask=[0, 1]), "send .filled"),
    ],
)
def test_what_cannot_be_sent_is_refused_with_its_type_and_the_remedy(obj: Any, words: str) -> None:
    with pytest.raises(BadInput, match=words.replace("(", r"\(")):
        codec.encode(obj)


def test_a_container_that_holds_itself_is_refused() -> None:
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(BadInput, match="nesting"):
        codec.encode(loop)


def test_tuples_nest_to_a_depth_that_decoding_can_follow() -> None:
    nested: Any = ()
    for _ in range(32):
        nested = (nested,)
    with pytest.raises(BadInput, match="nested deeper than 32: use lists"):
        codec.encode(nested)
    assert round_trip(nested[0]) == nested[0]


def test_tuples_forged_deeper_than_the_stack_are_refused() -> None:
    packed = msgpack.packb([])
    for _ in range(2000):
        packed = msgpack.packb([msgpack.ExtType(2, packed)])
    with pytest.raises(BadInput, match="nested 32 deep"):
        codec.decode(b"\x02" + packed)


def test_a_payload_cut_short_is_refused_with_both_sizes() -> None:
    with pytest.raises(BadInput, match=r"float32 \(3, 2\) has 20 data bytes: it must have 24"):
        codec.decode(codec.encode(np.zeros((3, 2), "f4"))[:-4])


def test_signatures_are_equal_exactly_for_equal_dtype_and_shape() -> None:
    def sign(x: Any) -> bytes | None:
        return array_codec.signature(codec.encode(x))

    assert sign(np.zeros((2, 3))) == sign(np.ones((3, 2)).T)
    assert len({sign(np.zeros((2, 3))), sign(np.zeros((3, 2))), sign(np.zeros((2, 3), "f4")), sign(np.zeros(6))}) == 4
    assert sign("text") is None
    assert sign(b"raw") is None


def test_describe_names_dtype_and_shape() -> None:
    assert codec.describe(codec.encode(np.zeros((3, 4), "f4"))) == "float32 (3, 4)"
    assert codec.describe(codec.encode(b"raw")) == "bytes"
    assert codec.describe(codec.encode([1])) == "plain data"


def joined(*samples: Any) -> tuple[bytes, np.ndarray]:
    payloads = [codec.encode(x) for x in samples]
    return b"".join(payloads), np.array([len(p) for p in payloads])


def test_samples_of_one_dtype_and_shape_stack_into_one_writable_array() -> None:
    batch = batch_codec.stack(*joined(np.array([1, 2], "i2"), np.array([3, 4], "i2"), np.array([5, 6], "i2")))
    assert same(batch, np.array([[1, 2], [3, 4], [5, 6]], "i2"))
    assert batch.flags.writeable


def test_a_batch_of_one_stacks_into_memory_of_its_own() -> None:
    blob, sizes = joined(np.array([7]))
    batch = batch_codec.stack(blob, sizes)
    batch[0] = 8
    assert codec.decode(blob).tolist() == [7]


@pytest.mark.parametrize(
    "samples",
    [
        (),
        (np.zeros(2), np.zeros(3)),
        (np.zeros(2), np.zeros(2, "i8")),
        (np.zeros(2), np.zeros((2, 1))),
        (b"ab", b"cd"),
        ([1], [2]),
    ],
    ids=["none", "size", "dtype", "shape", "bytes", "plain"],
)
def test_samples_that_differ_or_are_no_arrays_do_not_stack(samples: tuple[Any, ...]) -> None:
    assert batch_codec.stack(*joined(*samples)) is None


@pytest.mark.parametrize("others", [(2**45,), (2**46,), (2**61,), (2**62 - 1,), (2**31, 2**31), (2**23, 2**23, 4)])
@pytest.mark.parametrize("kind", ["|u1", "<f8"])
def test_empty_samples_of_vast_shapes_are_read_and_stacked_or_refused(kind: str, others: tuple[int, ...]) -> None:
    header = array_codec._make_header(array_codec.ARRAY, kind, (0, *others))
    try:
        assert codec.decode(header).shape == (0, *others)
    except BadInput:
        assert codec.decode(array_codec._make_header(array_codec.ARRAY, kind, (0, 2**30))).shape == (0, 2**30)
    for n in (1, 2, 4096):
        stacked = batch_codec.stack(header * n, np.full(n, len(header)))
        assert stacked is None or stacked.shape == (n, 0, *others)


def test_equal_samples_whose_data_do_not_fit_their_header_do_not_stack() -> None:
    payload = codec.encode(np.zeros(2))[:-1]
    assert batch_codec.stack(payload * 2, np.array([len(payload)] * 2)) is None


def test_split_gives_back_the_payloads_and_refuses_sizes_that_do_not_add_up() -> None:
    assert [bytes(p) for p in batch_codec.split(b"abcde", np.array([2, 0, 3]))] == [b"ab", b"", b"cde"]
    for sizes in ([2, 2], [7, -2]):
        with pytest.raises(BadInput, match="add up"):
            batch_codec.split(b"abcde", np.array(sizes))


@settings(max_examples=100, deadline=None)
@given(ARRAYS.filter(lambda a: a.ndim > 0))
def test_encoding_an_array_as_a_batch_equals_encoding_its_rows(array: np.ndarray) -> None:
    blob, sizes = batch_codec.encode_batch(array, len(array))
    rows = [codec.decode(payload) for payload in batch_codec.split(blob, sizes)]
    assert all(map(same, rows, array))
    if array.ndim > 1:  # A scalar taken from an array loses the array's byte order and string length.
        assert blob == b"".join(map(codec.encode, array))


@pytest.mark.parametrize(
    ("outputs", "words"),
    [
        ([1, 2, 3], "model returned 3 results for a batch of 4"),
        (np.zeros((3, 5)), r"model returned shape \(3, 5\) for a batch of 4"),
        (np.array(1.0), r"model returned shape \(\) for a batch of 4"),
        ({"a": 1}, "model returned one dict for a batch of 4"),
        ("abcd", "model returned one str for a batch of 4"),
        (None, "model returned one NoneType for a batch of 4"),
    ],
)
def test_outputs_that_are_not_n_results_are_refused(outputs: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        batch_codec.check_count(outputs, 4)


def test_importing_the_codec_does_not_import_torch() -> None:
    subprocess.run(
        [sys.executable, "-c", "import symphony_dask.wire.codec, sys; assert 'torch' not in sys.modules"], check=True
    )


@pytest.fixture
def torch() -> Any:
    return pytest.importorskip("torch")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "int64", "bool", "complex64", "float8_e5m2"])
@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (0, 2)])
def test_tensors_come_back_with_dtype_and_shape(torch: Any, dtype: str, shape: tuple[int, ...]) -> None:
    tensor = torch.ones(shape).to(getattr(torch, dtype))
    back = round_trip(tensor)
    assert (back.dtype, back.shape) == (tensor.dtype, tensor.shape)
    assert torch.equal(back.to(torch.complex64), tensor.to(torch.complex64))


def test_gradients_and_strides_are_left_behind(torch: Any) -> None:
    back = round_trip(torch.arange(6.0).reshape(2, 3).requires_grad_().T)
    assert not back.requires_grad
    assert back.tolist() == [[0, 3], [1, 4], [2, 5]]


def test_conjugated_views_keep_their_values(torch: Any) -> None:
    assert round_trip(torch.tensor([1 + 2j]).conj()).tolist() == [1 - 2j]


def test_tensors_nest_in_plain_data(torch: Any) -> None:
    back = round_trip({"a": (torch.ones(2), 1)})
    assert back["a"][0].tolist() == [1, 1]


def test_tensors_stack_into_a_tensor(torch: Any) -> None:
    rows = [
        torch.tensor([1, 2], dtype=torch.bfloat16),
        torch.tensor([3, 4], dtype=torch.bfloat16),
    ]
    assert torch.equal(batch_codec.stack(*joined(*rows)), torch.stack(rows))


def test_encoding_a_tensor_as_a_batch_equals_encoding_its_rows(torch: Any) -> None:
    tensor = torch.arange(6.0, dtype=torch.bfloat16).reshape(2, 3)
    assert bytes(batch_codec.encode_batch(tensor, 2)[0]) == codec.encode(tensor[0]) + codec.encode(tensor[1])
    with pytest.raises(ValueError, match=r"shape \(2, 3\) for a batch of 3"):
        batch_codec.encode_batch(tensor, 3)


def test_tensors_that_are_not_plain_memory_are_refused(torch: Any) -> None:
    with pytest.raises(BadInput, match=r"sparse.*to_dense"):
        codec.encode(torch.eye(2).to_sparse())


@pytest.mark.gpu
def test_tensors_on_a_gpu_come_back_on_the_cpu(torch: Any) -> None:
    assert round_trip(torch.ones(2, device="cuda")).device.type == "cpu"
