"""Everything but inference: metadata, health, statistics, metrics, the OpenAPI document; by starlette's router."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from symphony_dask import __version__
from symphony_dask.errors import SymphonyError
from symphony_dask.gateway.metrics import Metrics
from symphony_dask.gateway.openapi import document
from symphony_dask.gateway.refusal import Refusal, later, of_error
from symphony_dask.gateway.samples import Interface
from symphony_dask.gateway.upstream import Served, Upstream
from symphony_dask.trace.schema import Outcome

EXTENSIONS = ["binary_tensor_data", "parameters", "statistics", "model_configuration", "model_repository(index)"]

#: Triton's names of datatypes in a model configuration, where they are not TYPE_ and v2's.
_CONFIG_TYPES = {"BYTES": "TYPE_STRING"}

Handler = Callable[[Request], Awaitable[Response]]


def rest(upstream: Upstream, metrics: Metrics, draining: Callable[[], bool]) -> Starlette:
    """The application. draining: whether the gateway is about to end."""

    async def served(request: Request) -> Served:
        name, version = request.path_params["model"], request.path_params.get("version")
        found = await upstream.find(name, version)
        if found is None:
            which = f"version {version!r} of model {name!r}" if version else f"model {name!r}"
            raise Refusal(404, f"{which} is not deployed")
        return found

    async def server(request: Request) -> Response:
        return JSONResponse({"name": "symphony-dask", "version": __version__, "extensions": EXTENSIONS})

    async def live(request: Request) -> Response:
        return JSONResponse({"live": True})

    async def ready(request: Request) -> Response:
        if draining():
            raise later(503, "the gateway is about to end")
        upstream.check_connected()
        return JSONResponse({"ready": True})

    async def model_ready(request: Request) -> Response:
        model = await served(request)
        if not model.slots:
            raise later(503, f"no GPU serves model {model.name!r}")
        return JSONResponse({"name": model.name, "ready": True})

    async def model(request: Request) -> Response:
        return JSONResponse(_metadata(await served(request), upstream))

    async def config(request: Request) -> Response:
        return JSONResponse(_config(await served(request)))

    async def stats(request: Request) -> Response:
        models = [await served(request)] if "model" in request.path_params else upstream.models
        status = await upstream.status()
        return JSONResponse({"model_stats": [_statistics(m, status["models"].get(m.name), metrics) for m in models]})

    async def index(request: Request) -> Response:
        upstream.check_connected()
        rows = [
            {"name": m.name, "version": m.version, "state": "READY" if m.slots else "UNAVAILABLE", "reason": ""}
            for m in upstream.models
        ]
        return JSONResponse(rows)

    async def versions(request: Request) -> Response:
        model = await served(request)
        rows = [m for m in upstream.models if m.name == model.name]
        if "version" in request.path_params:
            rows = [model]
        return JSONResponse({"model_version_status": [_version_status(m) for m in rows]})

    async def openapi(request: Request) -> Response:
        return JSONResponse(document())

    async def prometheus(request: Request) -> Response:
        return Response(metrics.text(), media_type="text/plain; version=0.0.4")

    def of_model(protocol: str, rest: str, handler: Handler) -> list[Route]:
        stem = f"/{protocol}/models/{{model}}"
        return [Route(stem + rest, handler), Route(f"{stem}/versions/{{version}}{rest}", handler)]

    return Starlette(
        routes=[
            Route("/v2", server),
            Route("/v2/health/live", live),
            Route("/v2/health/ready", ready),
            Route("/v2/models/stats", stats),
            *of_model("v2", "/ready", model_ready),
            *of_model("v2", "/config", config),
            *of_model("v2", "/stats", stats),
            *of_model("v2", "", model),
            Route("/v2/repository/index", index, methods=["POST"]),
            *of_model("v1", "", versions),
            Route("/openapi.json", openapi),
            Route("/metrics", prometheus),
        ],
        exception_handlers={
            Refusal: _on_refusal,
            HTTPException: _on_http_exception,
            SymphonyError: _on_error,
            OSError: _on_error,
            Exception: _on_bug,
        },
    )


def _response(refusal: Refusal) -> Response:
    return JSONResponse({"error": refusal.text}, refusal.status, headers=refusal.headers)


async def _on_refusal(request: Request, error: Any) -> Response:
    return _response(error)


async def _on_http_exception(request: Request, error: Any) -> Response:
    text = {404: f"{request.url.path} is not offered here; see /openapi.json", 405: f"method {request.method} is not"}
    shown = text.get(error.status_code, error.detail)
    return JSONResponse({"error": shown}, error.status_code, headers=error.headers)


async def _on_error(request: Request, error: Any) -> Response:
    """Of calls to the scheduler."""
    if isinstance(error, SymphonyError):
        return _response(of_error(error))
    return _response(later(503, f"the scheduler did not answer: {error or type(error).__name__}"))


async def _on_bug(request: Request, error: Any) -> Response:
    """What starlette then raises again, so that it is logged."""
    return _response(Refusal(500, "the gateway failed; its log says why"))


def _tensors(interface: Interface | None) -> list[dict[str, Any]]:
    """v2's metadata of the tensors of samples: -1 is the batch."""
    ports = interface.ports if interface is not None else ()
    return [{"name": p.name, "datatype": p.datatype, "shape": [-1, *p.shape]} for p in ports]


def _metadata(model: Served, upstream: Upstream) -> dict[str, Any]:
    return {
        "name": model.name,
        "versions": [m.version for m in upstream.models if m.name == model.name],
        "platform": "symphony_dask",
        "inputs": _tensors(model.takes),
        "outputs": _tensors(model.gives),
        "parameters": {"slo_ns": model.slo_ns, "max_batch_size": model.max_batch},
    }


def _config(model: Served) -> dict[str, Any]:
    def tensors(interface: Interface | None) -> list[dict[str, Any]]:
        return [
            {
                "name": p.name,
                "data_type": _CONFIG_TYPES.get(p.datatype, f"TYPE_{p.datatype}"),
                "dims": list(p.shape) or [1],
            }
            for p in (interface.ports if interface is not None else ())
        ]

    return {
        "name": model.name,
        "platform": "symphony_dask",
        "backend": "symphony_dask",
        "max_batch_size": model.max_batch,
        "input": tensors(model.takes),
        "output": tensors(model.gives),
    }


def _statistics(model: Served, status: dict[str, Any] | None, metrics: Metrics) -> dict[str, Any]:
    """Executions and inferences as the scheduler counts them, successes and failures as this gateway does."""
    outcomes = status["outcomes"] if status is not None else {}
    inferences = sum(outcomes.get(o.name.lower(), 0) for o in (Outcome.OK, Outcome.LATE))
    return {
        "name": model.name,
        "version": model.version,
        "inference_count": inferences,
        "execution_count": status["batches"] if status is not None else 0,
        "inference_stats": metrics.of_model(model.name),
    }


def _version_status(model: Served) -> dict[str, Any]:
    """TensorFlow Serving's."""
    state = "AVAILABLE" if model.slots else "LOADING"
    return {"version": model.version, "state": state, "status": {"error_code": "OK", "error_message": ""}}
