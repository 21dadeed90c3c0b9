"""Writes the OpenAPI document of the gateway, at /openapi.json. A test fuzzes the gateway with what it says."""

from __future__ import annotations

from typing import Any

from symphony_dask import __version__
from symphony_dask.engine.queue_limits import MOST_PRIORITY
from symphony_dask.gateway.formats.samples import MAX_SAMPLES
from symphony_dask.gateway.formats.tensors import DATATYPES, MAX_DIMS

Schema = dict[str, Any]

_INFERRED = {
    400: "The request cannot be understood; the text names the tensor or parameter and what is wrong with it.",
    401: "No bearer token, or a wrong one; where the gateway was started with --token-file.",
    404: "No model, or no version, of that name is deployed.",
    408: "The body did not come in time.",
    413: "The body is larger than --max-body, as it came or decompressed.",
    415: "Content-Type or Content-Encoding is not offered.",
    429: "The model's queue is full, or too much is under way in the gateway.",
    500: "The model raised; the text ends with its traceback. Or its answer cannot be sent as tensors.",
    502: "The connection to the scheduler broke before the answer; the request may or may not have run.",
    503: "No GPU serves the model, its worker was lost, or the scheduler cannot be reached.",
    504: "The request could not be answered within its SLO, and was dropped.",
}

_RETRIED = (429, 502, 503)


def document() -> Schema:
    """The document, as plain values."""
    paths: dict[str, Any] = {
        "/": {"get": _root()},
        "/v2": {"get": _get("serverMetadata", "Name, version and extensions of the server", "ServerMetadata")},
        "/v2/health/live": {"get": _get("serverLive", "Whether the gateway runs", "Live", token=False)},
        "/v2/health/ready": {
            "get": _get("serverReady", "Not while it ends, or has no scheduler", "Ready", 503, token=False)
        },
        "/v2/models/stats": {"get": _get("statistics", "Statistics of every model", "Statistics", 503)},
        "/v2/repository/index": {"post": _index()},
        "/v1/models": {"get": _get("modelNames", "Names of the models that are deployed", "ModelNames", 503)},
        "/metrics": {"get": _text("metrics", "Prometheus metrics of all processes of the gateway")},
        "/openapi.json": {"get": _get("openapi", "This document", "Anything")},
    }
    for version in (False, True):
        stem = "/models/{model}" + ("/versions/{version}" if version else "")
        suffix = "Version" if version else ""
        of_model = {"parameters": _names(version)}
        reads = {
            "": ("modelMetadata", "Inputs and outputs; a dimension of -1 is the batch", "ModelMetadata"),
            "/ready": ("modelReady", "Whether a GPU serves the model", "ModelReady"),
            "/config": ("modelConfig", "The model as Triton's clients expect it", "Anything"),
            "/stats": ("modelStatistics", "Statistics of the model", "Statistics"),
        }
        for rest, (name, summary, schema) in reads.items():
            paths[f"/v2{stem}{rest}"] = of_model | {"get": _get(name + suffix, summary, schema, 404, 503)}
        paths[f"/v2{stem}/infer"] = of_model | {"post": _infer("infer" + suffix)}
        summary = "Versions that are deployed, as TensorFlow Serving has it, and whether a GPU serves, as KServe"
        paths[f"/v1{stem}"] = of_model | {"get": _get("modelVersions" + suffix, summary, "ModelVersions", 404, 503)}
        paths[f"/v1{stem}:predict"] = of_model | {"post": _predict("predict" + suffix)}
    return {
        "openapi": "3.0.3",
        "info": {
            "title": "symphony-dask gateway",
            "version": __version__,
            "description": "The Open Inference Protocol v2 over HTTP, and TensorFlow Serving's predict.",
        },
        "paths": paths,
        "components": {
            "schemas": _schemas(),
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"token": []}],
    }


def _names(version: bool) -> list[Schema]:
    names = ["model", "version"] if version else ["model"]
    schema = {"type": "string", "minLength": 1, "pattern": "^[^/]+$"}
    text = "Percent-encoded, slashes too."
    return [{"name": n, "in": "path", "required": True, "description": text, "schema": schema} for n in names]


def _error(text: str, again: bool) -> Schema:
    content = {"application/json": {"schema": _ref("Error")}}
    found: Schema = {"description": text, "content": content}
    if again:
        header = {"description": "Seconds until another try makes sense.", "schema": {"type": "string"}}
        found["headers"] = {"Retry-After": header}
    return found


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _get(name: str, summary: str, schema: str, *statuses: int, token: bool = True) -> Schema:
    errors = {str(s): _error(_INFERRED[s], s in _RETRIED) for s in ((401,) if token else ()) + statuses}
    answer = {"description": "OK", "content": {"application/json": {"schema": _ref(schema)}}}
    return {"operationId": name, "summary": summary, "responses": {"200": answer, **errors}}


def _text(name: str, summary: str) -> Schema:
    answer = {"description": "OK", "content": {"text/plain": {"schema": {"type": "string"}}}}
    return {"operationId": name, "summary": summary, "responses": {"200": answer, "401": _error(_INFERRED[401], False)}}


def _root() -> Schema:
    found = _get("root", "A page for people; as JSON, that the gateway lives", "Alive")
    found["responses"]["200"]["content"]["text/html"] = {"schema": {"type": "string"}}
    return found


def _index() -> Schema:
    body = {"content": {"application/json": {"schema": {"type": "object"}}}}
    return _get("repositoryIndex", "Models that are deployed", "RepositoryIndex", 503) | {"requestBody": body}


def _infer(name: str) -> Schema:
    summary = "Infer: JSON, or JSON and binary data after it"
    text = (
        "How many bytes of the body are JSON; the elements of inputs with a binary_data_size follow. 0: the body is "
        "the data of the only input, one sample. In the answer, the same of its outputs."
    )
    header = {
        "name": "Inference-Header-Content-Length",
        "in": "header",
        "required": False,
        "description": text,
        "schema": {"type": "integer", "minimum": 0},
    }
    octets = {"schema": {"type": "string", "format": "binary"}}
    body = {
        "required": True,
        "content": {"application/json": {"schema": _ref("InferRequest")}, "application/octet-stream": octets},
    }
    answer = {
        "description": "The outputs",
        "headers": {"Inference-Header-Content-Length": {"description": text, "schema": {"type": "string"}}},
        "content": {"application/json": {"schema": _ref("InferResponse")}, "application/octet-stream": octets},
    }
    return _posted(name, summary, body, answer) | {"parameters": [header]}


def _predict(name: str) -> Schema:
    body = {"required": True, "content": {"application/json": {"schema": _ref("PredictRequest")}}}
    answer = {"description": "The answers", "content": {"application/json": {"schema": _ref("PredictResponse")}}}
    return _posted(name, "Infer as TensorFlow Serving's REST API has it", body, answer)


def _posted(name: str, summary: str, body: Schema, answer: Schema) -> Schema:
    errors = {str(status): _error(text, status in _RETRIED) for status, text in _INFERRED.items()}
    return {"operationId": name, "summary": summary, "requestBody": body, "responses": {"200": answer, **errors}}


def _schemas() -> dict[str, Schema]:
    text: Schema = {"type": "string"}
    whole: Schema = {"type": "integer"}
    shape = {"type": "array", "items": {"type": "integer", "minimum": 0}, "maxItems": MAX_DIMS}
    parameters = {"type": "object", "additionalProperties": True}
    duration = {"oneOf": [{"type": "string", "example": "25ms"}, {"type": "number", "description": "Seconds."}]}
    terms: Schema = {
        "type": "object",
        "properties": {
            "slo": {**duration, "description": "How soon this request must be answered, instead of the model's SLO."},
            "timeout": {
                "oneOf": [text, whole],
                "description": "The same where there is no slo; a number is microseconds, as of Triton.",
            },
            "priority": {
                "type": "integer",
                "minimum": 0,
                "maximum": MOST_PRIORITY,
                "description": "Higher survives overload longer.",
            },
            "binary_data_output": {"type": "boolean", "description": "All outputs as binary data."},
            "content_type": {"type": "string", "enum": ["np", "str"], "description": "As MLServer's clients say."},
        },
        "additionalProperties": False,
    }
    of_predict = {name: terms["properties"][name] for name in ("slo", "timeout", "priority")}
    tensor = {
        "name": {"type": "string", "minLength": 1},
        "datatype": {"type": "string", "enum": list(DATATYPES)},
        "shape": shape,
    }
    metadata = {"name": text, "datatype": text, "shape": {"type": "array", "items": whole}}
    wanted = {"name": {"type": "string", "minLength": 1}, "parameters": parameters}
    rows = {"type": "array", "items": {}, "minItems": 1, "maxItems": MAX_SAMPLES}
    duration_of = _object(count=whole, ns=whole)
    computed = {f"compute_{part}": duration_of for part in ("input", "infer", "output")}
    counted = dict.fromkeys(("success", "fail", "queue", "cache_hit", "cache_miss"), duration_of)
    by_size = {"type": "array", "items": _object(batch_size=whole, **computed)}
    return {
        "Anything": {},
        "Error": _object(error=text),
        "Alive": _object(status=text, name=text, version=text),
        "ModelNames": _object(models={"type": "array", "items": text}),
        "ModelVersions": _object(
            name=text,
            ready={"type": "boolean"},
            model_version_status={"type": "array", "items": _object(version=text, state=text, status={})},
        ),
        "Live": _object(live={"type": "boolean"}),
        "Ready": _object(ready={"type": "boolean"}),
        "ServerMetadata": _object(name=text, version=text, extensions={"type": "array", "items": text}),
        "ModelReady": _object(name=text, ready={"type": "boolean"}),
        "ModelMetadata": _object(
            name=text,
            versions={"type": "array", "items": text},
            platform=text,
            inputs={"type": "array", "items": _object(**metadata)},
            outputs={"type": "array", "items": _object(**metadata)},
            parameters=_object(slo_ns=whole, max_batch_size=whole),
        ),
        "RepositoryIndex": {"type": "array", "items": _object(name=text, version=text, state=text, reason=text)},
        "Statistics": _object(
            model_stats={
                "type": "array",
                "items": _object(
                    name=text,
                    version=text,
                    last_inference=whole,
                    inference_count=whole,
                    execution_count=whole,
                    inference_stats=_object(**counted, **computed),
                    batch_stats=by_size,
                ),
            }
        ),
        "InferRequest": {
            "type": "object",
            "required": ["inputs"],
            "properties": {
                "id": text,
                "inputs": {
                    "type": "array",
                    "minItems": 1,
                    "items": {
                        "type": "object",
                        "required": ["name", "datatype", "shape"],
                        "properties": {**tensor, "data": {"type": "array", "items": {}}, "parameters": parameters},
                    },
                },
                "outputs": {"type": "array", "items": {"type": "object", "required": ["name"], "properties": wanted}},
                "parameters": terms,
            },
        },
        "InferResponse": {
            "type": "object",
            "required": ["model_name", "model_version", "outputs"],
            "properties": {
                "model_name": text,
                "model_version": text,
                "id": text,
                "outputs": {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "required": ["name", "datatype", "shape"],
                        "properties": {**tensor, "data": {"type": "array", "items": {}}, "parameters": parameters},
                    },
                },
            },
        },
        "PredictRequest": {
            "type": "object",
            "properties": {
                "signature_name": {"type": "string", "enum": ["serving_default"]},
                "instances": rows,
                "inputs": {"oneOf": [rows, {"type": "object"}]},
                "parameters": {**terms, "properties": of_predict},
            },
            "oneOf": [{"required": ["instances"]}, {"required": ["inputs"]}],
        },
        "PredictResponse": {
            "type": "object",
            "properties": {"predictions": {"type": "array", "items": {}}, "outputs": {}},
        },
    }


def _object(**properties: Schema) -> Schema:
    return {"type": "object", "required": list(properties), "properties": properties}
