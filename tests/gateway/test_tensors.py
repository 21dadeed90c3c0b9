"""What the gateway reads from the wire and writes to it, without a socket."""

from __future__ import annotations

import json
import math
import struct
from typing import Any

import numpy as np
import pytest

from symphony_dask.errors import BadInput
from symphony_dask.gateway.formats.parameters import Terms, terms_of
from symphony_dask.gateway.formats.samples import Interface, interface_of, outputs_of, sample_of_raw, samples_of
from symphony_dask.gateway.formats.tensors import DATATYPES, NUMPY, Tensor, array_of, bf16_of, to_binary, to_json
from symphony_dask.gateway.formats.v1 import read_predict, write_predict
from symphony_dask.gateway.formats.v2 import InferRequest, read_header_length, read_infer, write_infer
from symphony_dask.gateway.refusal import Refusal
from symphony_dask.wire import codec


def body(**head: Any) -> bytes:
    return json.dumps(head).encode()


def tensor(data: Any, shape: list[Any], datatype: str = "FP32", name: str = "x") -> dict[str, Any]:
    return {"name": name, "shape": shape, "datatype": datatype, "data": data}


def refusal(data: bytes, header_bytes: int | None = None) -> str:
    with pytest.raises(Refusal) as caught:
        read_infer(data, header_bytes)
    assert caught.value.status == 400
    return caught.value.text


def takes(example: Any) -> Interface:
    return interface_of(codec.form(codec.encode(example)), "input")


def given(*tensors: dict[str, Any]) -> Any:
    return read_infer(body(inputs=list(tensors)), None).inputs


# Tensors


@pytest.mark.parametrize("datatype", [d for d in DATATYPES if d in NUMPY])
def test_numbers_of_every_datatype_come_back_as_json_and_as_binary(datatype: str) -> None:
    values = np.array([[0, 1, 1], [1, 0, 1]], NUMPY[datatype])
    entry = {"name": "x", "shape": [2, 3], "datatype": datatype}
    (by_json,) = given({**entry, "data": values.tolist()})
    binary = values.tobytes()
    head = body(inputs=[{**entry, "parameters": {"binary_data_size": len(binary)}}])
    (by_binary,) = read_infer(head + binary, len(head)).inputs
    for found in (by_json, by_binary):
        assert bytes(to_binary(found)) == binary
        assert to_json(found) == values.reshape(-1).tolist()


def test_bf16_is_the_upper_half_of_fp32_rounded_to_nearest_even() -> None:
    values = np.array([1.0, -2.0, 1 + 2**-8, 1 + 3 * 2**-8, math.inf, math.nan], np.float32)
    assert [hex(v) for v in bf16_of(values).tolist()] == ["0x3f80", "0xc000", "0x3f80", "0x3f82", "0x7f80", "0x7fc0"]
    (found,) = given(tensor([1.0, -2.0], [2], "BF16"))
    assert bytes(found.data) == b"\x80\x3f\x00\xc0"
    assert array_of(found).tolist() == [1.0, -2.0]


def test_strings_come_back_as_json_and_as_binary() -> None:
    (by_json,) = given(tensor([["é", ""], ["c", "d"]], [2, 2], "BYTES"))
    assert by_json.data == ["é".encode(), b"", b"c", b"d"]
    assert to_binary(by_json) == b"\2\0\0\0\xc3\xa9" + b"\0\0\0\0" + b"\1\0\0\0c" + b"\1\0\0\0d"
    assert to_json(by_json) == ["é", "", "c", "d"]
    binary = to_binary(by_json)
    parameters = {"binary_data_size": len(binary)}
    head = body(inputs=[{"name": "x", "shape": [2, 2], "datatype": "BYTES", "parameters": parameters}])
    assert read_infer(head + binary, len(head)).inputs[0].data == by_json.data


def test_not_a_number_and_infinities_are_numbers() -> None:
    (found,) = read_infer(
        b'{"inputs":[{"name":"x","shape":[3],"datatype":"FP32","data":[NaN,Infinity,-Infinity]}]}', None
    ).inputs
    assert np.array_equal(array_of(found), np.array([np.nan, np.inf, -np.inf], np.float32), equal_nan=True)
    (pieces, _) = write_infer("m", "1", InferRequest(), [found])
    assert b'"data":[NaN,Infinity,-Infinity]' in pieces[0]


@pytest.mark.parametrize(
    ("entry", "text"),
    [
        (tensor([1, 2], [3]), "tensor 'x': shape is [3], but data has [2]"),
        (tensor([[1, 2], [3, 4]], [4, 1]), "tensor 'x': shape is [4, 1], but data has [2, 2]"),
        (tensor([[1], [2, 3]], [3]), "tensor 'x': data must be flat, or nested lists of equal lengths"),
        (tensor(["1"], [1]), "tensor 'x': data of FP32 must be numbers"),
        (tensor([None], [1]), "tensor 'x': data of FP32 must be numbers"),
        (tensor([True], [1]), "tensor 'x': data of FP32 must be numbers"),
        (tensor([1.5], [1], "INT8"), "tensor 'x': data of INT8 must be whole numbers"),
        (tensor([300], [1], "UINT8"), "tensor 'x': data of UINT8 must be between 0 and 255"),
        (tensor([10**30], [1], "INT64"), "tensor 'x': data of INT64 must be between"),
        (tensor([10**400], [1]), "tensor 'x': data has numbers that are too large for FP32"),
        (tensor([1e39], [1]), "tensor 'x': data has numbers that are too large for FP32"),
        (tensor([70000.0], [1], "FP16"), "tensor 'x': data has numbers that are too large for FP16"),
        (tensor([1], [1], "BOOL"), "tensor 'x': data of BOOL must be true or false"),
        (tensor([1], [1], "BYTES"), "tensor 'x': data of BYTES must be strings"),
        (tensor(["\ud800"], [1], "BYTES"), "body has a string that is no valid Unicode, '\\ud800': send bytes"),
        (tensor(3, [1]), "tensor 'x': data must be a list"),
        (tensor([1], [-1]), "tensor 'x': shape [-1] must be a list of whole numbers"),
        (tensor([1], [True]), "tensor 'x': shape [True] must be"),
        (tensor([1], [1] * 33), "tensor 'x': 33 dimensions, the most is 32"),
        (tensor([1], [2**40, 2**40]), "has too many elements"),
        (tensor([], [2**62, 2**62, 0]), "has too many elements"),
        (tensor([1], [1], "FP8"), "tensor 'x': datatype 'FP8' is none of BOOL"),
        (tensor([1], [1], "object"), "tensor 'x': datatype 'object' is none of"),
        ({"name": "x", "shape": [1], "datatype": "FP32"}, "tensor 'x' has neither data nor binary_data_size"),
        ({"shape": [1], "datatype": "FP32"}, "each of 'inputs' must have a 'name'"),
        (5, "each of 'inputs' must be an object, got int"),
    ],
)
def test_a_bad_tensor_is_refused_with_its_name_and_what_is_wrong(entry: Any, text: str) -> None:
    assert text in refusal(json.dumps({"inputs": [entry]}).encode())


def test_a_long_string_among_many_numbers_costs_no_more_than_it_has() -> None:
    assert "must be numbers" in refusal(body(inputs=[tensor([1] * 100_000 + ["x" * 1_000_000], [100_001])]))


@pytest.mark.parametrize(
    ("datatype", "shape", "size", "sent", "text"),
    [
        ("FP32", [3], 12, 8, "binary_data_size 12 must be a number of bytes, and 8 are left"),
        ("FP32", [3], 8, 8, "FP32 of shape [3] has 12 bytes, but 8 came"),
        ("FP32", [2], 8, 12, "body has 4 bytes more than"),
        ("FP32", [2], -8, 8, "binary_data_size -8 must be"),
        ("FP32", [2], 8.0, 8, "binary_data_size 8.0 must be"),
        ("BYTES", [1], 8, 8, "8 bytes are not 1 elements of BYTES"),
        ("BYTES", [2**40], 8, 8, "elements of BYTES need"),
        ("FP32", [2**40], 8, 8, "but 8 came"),
    ],
)
def test_binary_data_must_fit_the_shape_and_the_body(
    datatype: str, shape: list[int], size: Any, sent: int, text: str
) -> None:
    head = body(inputs=[{"name": "x", "shape": shape, "datatype": datatype, "parameters": {"binary_data_size": size}}])
    assert text in refusal(head + bytes(sent), len(head))


def test_bytes_of_bool_are_0_or_1() -> None:
    head = body(inputs=[{"name": "x", "shape": [2], "datatype": "BOOL", "parameters": {"binary_data_size": 2}}])
    assert "bytes of BOOL must be 0 or 1" in refusal(head + b"\1\2", len(head))


def test_the_json_of_a_body_ends_within_it() -> None:
    assert read_header_length(None, 5) is None
    assert read_header_length(b"5", 5) == 5
    for text in (b"6", b"-1", b"1e1", b"", b"9" * 30, b"0x1"):
        with pytest.raises(Refusal, match="Inference-Header-Content-Length"):
            read_header_length(text, 5)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", "no JSON"),
        (b"{", "no JSON"),
        (b"\xff\xfe", "no JSON"),
        (b"[" * 100_000, "no JSON"),
        (b"[]", "body must be a JSON object, got list"),
        (b"{}", "'inputs' must be a list of one tensor or more"),
        (b'{"inputs":[]}', "'inputs' must be a list"),
        (b'{"inputs":[{"name":"x","shape":[1],"datatype":"INT64","data":[%s]}]}' % (b"9" * 5000), "no JSON"),
        (body(inputs=[tensor([1], [1])], id=5), "'id' must be a string, got int"),
        (body(inputs=[tensor([1], [1])], parameters=[]), "parameters of the request must be an object"),
        (body(inputs=[tensor([1], [1])], outputs=[{}]), "each of 'outputs' must have a 'name'"),
        (body(inputs=[tensor([1], [1])], outputs=[5]), "each of 'outputs' must be an object, got int"),
        (body(inputs=[tensor([1], [1])] * 2), "inputs have the same name"),
        (
            body(inputs=[tensor([1], [1])], outputs=[{"name": "y", "parameters": {"classification": 3}}]),
            "output 'y': classification is not offered",
        ),
        (
            body(inputs=[{**tensor([1], [1]), "parameters": {"shared_memory_region": "r"}}]),
            "tensor 'x': shared memory is not offered",
        ),
        (body(inputs=[tensor([1], [1])], parameters={"binary_data_output": 1}), "'binary_data_output' must be true"),
    ],
)
def test_a_bad_request_is_refused_with_what_is_wrong(data: bytes, text: str) -> None:
    assert text in refusal(data)


@pytest.mark.parametrize(
    "data",
    [
        {"inputs": [tensor([1], [1]) | {"name": "\ud800"}]},
        {"inputs": [tensor([1], [1])], "id": "x \udce9"},
        {"inputs": [tensor([1], [1])], "outputs": [{"name": "\udfff"}]},
        {"inputs": [tensor([1], [1])], "parameters": {"slo": "\ud800"}},
        {"inputs": [tensor([1], [1])], "parameters": {"\ud800": 1}},
        {"inputs": [tensor([1], [1]) | {"datatype": "\ud800\ud83d\ude00"}]},
        {"\udc00": {}},
    ],
)
@pytest.mark.parametrize("ascii", [True, False], ids=["escaped", "raw"])
def test_no_string_may_hold_half_a_surrogate_pair(data: Any, ascii: bool) -> None:
    sent = json.dumps(data, ensure_ascii=ascii).encode("utf-8", "surrogatepass")
    assert ("no valid Unicode" if ascii else "is no JSON: UnicodeDecodeError") in refusal(sent)


def test_whole_surrogate_pairs_and_escapes_that_are_none_are_strings() -> None:
    (found,) = read_infer(
        b'{"inputs":[{"name":"\\ud83d\\ude00","shape":[1],"datatype":"BYTES","data":["\\\\ud800"]}]}', None
    ).inputs
    assert (found.name, found.data) == ("\U0001f600", [b"\\ud800"])


@pytest.mark.parametrize(
    ("head", "text"),
    [
        ({"parameters": {"sol": "25ms"}}, "parameter 'sol' of the request is unknown: leave it out; offered are"),
        ({"parameters": {"sequence_id": 7}}, "parameter 'sequence_id' of the request: sequences are not offered"),
        ({"parameters": {"sequence_id": "a"}}, "'sequence_id' of the request: sequences are not offered, each request"),
        ({"parameters": {"sequence_start": True}}, "'sequence_start' of the request: sequences are not offered"),
        ({"parameters": {"content_type": "pd"}}, "parameter 'content_type' 'pd' of the request is not offered"),
        ({"parameters": {"binary_data": True}}, "parameter 'binary_data' of the request is unknown"),
        ({"parameters": {"x" * 5000: 1}}, "of the request is unknown"),
        ({"paramters": {"slo": "25ms"}}, "'paramters' in the request is unknown: leave it out"),
        ({"outputs": [{"name": "y", "parameters": {"binary": True}}]}, "parameter 'binary' of output 'y' is unknown"),
        ({"outputs": [{"name": "y", "data": [1]}]}, "'data' in output 'y' is unknown"),
        ({"inputs": [tensor([1], [1]) | {"parameters": {"scale": 2}}]}, "parameter 'scale' of tensor 'x' is unknown"),
        ({"inputs": [tensor([1], [1]) | {"dtype": "FP32"}]}, "'dtype' in tensor 'x' is unknown"),
        ({"inputs": [tensor([1], [1]) | {"name": "x" * 300}]}, "has 300 characters, the most is 256"),
    ],
)
def test_what_is_not_offered_is_refused_by_name(head: dict[str, Any], text: str) -> None:
    found = refusal(body(**{"inputs": [tensor([1], [1])], **head}))
    assert text in found
    assert len(found) < 1000


@pytest.mark.parametrize(
    "head",
    [
        {"parameters": {"sequence_id": 0, "sequence_start": False, "sequence_end": False, "priority": 0, "timeout": 0}},
        {"parameters": {"binary_data_output": True}, "id": "7", "outputs": None},
        {"parameters": {"content_type": "np", "headers": None}},
        {"parameters": None, "outputs": [], "id": None},
        {"model_name": "m", "id": "3f2b", "parameters": {}},
        {"inputs": [tensor([1], [1]) | {"parameters": {"content_type": "np"}}]},
        {"outputs": [{"name": "y", "parameters": {"binary_data": False, "classification": 0}}]},
    ],
)
def test_what_known_clients_send_by_default_is_taken(head: dict[str, Any]) -> None:
    assert read_infer(body(**{"inputs": [tensor([1], [1])], **head}), None).inputs[0].name == "x"


@pytest.mark.parametrize("depth", [100, 500, 900, 940, 960, 980, 1000])
def test_a_value_of_any_depth_in_the_wrong_place_is_refused(depth: int) -> None:
    nested = b"[" * depth + b"]" * depth
    for where in (b'"datatype":%s', b'"datatype":"FP32","shape":%s', b'"datatype":"FP32","shape":[1],"data":%s'):
        assert len(refusal(b'{"inputs":[{"name":"x",' + where % nested + b"}]}")) < 1000
    for name in (b"slo", b"timeout", b"priority", b"content_type", b"binary_data_output"):
        sent = b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1],"data":[1]}],"parameters":{"%s":%s}}'
        assert len(refusal(sent % (name, nested))) < 1000


def test_the_terms_of_a_request_are_an_slo_and_a_priority() -> None:
    assert terms_of({}) == Terms(0, 0)
    assert terms_of({"slo": "25ms", "priority": 3}) == Terms(25_000_000, 3, "slo '25ms'")
    assert terms_of({"slo": 0.5}) == Terms(500_000_000, 0, "slo 0.5")
    assert terms_of({"timeout": 2000}) == Terms(2_000_000, 0, "timeout 2000")  # us, as Triton's clients send it
    assert terms_of({"timeout": "2ms"}) == Terms(2_000_000, 0, "timeout '2ms'")
    assert terms_of({"slo": "1s", "timeout": 5}).slo_ns == 10**9
    for wrong in ({"slo": "soon"}, {"slo": -1}, {"slo": True}, {"timeout": -5}, {"priority": 8}, {"priority": "1"}):
        with pytest.raises((Refusal, BadInput)):
            terms_of(wrong)


# Samples


def test_a_tensor_of_the_examples_shape_is_one_sample_and_one_with_a_dimension_more_is_several() -> None:
    x = np.arange(3, dtype=np.float32)
    one = samples_of(takes(x), given(tensor([0, 1, 2], [3])))
    several = samples_of(takes(x), given(tensor([0, 1, 2, 0, 1, 2], [2, 3])))
    assert one == ([codec.encode(x)], False)
    assert several == ([codec.encode(x)] * 2, True)


@pytest.mark.parametrize(
    ("example", "entry", "samples"),
    [
        (np.float32(1), tensor([1, 2], [2]), [np.float32(1), np.float32(2)]),
        (np.float32(1), tensor([1, 2], [2, 1]), [np.float32(1), np.float32(2)]),
        (b"x", tensor(["a", "bc"], [2], "BYTES"), [b"a", b"bc"]),
        ("x", tensor(["a"], [1], "BYTES"), ["a"]),
        (1.5, tensor([1, 2], [2], "FP64"), [1.0, 2.0]),
        (7, tensor([1], [], "INT64"), [1]),
        (True, tensor([False], [1], "BOOL"), [False]),
        (np.zeros(2, np.uint16), tensor([1.0, 2.0], [1, 2], "BF16"), [np.array([0x3F80, 0x4000], np.uint16)]),
    ],
)
def test_samples_are_of_the_examples_kind(example: Any, entry: dict[str, Any], samples: list[Any]) -> None:
    payloads, _ = samples_of(takes(example), given(entry))
    assert payloads == [codec.encode(sample) for sample in samples]


def test_a_dict_of_arrays_has_one_input_for_each() -> None:
    example = {"ids": np.zeros(2, np.int64), "mask": np.zeros(2, np.bool_), "name": "x"}
    inputs = (
        tensor([[1, 2], [3, 4]], [2, 2], "INT64", "ids"),
        tensor([True, False, True, True], [2, 2], "BOOL", "mask"),
        tensor(["a", "b"], [2], "BYTES", "name"),
    )
    payloads, batched = samples_of(takes(example), given(*inputs))
    assert batched
    first = codec.decode(payloads[0])
    assert first["ids"].tolist() == [1, 2]
    assert first["mask"].tolist() == [True, False]
    assert first["name"] == "a"
    with pytest.raises(Refusal, match="input 'mask' is missing: the model takes 'ids', 'mask', 'name'"):
        samples_of(takes(example), given(inputs[0], inputs[2]))
    with pytest.raises(Refusal, match="input 'more' is unknown"):
        samples_of(takes(example), given(*inputs, tensor([1], [1], "FP32", "more")))
    with pytest.raises(Refusal, match=r"not the same number of samples: 'ids' \[2, 2\], 'mask' \[1, 2\]"):
        samples_of(takes(example), given(inputs[0], tensor([True, True], [1, 2], "BOOL", "mask"), inputs[2]))


def test_a_tuple_of_arrays_has_numbered_inputs() -> None:
    example = (np.zeros(2, np.float32), np.zeros((), np.int64))
    interface = takes(example)
    assert [(p.name, p.datatype, p.shape) for p in interface.ports] == [
        ("input_0", "FP32", (2,)),
        ("input_1", "INT64", ()),
    ]
    inputs = given(tensor([1, 2], [1, 2], "FP32", "input_0"), tensor([5], [1], "INT64", "input_1"))
    (payload,), _ = samples_of(interface, inputs)
    first, second = codec.decode(payload)
    assert (first.tolist(), second.tolist()) == ([1.0, 2.0], 5)


def test_without_an_example_the_first_dimension_is_the_batch() -> None:
    anything = interface_of(None, "input")
    payloads, batched = samples_of(anything, given(tensor([1, 2, 3, 4], [2, 2])))
    assert batched
    assert [codec.decode(p).tolist() for p in payloads] == [[1.0, 2.0], [3.0, 4.0]]
    payloads, _ = samples_of(anything, given(tensor(["a", "b"], [2], "BYTES")))
    assert [codec.decode(p) for p in payloads] == [b"a", b"b"]
    payloads, _ = samples_of(anything, given(tensor([1], [1], "FP32", "a"), tensor(["b"], [1], "BYTES", "b")))
    assert codec.decode(payloads[0]) == {"a": np.float32(1), "b": b"b"}
    with pytest.raises(Refusal, match="input 'b' has shape"):
        samples_of(anything, given(tensor([1], [1], "FP32", "a"), tensor([1, 2], [2], "FP32", "b")))


def test_a_tensor_of_another_shape_or_datatype_is_refused() -> None:
    interface = takes(np.zeros((2, 2), np.float32))
    with pytest.raises(Refusal, match=r"input 'x' has shape \[4\]: the model takes \[2, 2\] for one sample, or \[n, 2"):
        samples_of(interface, given(tensor([1] * 4, [4])))
    with pytest.raises(Refusal, match="input 'x' has datatype INT64: the model takes FP32"):
        samples_of(interface, given(tensor([1] * 4, [2, 2], "INT64")))
    with pytest.raises(Refusal, match="has 0 samples: a request may have 1 to 4096"):
        samples_of(interface, given(tensor([], [0, 2, 2])))


def test_empty_samples_cannot_be_as_many_as_a_shape_claims() -> None:
    with pytest.raises(Refusal, match="a request may have 1 to 4096"):
        samples_of(takes(np.zeros((0,), np.float32)), given(tensor([], [10**9, 0])))
    with pytest.raises(Refusal, match="a request may have 1 to 4096"):
        samples_of(interface_of(None, "input"), given(tensor([], [10**9, 0])))


def test_what_has_no_datatype_is_refused_with_the_reason() -> None:
    with pytest.raises(Refusal, match=r"input 'input' is complex64 \(2,\), which has no datatype"):
        samples_of(takes(np.zeros(2, np.complex64)), given(tensor([1, 2], [2])))


def test_a_body_without_json_is_one_sample() -> None:
    x = np.arange(2, dtype=np.float32)
    assert sample_of_raw(takes(x), memoryview(x.tobytes())) == codec.encode(x)
    assert sample_of_raw(takes(b""), memoryview(b"abc")) == codec.encode(b"abc")
    assert sample_of_raw(interface_of(None, "input"), memoryview(b"abc")) == codec.encode(b"abc")
    with pytest.raises(Refusal, match="a body of 3 raw bytes: the model takes 8 bytes for FP32"):
        sample_of_raw(takes(x), memoryview(b"abc"))


def test_a_bfloat16_tensor_needs_no_torch_here() -> None:
    torch = pytest.importorskip("torch")
    example = torch.tensor([1.0, 2.0], dtype=torch.bfloat16)
    interface = takes(example)
    assert [(p.name, p.datatype, p.shape) for p in interface.ports] == [("input", "BF16", (2,))]
    payloads, _ = samples_of(interface, given(tensor([1.0, 2.0], [2], "BF16")))
    assert payloads == [codec.encode(example)]
    (found,) = outputs_of([memoryview(payloads[0])], batched=True)
    assert (found.datatype, found.shape, to_json(found)) == ("BF16", (1, 2), [1.0, 2.0])


# Answers


def answered(*answers: Any, batched: bool = True) -> list[Tensor]:
    return outputs_of([memoryview(codec.encode(answer)) for answer in answers], batched)


@pytest.mark.parametrize(
    ("answers", "datatype", "shape", "data"),
    [
        ([np.array([1, 2], np.int8)] * 2, "INT8", (2, 2), [1, 2, 1, 2]),
        ([np.float64(1.5), np.float64(2.5)], "FP64", (2,), [1.5, 2.5]),
        ([b"a", b"bc"], "BYTES", (2,), ["a", "bc"]),
        (["a", "é"], "BYTES", (2,), ["a", "é"]),
        ([1, 2], "INT64", (2,), [1, 2]),
        ([1, 2.5], "FP64", (2,), [1.0, 2.5]),
        ([True], "BOOL", (1,), [True]),
        ([["a", "b"]], "BYTES", (1, 2), ["a", "b"]),
        ([[[1, 2], [3, 4]]], "INT64", (1, 2, 2), [1, 2, 3, 4]),
        ([np.array(["a", "bc"])], "BYTES", (1, 2), ["a", "bc"]),
        ([np.array([1], ">i4")], "INT32", (1, 1), [1]),
    ],
)
def test_answers_are_one_tensor(answers: list[Any], datatype: str, shape: tuple[int, ...], data: list[Any]) -> None:
    (found,) = answered(*answers)
    assert (found.name, found.datatype, found.shape) == ("output", datatype, shape)
    assert to_json(found) == data


def test_an_answer_without_a_batch_has_the_models_own_shape() -> None:
    (found,) = answered(np.zeros((2, 3)), batched=False)
    assert found.shape == (2, 3)


def test_a_dict_is_one_tensor_for_each_key_and_a_tuple_numbered_ones() -> None:
    tensors = answered({"p": np.zeros(2), "label": "cat"}, {"p": np.ones(2), "label": "dog"})
    assert [(t.name, t.datatype, t.shape, to_json(t)) for t in tensors] == [
        ("p", "FP64", (2, 2), [0, 0, 1, 1]),
        ("label", "BYTES", (2,), ["cat", "dog"]),
    ]
    assert [(t.name, t.shape) for t in answered((np.zeros(2), np.zeros(3)))] == [
        ("output_0", (1, 2)),
        ("output_1", (1, 3)),
    ]


def test_none_is_no_tensor() -> None:
    assert answered(None, None) == []


@pytest.mark.parametrize(
    ("answers", "text"),
    [
        ([np.zeros(2), np.zeros(3)], r"different shapes, float64 \(2,\), float64 \(3,\): send one at a time"),
        ([np.zeros(2, np.complex64)], "complex64"),
        ([{"a": 1}, {"b": 1}], "dicts of different keys"),
        ([[1, [2]]], "holds int, list"),
        ([{"a": {"b": 1}}], "'a' holds dict"),
        ([None, 1], "holds NoneType, int|holds int, NoneType"),
        ([2**63], "whole numbers beyond 64 bits"),
    ],
)
def test_an_answer_that_is_no_tensor_is_an_error_of_the_model(answers: list[Any], text: str) -> None:
    with pytest.raises(Refusal, match=text) as caught:
        answered(*answers)
    assert caught.value.status == 500


def test_a_response_has_what_was_asked_for_in_the_way_it_was_asked_for() -> None:
    tensors = answered({"a": np.array([1.0], np.float32), "b": np.array([2], np.int8)})
    request = InferRequest(id="7", outputs=[("b", True), ("a", False)])
    pieces, json_bytes = write_infer("m", "3", request, tensors)
    text = b"".join(pieces)
    assert json_bytes is not None
    assert json.loads(text[:json_bytes]) == {
        "model_name": "m",
        "model_version": "3",
        "id": "7",
        "outputs": [
            {"name": "b", "datatype": "INT8", "shape": [1, 1], "parameters": {"binary_data_size": 1}},
            {"name": "a", "datatype": "FP32", "shape": [1, 1], "data": [1.0]},
        ],
    }
    assert text[json_bytes:] == b"\2"
    with pytest.raises(Refusal, match="output 'c' is unknown: the model has 'a', 'b'"):
        write_infer("m", "3", InferRequest(outputs=[("c", False), ("a", False)]), tensors)


def test_bytes_that_are_no_text_are_sent_as_binary_only() -> None:
    tensors = answered(b"\xff")
    with pytest.raises(Refusal, match="output 'output' has bytes that are no UTF-8 text: ask for it with binary_data"):
        write_infer("m", "1", InferRequest(), tensors)
    pieces, _ = write_infer("m", "1", InferRequest(binary=True), tensors)
    assert pieces[-1] == struct.pack("<I", 1) + b"\xff"


# predict


def rows(example: Any, **head: Any) -> list[Any]:
    interface = takes(example) if example is not None else interface_of(None, "input")
    payloads, _, _ = read_predict(body(**head), interface)
    return [codec.decode(payload) for payload in payloads]


def test_instances_are_samples() -> None:
    found = rows(np.zeros(2, np.float32), instances=[[1, 2], [3, 4]])
    assert [(row.dtype, row.tolist()) for row in found] == [(np.float32, [1, 2]), (np.float32, [3, 4])]
    assert rows(b"x", instances=["a", {"b64": "/w=="}]) == [b"a", b"\xff"]
    example = {"a": np.zeros(1, np.float32), "b": 1}
    (one,) = rows(example, instances=[{"a": [2.0], "b": 3}])
    assert (one["a"].tolist(), one["b"]) == ([2.0], 3)


def test_inputs_are_columns_of_samples() -> None:
    assert [row.tolist() for row in rows(np.zeros(1, np.float32), inputs=[[1], [2]])] == [[1.0], [2.0]]
    found = rows({"a": 1, "b": "x"}, inputs={"a": [1, 2], "b": ["c", "d"]})
    assert found == [{"a": 1, "b": "c"}, {"a": 2, "b": "d"}]


def test_without_an_example_whole_numbers_are_int64_and_others_fp32() -> None:
    found = rows(None, instances=[[1, 2], [1, 2.5], True, "a"])
    assert [getattr(row, "dtype", row) for row in found] == [np.int64, np.float32, np.bool_, b"a"]


@pytest.mark.parametrize(
    ("head", "text"),
    [
        ({}, "either 'instances' .rows. or 'inputs'"),
        ({"instances": [[1, 2]], "inputs": [[1, 2]]}, "either"),
        ({"instances": []}, "instances must be a list of 1 to 4096 samples"),
        ({"instances": [[1, 2, 3]]}, r"input 'input' has shape \[3\]: the model takes \[2\]"),
        ({"instances": [["a", "b"]]}, "data of FP32 must be numbers"),
        ({"instances": [{"a": 1, "b": 2}]}, "the model takes one"),
        ({"inputs": {"a": [1], "b": [1, 2]}}, "different numbers of samples"),
        ({"instances": [[1, 2]], "signature_name": 3}, "'signature_name' 3 is not offered: leave it out"),
    ],
)
def test_a_bad_predict_request_is_refused(head: dict[str, Any], text: str) -> None:
    with pytest.raises(Refusal, match=text):
        rows(np.zeros(2, np.float32), **head)


def test_predictions_are_rows_and_outputs_are_columns() -> None:
    answers = [answered({"p": np.array([0.5]), "label": "cat"}, batched=False)] * 2
    assert json.loads(write_predict(answers, in_rows=True)) == {"predictions": [{"p": [0.5], "label": "cat"}] * 2}
    assert json.loads(write_predict(answers, in_rows=False)) == {
        "outputs": {"p": [[0.5], [0.5]], "label": ["cat", "cat"]}
    }
    assert json.loads(write_predict([answered(b"\xff", batched=False)], True)) == {"predictions": [{"b64": "/w=="}]}
