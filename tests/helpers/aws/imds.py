"""The metadata service of an instance that does not exist."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Instance:
    """What the metadata are; ``values`` may change at any time. refused: how many requests came without a token."""

    def __init__(self) -> None:
        self.values = {"instance-id": "i-0abc", "local-ipv4": "127.0.0.1"}
        self.refused = 0
        self.url = ""


@contextmanager
def instance() -> Iterator[Instance]:
    """Serve the metadata of an instance, by IMDSv2 only: without a token of the service's own, the answer is 401."""
    metadata = Instance()

    class Handler(BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            if self.path == "/latest/api/token" and self.headers.get("X-aws-ec2-metadata-token-ttl-seconds"):
                self._answer(200, "the-token")
            else:
                self._answer(400, "")

        def do_GET(self) -> None:
            path = self.path.removeprefix("/latest/meta-data/")
            if self.headers.get("X-aws-ec2-metadata-token") != "the-token":
                metadata.refused += 1
                self._answer(401, "")
            elif path in metadata.values:
                self._answer(200, metadata.values[path])
            else:
                self._answer(404, "")

        def _answer(self, code: int, text: str) -> None:
            self.send_response(code)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    metadata.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield metadata
    finally:
        server.shutdown()
        server.server_close()
