"""Answers inference requests over HTTP: the ASGI application. Inference has a path of its own, before starlette's
router, which serves everything else.

An inference request is read whole, its samples are submitted to the lane, and their answers are awaited in the same
event loop.
"""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from symphony_dask.client.model import MAX_SAMPLE_BYTES
from symphony_dask.clock import now_ns
from symphony_dask.dispatcher.delay import Latency
from symphony_dask.errors import BadInput, RequestError, Undeployed, UnknownModel
from symphony_dask.gateway.bodies import COMPRESS_BYTES, aside, coding_of, compress, decompress, too_large
from symphony_dask.gateway.formats import v1
from symphony_dask.gateway.formats.parameters import Terms
from symphony_dask.gateway.formats.samples import outputs_of, sample_of_raw, samples_of
from symphony_dask.gateway.formats.v2 import InferRequest, read_header_length, read_infer, write_infer
from symphony_dask.gateway.metrics import Metrics
from symphony_dask.gateway.paths import Call, inference_calls
from symphony_dask.gateway.refusal import Refusal, bad, later, of_error
from symphony_dask.gateway.upstream import Reply, Served, Upstream
from symphony_dask.units import NS_PER_S

logger = logging.getLogger(__name__)

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]

#: All bodies that are being read or served together may be so many times as large as one.
_BODIES = 16

_JSON = (b"content-type", b"application/json")
_BINARY = (b"content-type", b"application/octet-stream")

#: What is answered without a token.
_OPEN_PATHS = frozenset({"/v2/health/live", "/v2/health/ready"})


@dataclass
class Limits:
    """max_body_bytes: of one request, decompressed; max_concurrency: requests under way; read_timeout_s: for a body."""

    max_body_bytes: int = 64 << 20
    max_concurrency: int = 8192
    read_timeout_s: float = 30.0


class _Heads(NamedTuple):
    """The headers that matter to an inference request."""

    content_type: bytes = b""
    content_length: bytes = b""
    header_length: bytes | None = None
    content_encoding: bytes = b""
    accept_encoding: bytes = b""


_NO_HEADS = _Heads()

_HEADS = {
    b"content-type": "content_type",
    b"content-length": "content_length",
    b"inference-header-content-length": "header_length",
    b"content-encoding": "content_encoding",
    b"accept-encoding": "accept_encoding",
}


@dataclass(slots=True)
class _Exchange:
    """One inference request under way. Times on ``clock.now_ns``; slo_ns counts from ``started_ns``."""

    started_ns: int
    connection: Any
    heads: _Heads = _NO_HEADS
    slo_ns: int = 0
    asked: str = ""  #: by what the request itself set slo_ns
    answered_ns: int = 0
    samples: int = 0


class Gateway:
    """rest: the application that serves what is no inference."""

    def __init__(
        self,
        upstream: Upstream,
        metrics: Metrics,
        rest: Any,
        limits: Limits | None = None,
        tokens: Sequence[bytes] = (),
    ) -> None:
        self.upstream = upstream
        self.metrics = metrics
        self.limits = limits or Limits()
        #: Bearer tokens of which one must come with each request; none: everybody may ask.
        self.tokens = tokens
        self.draining = False
        self._rest = rest
        self._body_bytes = 0
        self._way_out = Latency()
        self._heard = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise RuntimeError(f"ASGI scope {scope['type']!r} is not served")
        scope["path"] = scope["path"].rstrip("/") or "/"
        if self.tokens and scope["path"] not in _OPEN_PATHS and not self._authorized(scope["headers"]):
            headers = {"www-authenticate": "Bearer"}
            await _refuse(
                send, Refusal(401, "give one of the gateway's tokens: Authorization: Bearer ...", headers=headers)
            )
            return
        if scope["method"] == "POST" and (calls := inference_calls(scope["raw_path"])):
            await self._serve(calls, scope, receive, send)
        else:
            await self._rest(scope, receive, send)

    def _authorized(self, headers: list[tuple[bytes, bytes]]) -> bool:
        given = next((value for name, value in headers if name == b"authorization"), b"")
        scheme, _, token = given.partition(b" ")
        if scheme.lower() != b"bearer":
            return False
        # All are compared, so that the time says nothing about them.
        return sum(secrets.compare_digest(token.strip(), known) for known in self.tokens) > 0

    async def _serve(self, calls: Sequence[Call], scope: Scope, receive: Receive, send: Send) -> None:
        """One inference request from head to answer, and its place in the metrics."""
        exchange = _Exchange(now_ns(), scope.get("symphony.connection"))
        metrics = self.metrics
        metrics.in_flight += 1
        connection = exchange.connection
        refusal: Refusal | None = None
        status, outcome, model = 200, "ok", ""
        try:
            if metrics.in_flight > self.limits.max_concurrency:
                raise later(429, f"{self.limits.max_concurrency} requests are under way here, which is the most")
            exchange.heads = _Heads(**{_HEADS[name]: value for name, value in scope["headers"] if name in _HEADS})
            body = await self._body(exchange.heads, receive)
            try:
                call = calls[0]
                served = self.upstream.look_up(call.model, call.version)
                if served is None:
                    call, served = await self.upstream.find(calls)
                model = served.name
                serve = self._infer if call.protocol == "v2" else self._predict
                pieces, json_bytes = await serve(served, body, exchange)
            finally:
                self._body_bytes -= len(body)
            await self._answer(send, exchange.heads, pieces, json_bytes)
            now = now_ns()
            self._way_out.add(now - exchange.answered_ns)
            if now - exchange.started_ns > exchange.slo_ns:
                outcome = "late"
        except Refusal as error:
            refusal = error
        except (RequestError, BadInput, UnknownModel) as error:
            refusal = of_error(error, exchange.asked)
        except asyncio.CancelledError:
            if connection is not None and connection.disconnected:
                status, outcome = 499, "cancelled"
            elif self.draining:
                refusal = later(503, "the gateway has ended, and could not wait for the answer")
            else:
                raise
        except Exception:
            logger.exception("a request to %r failed in the gateway", scope["path"])
            refusal = Refusal(500, "the gateway failed; its log says why", outcome="failed")
        finally:
            metrics.in_flight -= 1
            if connection is not None:
                connection.replies = []
            if refusal is not None:
                status, outcome = refusal.status, refusal.outcome
            seconds = (now_ns() - exchange.started_ns) / NS_PER_S
            metrics.count(model, status, outcome, seconds, exchange.samples)
        if refusal is not None:
            await _refuse(send, refusal)

    def each_second(self) -> None:
        """What is to be done now and then."""
        if self._heard == self._way_out.samples:
            self._way_out.relax()
        self._heard = self._way_out.samples
        self.metrics.connected = self.upstream.connected
        self.metrics.leave()

    # Bodies

    async def _body(self, heads: _Heads, receive: Receive) -> bytes:
        """The request's body, decompressed; raises ``Refusal``. Its bytes count until they are given back."""
        most = self.limits.max_body_bytes
        if heads.content_length.isdigit() and int(heads.content_length) > most:
            raise too_large(most)
        message = await receive()
        body = message.get("body", b"")
        if message.get("more_body"):
            body = await self._longer_body(body, receive)
        elif message["type"] == "http.disconnect":
            raise asyncio.CancelledError
        if len(body) > most:
            raise too_large(most)
        encoding = heads.content_encoding.lower()
        if encoding not in (b"", b"identity"):
            if encoding not in (b"gzip", b"deflate"):
                shown = encoding[:40].decode("latin-1")
                raise Refusal(415, f"Content-Encoding {shown!r} is not offered: gzip, deflate or identity")
            body = await aside(len(body), decompress, body, most)
        if self._body_bytes + len(body) > _BODIES * most:
            raise self._full()
        self._body_bytes += len(body)
        return body

    async def _longer_body(self, first: bytes, receive: Receive) -> bytes:
        """A body that did not come at once; raises ``Refusal``. What has come of it counts while it comes."""
        most = self.limits.max_body_bytes
        parts = [first]
        size = len(first)
        self._body_bytes += size
        try:
            async with asyncio.timeout(self.limits.read_timeout_s):
                more = True
                while more:
                    if size > most:
                        raise too_large(most)
                    if self._body_bytes > _BODIES * most:
                        raise self._full()
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise asyncio.CancelledError
                    part = message.get("body", b"")
                    parts.append(part)
                    size += len(part)
                    self._body_bytes += len(part)
                    more = message.get("more_body", False)
        except TimeoutError:
            text = f"the body did not come within {self.limits.read_timeout_s:g} s"
            raise Refusal(408, text, headers={"connection": "close"}) from None
        finally:
            self._body_bytes -= size
        return await aside(size, b"".join, parts)

    def _full(self) -> Refusal:
        return later(429, f"{self._body_bytes} bytes of requests are under way here, which is the most")

    # Serving

    async def _infer(self, served: Served, body: bytes, exchange: _Exchange) -> tuple[list[Any], int | None]:
        """v2: the pieces of the answer's body, and how many bytes of it are JSON if not all."""
        heads = exchange.heads
        _check_type(heads, (b"application/json", b"application/octet-stream"))
        request, payloads, batched = await aside(len(body), _read_infer, served, body, heads)
        answers = await self._ask(served, payloads, request.terms, exchange)
        return await aside(sum(map(len, answers)), _write_infer, served, request, answers, batched)

    async def _predict(self, served: Served, body: bytes, exchange: _Exchange) -> tuple[list[Any], int | None]:
        """v1; as ``_infer``."""
        _check_type(exchange.heads, (b"application/json",))
        payloads, terms, in_rows = await aside(len(body), v1.read_predict, body, served.takes)
        answers = await self._ask(served, payloads, terms, exchange)
        return [await aside(sum(map(len, answers)), _write_predict, answers, in_rows)], None

    async def _ask(
        self, served: Served, payloads: list[bytes], terms: Terms, exchange: _Exchange
    ) -> Sequence[memoryview]:
        """The answers to the samples; raises what the first failed one did."""
        if (largest := max(map(len, payloads))) > MAX_SAMPLE_BYTES:
            raise bad(f"a sample of {largest} bytes: the most is {MAX_SAMPLE_BYTES}")
        exchange.samples = len(payloads)
        exchange.slo_ns, exchange.asked = terms.slo_ns or served.slo_ns, terms.asked
        try:
            return await self._ask_once(served, payloads, terms.priority, exchange)
        except (UnknownModel, Undeployed):
            # Replaced by another deployment of its name, perhaps: that answers as well.
            await self.upstream.refresh()
            again = self.upstream.look_up(served.name)
            if again is None:
                raise Refusal(404, f"model {served.name!r} is not deployed") from None
            if again.model_id == served.model_id or again.takes != served.takes:
                raise
            return await self._ask_once(again, payloads, terms.priority, exchange)

    async def _ask_once(
        self, served: Served, payloads: list[bytes], priority: int, exchange: _Exchange
    ) -> list[memoryview]:
        slo_ns = self._left_ns(exchange)
        submit = self.upstream.submit
        replies = [submit(served, payload, slo_ns, priority) for payload in payloads]
        if exchange.connection is not None:
            exchange.connection.replies = replies
        try:
            answers = [await reply for reply in replies]
        except BaseException:
            _abandon(replies)
            raise
        exchange.answered_ns = max(reply.answered_ns for reply in replies)
        return answers

    def _left_ns(self, exchange: _Exchange) -> int:
        """What is left of the SLO for the scheduler: without the time that the request was here already, and the way
        that its answer has to the client yet. The way that the request had before its head was read is taken to be as
        long. A quarter of the SLO at most goes by estimates.
        """
        ways_ns = self._way_out.bound_ns() + int(self._way_out.mean_ns)
        gone_ns = now_ns() - exchange.started_ns
        return max(exchange.slo_ns - gone_ns - min(ways_ns, exchange.slo_ns // 4), 1000)

    async def _answer(self, send: Send, heads: _Heads, pieces: list[Any], json_bytes: int | None) -> None:
        body = pieces[0] if len(pieces) == 1 else await aside(sum(map(len, pieces)), b"".join, pieces)
        headers = [_JSON if json_bytes is None else _BINARY]
        if json_bytes is not None:
            headers.append((b"inference-header-content-length", b"%d" % json_bytes))
        if heads.accept_encoding and len(body) >= COMPRESS_BYTES and (coding := coding_of(heads.accept_encoding)):
            body = await aside(len(body), compress, body, coding)
            headers.append((b"content-encoding", coding))
        headers.append((b"content-length", b"%d" % len(body)))
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})


def _read_infer(served: Served, body: bytes, heads: _Heads) -> tuple[InferRequest, list[bytes], bool]:
    """A v2 request, its samples as payloads, and whether its tensors have a batch dimension."""
    request = read_infer(body, read_header_length(heads.header_length, len(body)))
    if request.raw is not None:
        return request, [sample_of_raw(served.takes, request.raw)], True
    return request, *samples_of(served.takes, request.inputs)


def _write_infer(
    served: Served, request: InferRequest, answers: Sequence[memoryview], batched: bool
) -> tuple[list[Any], int | None]:
    return write_infer(served.name, served.version, request, _outputs(answers, batched, request))


def _write_predict(answers: Sequence[memoryview], in_rows: bool) -> bytes:
    return v1.write_predict([outputs_of([answer], batched=False) for answer in answers], in_rows)


def _outputs(answers: Sequence[memoryview], batched: bool, request: InferRequest) -> Any:
    names = [name for name, _ in request.outputs] if request.outputs is not None else None
    return outputs_of(answers, batched, names)


def _abandon(replies: list[Reply]) -> None:
    """Take what is still queued out, and have nobody told of errors that nobody waits for."""
    for reply in replies:
        if not reply.cancel() and not reply.cancelled():
            reply.exception()


def _check_type(heads: _Heads, offered: tuple[bytes, ...]) -> None:
    given = heads.content_type.split(b";", 1)[0].strip().lower()
    if given and given not in offered:
        shown = given[:60].decode("latin-1")
        raise Refusal(415, f"Content-Type {shown!r} is not offered: {' or '.join(t.decode() for t in offered)}")


async def _refuse(send: Send, refusal: Refusal) -> None:
    """Answer with the refusal's status and text."""
    body = json.dumps({"error": refusal.text}).encode()
    headers = [_JSON, (b"content-length", b"%d" % len(body))]
    headers += [(name.encode(), value.encode()) for name, value in refusal.headers.items()]
    await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
