"""Serves everything but inference: metadata, health, statistics, metrics, the OpenAPI document."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Match, Route

from symphony_dask import __version__
from symphony_dask.errors import SymphonyError
from symphony_dask.gateway.formats.samples import Interface
from symphony_dask.gateway.metrics import Metrics
from symphony_dask.gateway.openapi import document
from symphony_dask.gateway.page import page
from symphony_dask.gateway.paths import INFERENCE, Call, calls_of
from symphony_dask.gateway.refusal import Refusal, later, of_error
from symphony_dask.gateway.statistics import statistic
from symphony_dask.gateway.upstream import Served, Upstream
from symphony_dask.text import MOST_NAME, brief, plain, shown

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

NAME = "symphony-dask"

EXTENSIONS = ["binary_tensor_data", "parameters", "statistics", "model_configuration", "model_repository(index)"]

#: Triton's names of datatypes in a model configuration, where they are not TYPE_ and v2's.
_CONFIG_TYPES = {"BYTES": "TYPE_STRING"}

#: The methods of what is only read.
_READ = ("GET", "HEAD")


def rest(upstream: Upstream, metrics: Metrics, draining: Callable[[], bool]) -> Starlette:
    """The application. draining: whether the gateway is about to end."""

    async def server(request: Request) -> Response:
        return _json({"name": NAME, "version": __version__, "extensions": EXTENSIONS})

    async def live(request: Request) -> Response:
        return _json({"live": True})

    async def ready(request: Request) -> Response:
        if draining():
            raise later(503, "the gateway is about to end")
        upstream.check_connected()
        if upstream.models and not any(served.slots for served in upstream.models):
            raise later(503, "no GPU serves any of the models that are deployed")
        return _json({"ready": True})

    async def of_model(request: Request) -> Response:
        """What a path below /v1/models or /v2/models asks for."""
        calls = calls_of(request.scope["raw_path"])
        read = tuple(call for call in calls if call.asks not in INFERENCE)
        if calls[0].asks in INFERENCE:
            upstream.check_connected()
            if upstream.first(read) is None:
                raise _not_offered(request.method, "POST")
        if request.method not in _READ:
            raise _not_offered(request.method, ", ".join(_READ))
        call, model = await upstream.find(read)
        return _json(await answers[call.protocol, call.asks](call, model))

    async def model_ready(call: Call, model: Served) -> dict[str, Any]:
        if not model.slots:
            raise later(503, f"no GPU serves model {shown(model.name)}")
        return {"name": model.name, "ready": True}

    async def metadata(call: Call, model: Served) -> dict[str, Any]:
        return _metadata(model, upstream)

    async def config(call: Call, model: Served) -> dict[str, Any]:
        return _config(model)

    async def versions(call: Call, model: Served) -> dict[str, Any]:
        """TensorFlow Serving's status of a model's versions, and KServe's of the model, in one."""
        rows = [model] if call.version is not None else [m for m in upstream.models if m.name == model.name]
        ready = any(m.slots for m in rows)
        return {"name": model.name, "ready": ready, "model_version_status": [_version_status(m) for m in rows]}

    async def stats_of(call: Call, model: Served) -> dict[str, Any]:
        return await _statistics([model], upstream, metrics)

    async def stats(request: Request) -> Response:
        """Of all models; and the metadata of a model of the name "stats", which has the same path."""
        found = await _statistics(upstream.models, upstream, metrics)
        model = upstream.look_up("stats")
        return _json(found if model is None else found | _metadata(model, upstream))

    answers: dict[tuple[str, str], Callable[[Call, Served], Awaitable[Any]]] = {
        ("v2", ""): metadata,
        ("v2", "ready"): model_ready,
        ("v2", "config"): config,
        ("v2", "stats"): stats_of,
        ("v1", ""): versions,
    }

    async def index(request: Request) -> Response:
        upstream.check_connected()
        rows = [
            {"name": m.name, "version": m.version, "state": "READY" if m.slots else "UNAVAILABLE", "reason": ""}
            for m in upstream.models
        ]
        return _json(rows)

    async def names(request: Request) -> Response:
        upstream.check_connected()
        return _json({"models": list(dict.fromkeys(m.name for m in upstream.models))})

    async def root(request: Request) -> Response:
        """A page for people; for all others that the gateway lives, as KServe's clients ask."""
        if "text/html" in request.headers.get("accept", ""):
            return HTMLResponse(page(upstream.models, upstream.connected))
        return _json({"status": "alive", "name": NAME, "version": __version__})

    async def openapi(request: Request) -> Response:
        return _json(document())

    async def prometheus(request: Request) -> Response:
        return Response(metrics.text(), media_type="text/plain; version=0.0.4")

    app = Starlette(
        routes=[
            Route("/", root),
            Route("/v2", server),
            Route("/v2/health/live", live),
            Route("/v2/health/ready", ready),
            Route("/v2/models/stats", stats),
            Route("/v2/repository/index", index, methods=["POST"]),
            Route("/v1/models", names),
            _OfModel("/models", of_model),
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
    app.router.redirect_slashes = False  # it would send people to the host that a request claims to be for
    return app


class _OfModel(Route):
    """Matches what ``calls_of`` can read; a router's own paths have lost which slashes were encoded."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        found = scope["type"] == "http" and calls_of(scope["raw_path"])
        return (Match.FULL, {"endpoint": self.endpoint, "path_params": {}}) if found else (Match.NONE, {})

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.app(scope, receive, send)  # whichever method it is


def _json(value: object, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """JSON in ASCII: whatever is in a text, it can be sent."""
    return Response(json.dumps(value), status, headers, media_type="application/json")


def _response(refusal: Refusal) -> Response:
    return _json({"error": refusal.text}, refusal.status, refusal.headers)


def _not_offered(method: str, offered: str) -> Refusal:
    return Refusal(405, f"method {method} is not offered here: {offered}", headers={"allow": offered})


async def _on_refusal(request: Request, error: Any) -> Response:
    return _response(error)


async def _on_http_exception(request: Request, error: Any) -> Response:
    """Of starlette's router."""
    if error.status_code == 405:
        return _response(_not_offered(request.method, ", ".join(sorted(error.headers["Allow"].split(", ")))))
    path = plain(request.scope["path"], MOST_NAME)  # not of request.url, which is made of whatever Host says
    return _response(Refusal(error.status_code, f"{path} is not offered here; see /openapi.json"))


async def _on_error(request: Request, error: Exception) -> Response:
    """Of calls to the scheduler."""
    if isinstance(error, SymphonyError):
        return _response(of_error(error))
    return _response(later(503, f"the scheduler did not answer: {brief(error)}"))


async def _on_bug(request: Request, error: Exception) -> Response:
    """What starlette then raises again, so that it is logged."""
    return _response(Refusal(500, "the gateway failed; its log says why"))


def _tensors(interface: Interface | None) -> list[dict[str, Any]]:
    """v2's metadata of the tensors of samples. -1 is the batch, and each dimension where it may have any length."""
    ports = interface.ports if interface is not None else ()
    return [{"name": p.name, "datatype": p.datatype, "shape": [-1, *p.dims]} for p in ports]


def _element_wise(tensor: dict[str, Any]) -> dict[str, Any]:
    """A text or bytes as an input has a dimension of 1 in Triton, without which perf_analyzer makes none; it is taken
    with and without.
    """
    return tensor | {"shape": [-1, 1]} if tensor["datatype"] == "BYTES" and tensor["shape"] == [-1] else tensor


def _metadata(model: Served, upstream: Upstream) -> dict[str, Any]:
    return {
        "name": model.name,
        "versions": [m.version for m in upstream.models if m.name == model.name],
        "platform": "symphony_dask",
        "inputs": [_element_wise(tensor) for tensor in _tensors(model.takes)],
        "outputs": _tensors(model.gives),
        "parameters": {"slo_ns": model.slo_ns, "max_batch_size": model.max_batch},
    }


def _config(model: Served) -> dict[str, Any]:
    def tensors(interface: Interface | None) -> list[dict[str, Any]]:
        return [
            {
                "name": p.name,
                "data_type": _CONFIG_TYPES.get(p.datatype, f"TYPE_{p.datatype}"),
                "dims": p.dims or [1],
            }
            for p in (interface.ports if interface is not None else ())
        ]

    return {
        "name": model.name,
        "platform": "symphony_dask",
        "backend": "symphony_dask",
        "max_batch_size": model.max_batch,
        "dynamic_batching": {},
        "input": tensors(model.takes),
        "output": tensors(model.gives),
    }


async def _statistics(models: Sequence[Served], upstream: Upstream, metrics: Metrics) -> dict[str, Any]:
    status = await upstream.status()
    of_versions = {(m["name"], m["version"]): m for m in status["models"].values()}
    return {"model_stats": [statistic(m, of_versions.get((m.name, m.version)), metrics) for m in models]}


def _version_status(model: Served) -> dict[str, Any]:
    """TensorFlow Serving's."""
    state = "AVAILABLE" if model.slots else "LOADING"
    return {"version": model.version, "state": state, "status": {"error_code": "OK", "error_message": ""}}
