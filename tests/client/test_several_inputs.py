"""Torch modules of several inputs, served on a cluster: by the client, in Dask graphs, and over HTTP."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from symphony_dask.client import declarations
from symphony_dask.client.model import Model
from symphony_dask.client.serving import Serving
from symphony_dask.errors import BadInput, DeploymentError, ModelError
from tests.helpers import models
from tests.helpers.cluster import Cluster
from tests.helpers.gateway_process import GatewayProcess, tensor
from tests.helpers.models import tokens

torch = pytest.importorskip("torch")

Deploy = Callable[..., Model]


def firsts(answers: Any) -> list[float]:
    """The first number of "pooled" of each answer."""
    return [float(answer["pooled"][0]) for answer in answers]


def test_named_inputs_are_measured_and_served(deploy: Deploy) -> None:
    model = deploy(models.encoder(), example=tokens(0, 0, 0), max_batch=8)
    assert [b for b, _ in model.profiles["cpu"].table] == [1, 2, 4, 8]
    answers = [f.result() for f in model.map([tokens(i, i, 1) for i in range(10)])]
    assert firsts(answers) == [2 * i + 1 for i in range(10)]
    assert answers[9]["last"].tolist() == [[9] * 4, [9] * 4, [1] * 4]
    assert answers[9]["length"] == 3


def test_inputs_by_position_are_measured_and_served(deploy: Deploy) -> None:
    model = deploy(models.weighted(), example=(np.zeros(2), np.float64(0)), max_batch=4)
    product, total = model((np.array([1.0, 2.0]), np.float64(3)))
    assert (product.tolist(), total.tolist()) == ([3, 6], [4, 5])


def test_a_sample_with_a_wrong_entry_is_refused_before_it_is_sent(deploy: Deploy) -> None:
    model = deploy(models.encoder(), example=tokens(0, 0), profile="1,1")
    with pytest.raises(BadInput, match=r"; entry 'attention_mask' is missing$"):
        model.submit({"input_ids": np.zeros(2, np.int64)})
    with pytest.raises(BadInput, match=r"; entry 'labels' is unknown$"):
        model.submit(tokens(1, 2) | {"labels": np.zeros(2)})
    with pytest.raises(BadInput, match=r"; entry 'input_ids' is float64 \(2,\)$"):
        model.submit(tokens(1, 2) | {"input_ids": np.zeros(2)})
    with pytest.raises(BadInput, match=r"takes a dict of 'input_ids' int64 \(2,\) and 'attention_mask' .* got int64"):
        model.submit(np.zeros(2, np.int64))


def test_samples_of_several_lengths_are_served_without_an_example(deploy: Deploy) -> None:
    model = deploy(models.encoder(), profile="1,1")
    answers = [f.result() for f in model.map([tokens(*range(n)) for n in (1, 3, 2, 3)])]
    assert firsts(answers) == [0, 3, 1, 3]
    with pytest.raises(ModelError, match="missing 1 required positional argument: 'attention_mask'"):
        model({"input_ids": np.zeros(2, np.int64)})


def test_samples_of_several_lengths_are_one_batch_with_collate(deploy: Deploy) -> None:
    model = deploy(models.encoder, collate=models.pad, example=tokens(0, 0), max_batch=4)
    answers = [f.result() for f in model.map([tokens(*range(n)) for n in (1, 3, 2, 3)])]
    assert firsts(answers) == [0, 3, 1, 3]
    with pytest.raises(ModelError, match="KeyError: 'attention_mask'"):
        model({"input_ids": np.zeros(2, np.int64)})


def test_a_callable_gets_what_collate_makes(deploy: Deploy) -> None:
    model = deploy(lambda batch: batch["input_ids"].sum(axis=1), collate=models.pad, profile="1,1")
    assert [f.result() for f in model.map([tokens(1), tokens(2, 3)])] == [1, 5]


def test_a_file_declares_several_inputs_and_a_collate_function(serving: Serving) -> None:
    text = """
models:
  declared:
    model: tests.helpers.models:encoder
    slo: 60s
    example: {input_ids: "int64:2", attention_mask: "int64:2"}
    collate: tests.helpers.models:pad
"""
    declared = declarations.read(text)["declared"]
    model = serving.deploy("declared", declarations.model_of(declared), **declarations.options_of(declared))
    try:
        assert firsts(f.result() for f in model.map([tokens(1), tokens(2, 3)])) == [1, 5]
        assert serving.declared()["declared"].declared == declared
    finally:
        serving.undeploy("declared")


@pytest.mark.parametrize(
    ("example", "options", "words"),
    [
        ({"x": 0.5}, {}, "cannot take its example: a torch module takes arrays or tensors; got a dict whose entry 'x'"),
        ("text", {"optimize": "compile"}, "cannot take its example: .* got str"),
        ("text", {"optimize": "compile", "collate": list}, "leave one of them out"),
    ],
)
def test_an_example_that_the_module_cannot_take_is_refused(
    serving: Serving, example: Any, options: Any, words: str
) -> None:
    with pytest.raises(BadInput, match=words):
        serving.deploy("refused", models.encoder(), slo="1s", example=example, **options)


def test_an_example_with_a_name_that_forward_has_not_is_told(serving: Serving) -> None:
    example = {"input_ids": np.zeros(2, np.int64), "mask": np.zeros(2)}
    with pytest.raises(DeploymentError, match=r"got an unexpected keyword argument .*mask"):
        serving.deploy("wrong", models.encoder(), slo="1s", example=example)


def test_named_inputs_are_tasks_of_dask_graphs(deploy: Deploy, serving: Serving) -> None:
    model = deploy(models.encoder(), example=tokens(0, 0, 0), profile="1,1")
    client = serving.client
    futures = client.map(model, [tokens(i, i, i) for i in range(4)], pure=False)
    assert firsts(client.gather(futures)) == [0, 3, 6, 9]
    parts = {name: client.submit(lambda x: x, entry, pure=False) for name, entry in tokens(1, 2, 3).items()}
    assert firsts([client.submit(model, parts, pure=False).result()]) == [6]
    with pytest.raises(BadInput, match="entry 'attention_mask' is missing"):
        client.submit(model, {"input_ids": np.zeros(3, np.int64)}, pure=False).result()


@pytest.fixture(scope="module")
def gateway(cluster: Cluster, serving: Serving) -> Iterator[GatewayProcess]:
    pytest.importorskip("uvicorn")
    with GatewayProcess(cluster.address) as gateway:
        yield gateway


IDS, MASK = [[1, 2, 3], [4, 5, 6]], [[1, 1, 1], [1, 0, 0]]


@pytest.mark.parametrize("binary", [True, False], ids=["binary", "json"])
def test_tritons_client_sends_named_tensors(gateway: GatewayProcess, deploy: Deploy, binary: bool) -> None:
    http = pytest.importorskip("tritonclient.http")
    name = deploy(models.encoder(), example=tokens(0, 0, 0), profile="1,1").name
    with http.InferenceServerClient(gateway.host) as client:
        about = client.get_model_metadata(name)
        assert about["inputs"] == [
            {"name": "input_ids", "datatype": "INT64", "shape": [-1, 3]},
            {"name": "attention_mask", "datatype": "INT64", "shape": [-1, 3]},
        ]
        assert about["outputs"] == [
            {"name": "last", "datatype": "FP32", "shape": [-1, 3, 4]},
            {"name": "pooled", "datatype": "FP32", "shape": [-1, 4]},
            {"name": "length", "datatype": "INT64", "shape": [-1]},
        ]
        given = []
        for what, values in (("attention_mask", MASK), ("input_ids", IDS)):
            given.append(http.InferInput(what, [2, 3], "INT64"))
            given[-1].set_data_from_numpy(np.array(values), binary_data=binary)
        wanted = [http.InferRequestedOutput(name, binary_data=binary) for name in ("pooled", "length")]
        found = client.infer(name, given, outputs=wanted)
    assert found.as_numpy("pooled").tolist() == [[6] * 4, [4] * 4]
    assert found.as_numpy("length").tolist() == [3, 1]
    assert found.as_numpy("last") is None


def test_a_wrong_named_tensor_is_a_400_that_names_it(gateway: GatewayProcess, deploy: Deploy) -> None:
    name = deploy(models.encoder(), example=tokens(0, 0, 0), profile="1,1").name
    ids = tensor(IDS, [2, 3], "INT64", "input_ids")
    for wrong, text in (
        ([], "input 'attention_mask' is missing: the model takes 'input_ids', 'attention_mask'"),
        ([tensor(MASK, [2, 3], "INT64", "mask")], "input 'attention_mask' is missing"),
        ([tensor(MASK, [2, 3], "INT32", "attention_mask")], "input 'attention_mask' has datatype INT32"),
        ([tensor([1, 1], [2, 1], "INT64", "attention_mask")], "input 'attention_mask' has shape [2, 1]"),
        ([tensor([1, 1, 1], [1, 3], "INT64", "attention_mask")], "inputs have not the same number of samples"),
    ):
        answer = gateway.infer(name, ids, *wrong)
        assert answer.status == 400
        assert text in answer.error


def test_predict_takes_rows_and_columns_of_named_inputs(gateway: GatewayProcess, deploy: Deploy) -> None:
    name = deploy(models.encoder(), example=tokens(0, 0, 0), profile="1,1").name
    rows = [{"input_ids": ids, "attention_mask": mask} for ids, mask in zip(IDS, MASK, strict=True)]
    by_row = gateway.post(f"/v1/models/{name}:predict", {"instances": rows}).json["predictions"]
    assert [(row["pooled"], row["length"]) for row in by_row] == [([6] * 4, 3), ([4] * 4, 1)]
    columns = {"input_ids": IDS, "attention_mask": MASK}
    by_column = gateway.post(f"/v1/models/{name}:predict", {"inputs": columns}).json["outputs"]
    assert (by_column["pooled"], by_column["length"]) == ([[6] * 4, [4] * 4], [3, 1])
    refused = gateway.post(f"/v1/models/{name}:predict", {"instances": [{"input_ids": IDS[0]}]})
    assert refused.status == 400
    assert "'input_ids', 'attention_mask'" in refused.error


def test_inputs_by_position_are_numbered(gateway: GatewayProcess, deploy: Deploy) -> None:
    name = deploy(models.weighted(), example=(np.zeros(2), np.float64(0)), profile="1,1").name
    about = gateway.get(f"/v2/models/{name}").json
    assert [(i["name"], i["shape"]) for i in about["inputs"]] == [("input_0", [-1, 2]), ("input_1", [-1])]
    x, factor = tensor([1, 2], [1, 2], "FP64", "input_0"), tensor([3], [1], "FP64", "input_1")
    outputs = gateway.infer(name, x, factor).json["outputs"]
    assert [(o["name"], o["data"]) for o in outputs] == [("output_0", [3, 6]), ("output_1", [4, 5])]


def test_named_tensors_of_any_length_are_taken_where_there_is_no_example(
    gateway: GatewayProcess, deploy: Deploy
) -> None:
    name = deploy(models.encoder(), collate=models.pad, profile="1,1").name
    for n in (2, 5):
        ids, mask = (tensor([1] * n, [1, n], "INT64", what) for what in ("input_ids", "attention_mask"))
        outputs = {o["name"]: o["data"] for o in gateway.infer(name, ids, mask).json["outputs"]}
        assert (outputs["pooled"], outputs["length"]) == ([n] * 4, [n])


def test_named_tensors_of_any_length_are_taken_where_samples_are_collated(
    gateway: GatewayProcess, deploy: Deploy
) -> None:
    name = deploy(models.encoder(), collate=models.pad, example=tokens(0, 0, 0), profile="1,1").name
    about = gateway.get(f"/v2/models/{name}").json
    assert [(i["name"], i["datatype"], i["shape"]) for i in about["inputs"]] == [
        ("input_ids", "INT64", [-1, -1]),
        ("attention_mask", "INT64", [-1, -1]),
    ]
    ids, mask = (tensor([2, 1, 2, 1], [2, 2], "INT64", what) for what in ("input_ids", "attention_mask"))
    outputs = {o["name"]: o["data"] for o in gateway.infer(name, ids, mask).json["outputs"]}
    assert outputs["pooled"] == [5] * 8
    rows = [{"input_ids": [1] * n, "attention_mask": [1] * n} for n in (1, 4)]
    predictions = gateway.post(f"/v1/models/{name}:predict", {"instances": rows}).json["predictions"]
    assert [row["length"] for row in predictions] == [1, 4]
    refused = gateway.infer(name, ids, tensor([1] * 8, [2, 2, 2], "INT64", "attention_mask"))
    assert "the model takes [-1] for one sample, or [n, -1] for n" in refused.error
    refused = gateway.post(f"/v1/models/{name}:predict", {"instances": [rows[0] | {"input_ids": [[1]]}]})
    assert "input 'input_ids' has shape [1, 1]: the model takes [-1]" in refused.error
