"""Payloads of the codec, bodies of HTTP requests, and HTTP itself, mutated."""

from __future__ import annotations

import asyncio
import json
import random
from typing import Any

import numpy as np
import uvicorn
from uvicorn.server import ServerState

from symphony_dask.errors import BadInput
from symphony_dask.gateway.formats.samples import Interface, interface_of, outputs_of, sample_of_raw, samples_of
from symphony_dask.gateway.formats.v1 import read_predict
from symphony_dask.gateway.formats.v2 import read_header_length, read_infer, write_infer
from symphony_dask.gateway.protocol import MAX_HEAD_BYTES, GatewayProtocol
from symphony_dask.gateway.refusal import Refusal
from symphony_dask.wire import array_codec, batch_codec, codec
from tests.fuzz.mutation import ODD, fields, mutated
from tests.fuzz.wire import Wire

_SAMPLES: list[Any] = [
    b"bytes",
    "text",
    None,
    1.5,
    2**40,
    np.arange(6, dtype=np.float32).reshape(2, 3),
    np.zeros((0, 3), np.int8),
    np.float64(2.5),
    np.array(["a", "bcd"]),
    np.array([b"a", b"bcd"]),
    np.array(["2026-01-01"], "M8[D]"),
    {"a": np.ones(2), "b": [1, 2, ("x", np.int8(1))]},
    [1, [2, [3, {"k": b"v"}]]],
    (np.zeros(1), "s", None),
]


class Payloads:
    """What workers decode."""

    name = "payloads"

    async def start(self) -> None:
        self._corpus = [codec.encode(sample) for sample in _SAMPLES]
        self._read = 0

    def step(self, by: random.Random) -> bytes:
        data = mutated(by.choice(self._corpus), by, self._corpus)
        for read in (codec.decode, codec.parts, codec.form, codec.describe):
            try:
                read(data)
                self._read += 1
            except BadInput:
                pass
        array_codec.signature(data)
        batch_codec.stack(data * 2, np.array([len(data)] * 2))
        return data

    async def settle(self) -> None:
        pass

    async def end(self) -> None:
        assert self._read


class Bodies:
    """Bodies of v2 and predict, for models of every kind, read and answered."""

    name = "bodies"

    async def start(self) -> None:
        forms: list[Any] = [None]
        for sample in (*_SAMPLES[:6], {"x": np.zeros(2, np.float32), "n": 1}, [np.zeros(2), np.zeros(3)], True):
            forms.append(codec.form(codec.encode(sample)))
        self._interfaces = [interface_of(form, "input") for form in forms]
        self._json: list[dict[str, Any]] = [
            {"inputs": [{"name": "input", "shape": [1, 2, 3], "datatype": "FP32", "data": [[[1, 2, 3], [4, 5, 6]]]}]},
            {"inputs": [{"name": "a", "shape": [2], "datatype": "BYTES", "data": ["x", "y"]}], "id": "7"},
            {
                "inputs": [{"name": "b", "shape": [4], "datatype": "UINT8", "parameters": {"binary_data_size": 4}}],
                "outputs": [{"name": "output", "parameters": {"binary_data": True}}],
                "parameters": {"slo": "1s", "priority": 3, "timeout": 5},
            },
            {"instances": [{"x": [1, 2], "n": 3}], "parameters": {"slo": 1.5}},
            {"instances": [[1.5, 2], [3, 4]], "signature_name": "serving_default"},
            {"inputs": {"x": [[1, 2]], "n": [3]}},
            {"instances": [{"b64": "eHg="}]},
        ]
        self._served = 0

    def step(self, by: random.Random) -> bytes:
        given = by.choice(self._json)
        if by.random() < 0.6:
            given = _changed(given, by, 4)
        try:
            text = json.dumps(given, default=str).encode()
        except RecursionError:
            text = b"{}"
        body = text + bytes(4) if by.random() < 0.4 else text
        if by.random() < 0.5:
            body = mutated(body, by, (b'{"inputs":', b"[[[[[[[[", b"NaN", b"1e999", b"-0", b"\\ud800", bytes(4)))
        length = by.choice((None, str(len(text)).encode(), b"0", b"99", b"-1", b"\xb2"))
        self._serve(body, length, by.choice(self._interfaces))
        return body

    def _serve(self, body: bytes, length: bytes | None, interface: Interface) -> None:
        try:
            request = read_infer(body, read_header_length(length, len(body)))
            if request.raw is not None:
                payloads, batched = [sample_of_raw(interface, request.raw)], True
            else:
                payloads, batched = samples_of(interface, request.inputs)
            answers = [memoryview(payload) for payload in payloads]
            names = [name for name, _ in request.outputs] if request.outputs is not None else None
            write_infer("m", "1", request, outputs_of(answers, batched, names))
            self._served += 1
        except (Refusal, BadInput):
            pass
        try:
            payloads, *_ = read_predict(body, interface)
            for payload in payloads:
                codec.form(payload)
            self._served += 1
        except (Refusal, BadInput):
            pass

    async def settle(self) -> None:
        pass

    async def end(self) -> None:
        assert self._served


def _changed(given: Any, by: random.Random, depth: int) -> Any:
    """JSON with a value somewhere in it replaced."""
    if depth and isinstance(given, dict) and given and by.random() < 0.8:
        key = by.choice(list(given))
        return {**given, key: _changed(given[key], by, depth - 1)}
    if depth and isinstance(given, list) and given and by.random() < 0.7:
        out = list(given)
        at = by.randrange(len(out))
        out[at] = _changed(out[at], by, depth - 1)
        return out
    if isinstance(given, list):
        return [entry for entry in fields(given, by) if not isinstance(entry, bytes)]
    return by.choice((*(odd for odd in ODD if not isinstance(odd, bytes)), 10**400, [[1], [1, 2]], {"b64": "="}))


_POST = b"POST /v2/models/m/infer HTTP/1.1\r\nHost: x\r\n"

#: Requests, most of them sound.
REQUESTS = (
    b"GET /v2 HTTP/1.1\r\nHost: x\r\n\r\n",
    _POST + b"Content-Length: 4\r\n\r\nabcd",
    _POST + b"Transfer-Encoding: chunked\r\n\r\n4\r\nabcd\r\n0\r\n\r\n",
    _POST + b"Expect: 100-continue\r\nContent-Length: 1\r\n\r\nx",
    _POST + b'Content-Length: 74\r\n\r\n{"inputs":[{"name":"x","shape":[1,2],"datatype":"FP32","data":[[1,2]]}]}  ',
    b"GET /%00%ff?x=%zz HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"CONNECT x:1 HTTP/1.1\r\nHost: x\r\n\r\n",
    b"\r\n\r\n",
)


def request(by: random.Random) -> bytes:
    """One to three requests with something changed."""
    data = b"".join(by.choice(REQUESTS) for _ in range(by.randrange(1, 4)))
    return mutated(data, by, (*REQUESTS, b"x: y\r\n" * 40, b"9" * 30, b"\r\n ", b"\n\n"))


class Http:
    """Connections to the gateway, before its application."""

    name = "http"

    async def start(self) -> None:
        self._served = 0
        app: Any = self._app
        self._config = uvicorn.Config(
            app, interface="asgi3", http=GatewayProtocol, ws="none", lifespan="off", log_config=None
        )
        self._config.load()
        self._state = ServerState()

    async def _app(self, scope: Any, receive: Any, send: Any) -> None:
        self._served += 1
        while (await receive()).get("more_body"):
            pass
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})

    def step(self, by: random.Random) -> bytes:
        data = request(by)
        protocol = GatewayProtocol(config=self._config, server_state=self._state, app_state={})
        wire = Wire(protocol)
        at = 0
        while at < len(data) and not wire.is_closing():
            n = by.choice((1, 7, len(data)))
            protocol.data_received(data[at : at + n])
            at += n
        assert protocol._head_bytes <= MAX_HEAD_BYTES + 100_000
        wire.close()
        return data

    async def settle(self) -> None:
        async with asyncio.timeout(10):
            while self._state.connections or self._state.tasks:  # noqa: ASYNC110
                await asyncio.sleep(0)

    async def end(self) -> None:
        assert self._served
