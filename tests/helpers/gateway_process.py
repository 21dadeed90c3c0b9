"""A gateway process for a test, and plain HTTP to it."""

from __future__ import annotations

import http.client
import json
import os
import signal
import ssl
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from tests.helpers.cluster import wait_until

_ROOT = Path(__file__).parents[2]


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> str:
        return str(self.json["error"])


class GatewayProcess:
    """``dask symphony gateway`` for the cluster at ``scheduler``, ended with the context. url: where it listens.

    context: by which it is asked over HTTPS. settings: environment variables. errors: what it wrote, once it has ended.
    """

    def __init__(
        self,
        scheduler: str,
        *arguments: str,
        ready: bool = True,
        context: ssl.SSLContext | None = None,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        self._scheduler = scheduler
        self._arguments = arguments
        self._ready = ready
        self._context = context
        self._settings = settings or {}
        self.url = self.errors = ""
        self._lines: list[str] = []

    def __enter__(self) -> GatewayProcess:
        command = [sys.executable, "-m", "dask", "symphony", "gateway", "--scheduler", self._scheduler, "--port", "0"]
        self.process = subprocess.Popen(
            [*command, *self._arguments],
            stderr=subprocess.PIPE,
            text=True,
            cwd=_ROOT,
            env={**os.environ, "PYTHONPATH": str(_ROOT), **self._settings},
        )
        assert self.process.stderr is not None
        line = self.process.stderr.readline()
        if not line.startswith("gateway at "):
            raise RuntimeError(f"the gateway did not start: {line}{self.process.stderr.read()}")
        self.url = line.split()[2].rstrip(",")
        # A pipe that nobody reads holds up who writes into it.
        self._reads = threading.Thread(target=self._lines.extend, args=(self.process.stderr,), daemon=True)
        self._reads.start()
        if self._ready:
            wait_until(lambda: self.get("/v2/health/ready").status == 200, "the gateway to be ready", 60)
        return self

    def __exit__(self, *exc: object) -> None:
        self.process.terminate()
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._reads.join(20)
        self.errors = "".join(self._lines)
        if self.process.stderr is not None:
            self.process.stderr.close()

    @property
    def host(self) -> str:
        """host:port."""
        return urlsplit(self.url).netloc

    def get(self, path: str, **headers: str) -> Answer:
        return self.ask("GET", path, None, headers)

    def post(self, path: str, body: Any, headers: dict[str, str] | None = None) -> Answer:
        """POST JSON, or bytes as they are."""
        given = dict(headers or {})
        if not isinstance(body, bytes):
            body = json.dumps(body).encode()
            given.setdefault("Content-Type", "application/json")
        return self.ask("POST", path, body, given)

    def infer(self, model: str, *inputs: dict[str, Any], **rest: Any) -> Answer:
        """POST v2 JSON."""
        return self.post(f"/v2/models/{model}/infer", {"inputs": list(inputs), **rest})

    def ask(self, method: str, path: str, body: bytes | None, headers: dict[str, str]) -> Answer:
        if self._context is None:
            connection = http.client.HTTPConnection(self.host, timeout=30)
        else:
            connection = http.client.HTTPSConnection(self.host, timeout=30, context=self._context)
        try:
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
        finally:
            connection.close()


def tensor(data: Any, shape: list[int], datatype: str = "FP32", name: str = "input") -> dict[str, Any]:
    return {"name": name, "shape": shape, "datatype": datatype, "data": data}
