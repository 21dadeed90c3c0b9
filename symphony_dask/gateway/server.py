"""Runs the gateway's processes: one serves in its own event loop; of several, each has a lane of its own, and all take
connections from the one socket that the first process opened and hands down.

SIGTERM drains: for ``notice_s`` the gateway serves on with its readiness at 503, so that load balancers turn away; then
it takes no more connections, and ends when what is under way is answered, after ``grace_s`` at the latest.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import gc
import json
import logging
import os
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import uvicorn
from distributed.security import Security

from symphony_dask.errors import BadInput
from symphony_dask.gateway.app import Gateway, Limits
from symphony_dask.gateway.metrics import Metrics
from symphony_dask.gateway.protocol import GatewayProtocol, sweep
from symphony_dask.gateway.routes import rest
from symphony_dask.gateway.upstream import Upstream

if TYPE_CHECKING:
    from types import FrameType

logger = logging.getLogger(__name__)

#: Connections that wait to be taken.
_BACKLOG = 2048

#: An idle connection is closed after this, s; longer than most clients keep theirs, so few requests meet a closing one.
_KEEP_ALIVE_S = 75

#: A process that ended is started again after this, s.
_RESTART_S = 1.0


@dataclass(frozen=True)
class Options:
    """What a gateway is started with; see ``symphony gateway --help``. metrics: the folder that processes share."""

    scheduler: str
    host: str = "127.0.0.1"
    port: int = 8000
    processes: int = 1
    token_file: str | None = None
    tls_cert: str | None = None
    tls_key: str | None = None
    tls_client_ca: str | None = None
    scheduler_ca_file: str | None = None
    scheduler_cert: str | None = None
    scheduler_key: str | None = None
    max_body_bytes: int = Limits.max_body_bytes
    max_concurrency: int = Limits.max_concurrency
    read_timeout_s: float = Limits.read_timeout_s
    grace_s: float = 10.0
    notice_s: float = 1.0
    metrics: str | None = None

    def limits(self) -> Limits:
        return Limits(self.max_body_bytes, self.max_concurrency, self.read_timeout_s)

    def security(self) -> Security | None:
        """Of Dask, for the way to the scheduler; None: as its configuration says."""
        if self.scheduler_ca_file is None:
            return None
        return Security(
            tls_ca_file=self.scheduler_ca_file,
            tls_client_cert=self.scheduler_cert,
            tls_client_key=self.scheduler_key,
            require_encryption=True,
        )


def read_tokens(path: str | None) -> list[bytes]:
    """The tokens in a file, one a line; lines that begin with # are none. Raises ``BadInput``."""
    if path is None:
        return []
    try:
        lines = Path(path).read_bytes().splitlines()
    except OSError as error:
        raise BadInput(f"token file {path!r} cannot be read: {error.strerror}") from None
    tokens = [line.strip() for line in lines if line.strip() and not line.startswith(b"#")]
    if not tokens:
        raise BadInput(f"token file {path!r} has no tokens: write one a line")
    return tokens


def listen(host: str, port: int) -> socket.socket:
    """A socket that takes connections; raises ``BadInput``."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(_BACKLOG)
    except OSError as error:
        raise BadInput(f"cannot listen on {host}:{port}: {error.strerror or error}") from None
    listener.set_inheritable(True)
    return listener


def run(options: Options) -> None:
    """Serve until SIGTERM or SIGINT; says on standard error where. Raises ``BadInput``."""
    read_tokens(options.token_file)
    _check_tls(options)
    listener = listen(options.host, options.port)
    scheme = "https" if options.tls_cert is not None else "http"
    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    print(f"gateway at {scheme}://{shown}:{port}, scheduler {options.scheduler}", file=sys.stderr, flush=True)
    if options.processes == 1:
        serve_here(options, listener)
        return
    with tempfile.TemporaryDirectory(prefix="symphony-gateway-") as folder:
        _Processes(dataclasses.replace(options, metrics=folder), listener).run()


def _check_tls(options: Options) -> None:
    if (options.tls_cert is None) != (options.tls_key is None):
        raise BadInput("--tls-cert and --tls-key belong together: give both or neither")
    if options.tls_client_ca is not None:
        if options.tls_cert is None:
            raise BadInput("--tls-client-ca is for HTTPS: give --tls-cert and --tls-key too")
        try:
            ssl.create_default_context(cafile=options.tls_client_ca)
        except OSError as error:
            raise BadInput(f"authority {options.tls_client_ca!r} cannot be used: {error}") from None
    if options.tls_cert is not None and options.tls_key is not None:
        try:
            ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(options.tls_cert, options.tls_key)
        except OSError as error:  # SSLError is one
            raise BadInput(
                f"certificate {options.tls_cert!r} with key {options.tls_key!r} cannot be used: {error}"
            ) from None


class _Server(uvicorn.Server):
    """uvicorn's, without its way with signals, and with a limit of ours on the time for TLS."""

    def __init__(self, config: uvicorn.Config, tls_timeout_s: float) -> None:
        super().__init__(config)
        self._tls_timeout_s = tls_timeout_s

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        config, loop = self.config, asyncio.get_running_loop()

        def connected() -> asyncio.Protocol:
            return GatewayProtocol(config=config, server_state=self.server_state, app_state={})

        limit_s = self._tls_timeout_s if config.ssl is not None else None
        self.servers = [
            await loop.create_server(
                connected, sock=listener, ssl=config.ssl, ssl_handshake_timeout=limit_s, backlog=_BACKLOG
            )
            for listener in sockets or ()
        ]
        self.started = True

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def serve_here(options: Options, listener: socket.socket, parent: int | None = None) -> None:
    """Serve in this process. parent: a descriptor at whose end the gateway ends as at SIGTERM."""
    if find_spec("uvloop") is not None:
        import uvloop

        uvloop.run(_serve(options, listener, parent))
    else:
        asyncio.run(_serve(options, listener, parent))


async def _serve(options: Options, listener: socket.socket, parent: int | None) -> None:
    loop = asyncio.get_running_loop()
    metrics = Metrics(options.metrics)
    upstream = Upstream(options.scheduler, options.security())
    gateway = Gateway(
        upstream,
        metrics,
        rest(upstream, metrics, lambda: gateway.draining),
        options.limits(),
        read_tokens(options.token_file),
    )
    server = _Server(
        uvicorn.Config(
            gateway,  # type: ignore[arg-type]
            http=GatewayProtocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=_KEEP_ALIVE_S,
            timeout_graceful_shutdown=max(1, round(options.grace_s)),
            ssl_certfile=options.tls_cert,
            ssl_keyfile=options.tls_key,
            ssl_ca_certs=options.tls_client_ca,
            ssl_cert_reqs=ssl.CERT_NONE if options.tls_client_ca is None else ssl.CERT_REQUIRED,
        ),
        options.read_timeout_s,
    )

    def drain() -> None:
        if gateway.draining:  # asked again: at once
            server.should_exit = server.force_exit = True
            return
        gateway.draining = True
        loop.call_later(options.notice_s, setattr, server, "should_exit", True)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, drain)
    if parent is not None:

        def orphaned() -> None:
            loop.remove_reader(parent)
            if not gateway.draining:
                drain()

        loop.add_reader(parent, orphaned)
    background = [
        loop.create_task(upstream.run()),
        loop.create_task(sweep(server.server_state.connections, options.read_timeout_s)),
        loop.create_task(_each_second(options, gateway)),
    ]
    try:
        await server.serve([listener])
    finally:
        for task in background:
            task.cancel()
        await asyncio.gather(*background, return_exceptions=True)


async def _each_second(options: Options, gateway: Gateway) -> None:
    """Leave the counts for the other processes, follow the token file, and mind the garbage collector."""
    changed = _changed(options.token_file)
    frozen = False
    while True:
        gateway.each_second()
        if not frozen and gateway.upstream.connected:
            # What is here now stays; a full collection that walks all of it holds up every request for tens of ms.
            frozen = True
            gc.collect()
            gc.freeze()
        await asyncio.sleep(1.0)
        if (now := _changed(options.token_file)) != changed:
            changed = now
            try:
                gateway.tokens = read_tokens(options.token_file)
            except BadInput as error:  # the old ones hold
                logger.warning("%s", error)


def _changed(path: str | None) -> int:
    try:
        return os.stat(path).st_mtime_ns if path is not None else 0
    except OSError:
        return -1


class _Processes:
    """Starts the serving processes, starts those again that end, and passes SIGTERM on."""

    def __init__(self, options: Options, listener: socket.socket) -> None:
        self._options = options
        self._listener = listener
        self._children: list[subprocess.Popen[bytes]] = []
        self._ending = False

    def run(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._end)
        while not self._ending:
            self._children = [child for child in self._children if child.poll() is None]
            while len(self._children) < self._options.processes and not self._ending:
                self._children.append(self._start())
            time.sleep(_RESTART_S)  # or until a signal
        limit_s = self._options.notice_s + self._options.grace_s + 10
        for child in self._children:
            try:
                child.wait(limit_s)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()

    def _end(self, number: int, frame: FrameType | None) -> None:
        self._ending = True
        for child in self._children:
            child.send_signal(signal.SIGTERM)

    def _start(self) -> subprocess.Popen[bytes]:
        """A process that gets its options, and the end of this one, by its standard input."""
        fd = self._listener.fileno()
        child = subprocess.Popen(
            [sys.executable, "-m", "symphony_dask.gateway.server", str(fd)],
            stdin=subprocess.PIPE,
            pass_fds=[fd],
            start_new_session=True,  # a Ctrl-C reaches this process, which passes it on
        )
        assert child.stdin is not None
        child.stdin.write(json.dumps(dataclasses.asdict(self._options)).encode() + b"\n")
        child.stdin.flush()
        return child


def _child() -> None:
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    with open(sys.stdin.fileno(), "rb", buffering=0, closefd=False) as given:
        options = Options(**json.loads(given.readline()))
    serve_here(options, socket.socket(fileno=int(sys.argv[1])), parent=sys.stdin.fileno())


if __name__ == "__main__":
    _child()
