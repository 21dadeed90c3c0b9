"""Asks whether the scheduler that a command is about answers, within seconds, and says in one line what is the matter.

Dask's client tries for half a minute, waits for ever on a port that takes connections and says nothing, and then shows
where in its code it stood. A command asks first (``check``).
"""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from symphony_dask.errors import BadInput, NotServing

if TYPE_CHECKING:
    from symphony_dask.client.serving import Serving

#: A scheduler has so long to answer, s; with the imports before, a command then ends within five.
ANSWER_S = 2.5

#: And so long to start Symphony, whose engine it may have to compile, s.
START_S = 120.0

_PRELOAD = "start it with dask scheduler --preload symphony_dask"


def check(address: str, *, security: Any = None, needs_plugin: bool = True) -> None:
    """Have a well formed ``address`` answer as a Dask scheduler, within ``ANSWER_S``; raises ``NotServing``.

    security: of Dask; by default its configuration says. needs_plugin: whether Symphony must be there already.
    """
    from distributed.security import Security

    try:
        arguments = (security or Security()).get_connection_args("client")
    except (OSError, ValueError, TypeError) as error:
        text = f"the TLS settings for the scheduler at {address} cannot be used ({_reason(error)})"
        raise BadInput(f"{text}: mend distributed.comm.tls in Dask's configuration") from None
    if address.startswith(("tls://", "wss://")) and arguments.get("ssl_context") is None:
        text = f"the scheduler at {address} speaks TLS, and no certificates are set here"
        raise BadInput(f"{text}: set distributed.comm.tls.ca-file, client.cert and client.key in Dask's configuration")
    seen = _Seen()
    try:
        resolve(urlsplit(address).hostname or "")
        there = asyncio.run(_asked(address, arguments, seen, needs_plugin))
    except Exception as error:
        raise NotServing(_trouble(address, error, seen)) from error
    if needs_plugin and not there:
        raise NotServing(f"the scheduler at {address} does not run Symphony: {_PRELOAD}, or deploy a model first")


@contextmanager
def connected(address: str, *, install: bool = False) -> Iterator[Serving]:
    """A ``Serving`` on the scheduler at ``address``; raises ``NotServing`` if it does not answer.

    install: whether Symphony may be installed there, by who deploys; who only looks changes nothing.
    """
    from distributed import Client

    from symphony_dask.client.serving import Serving

    check(address, needs_plugin=not install)
    with Client(address, set_as_default=False) as client, Serving(client) as serving:
        yield serving


class _Seen:
    """How far the talk came: whether the port took the connection, and whether Dask answered."""

    port = False
    dask = False


def resolve(host: str) -> None:
    """Raise what looking up ``host`` raises, or ``TimeoutError``; a lookup cannot be ended, so it is left behind."""
    failed: list[OSError] = []

    def look_up() -> None:
        try:
            socket.getaddrinfo(host, None)
        except OSError as error:
            failed.append(error)

    thread = threading.Thread(target=look_up, daemon=True)
    thread.start()
    thread.join(ANSWER_S)
    if failed:
        raise failed[0]
    if thread.is_alive():
        raise TimeoutError


async def _asked(address: str, arguments: dict[str, Any], seen: _Seen, wait: bool) -> Any:
    """Whether the scheduler runs Symphony; wait: until it does, where it is still starting it."""
    from distributed.core import send_recv

    async with asyncio.timeout(ANSWER_S):
        comm = await _comm(address, arguments, seen)
    try:
        async with asyncio.timeout(ANSWER_S):
            there = await send_recv(comm, op="get_metadata", keys=["symphony"], default=None)
            if not there and (kind := (await send_recv(comm, op="identity"))["type"]) != "Scheduler":
                raise TypeError(f"it is a Dask {str(kind).lower():.40}")  # a worker answers anything
        if there or not wait:
            return there
        async with asyncio.timeout(START_S):
            return await send_recv(comm, op="symphony_info")
    finally:
        comm.abort()


async def _comm(address: str, arguments: dict[str, Any], seen: _Seen) -> Any:
    from distributed.comm.core import connect

    parts = urlsplit(address)
    if parts.scheme != "ucx":
        # Without this, a port that is closed is tried again until the time is over.
        _, writer = await asyncio.open_connection(parts.hostname, parts.port)
        writer.close()
        seen.port = True
    comm = await connect(address, timeout=ANSWER_S, **arguments)
    seen.dask = True
    return comm


def _trouble(address: str, error: Exception, seen: _Seen) -> str:
    """What is the matter, and what helps; ``error`` is what the talk ended with."""
    parts = urlsplit(address)
    if seen.dask and isinstance(error, TimeoutError):
        return f"the scheduler at {address} took the connection, and then did not answer: is it overloaded?"
    if seen.dask:
        return f"what answers at {address} is no Dask scheduler ({_reason(error)}): give the scheduler's address"
    if seen.port:
        text = f"something listens at {address}, but does not answer as a Dask scheduler over {parts.scheme} does"
        other = "tls" if parts.scheme == "tcp" else "tcp"
        why = f" within {ANSWER_S:g} s" if isinstance(error, TimeoutError) else f" ({_reason(error)})"
        return f"{text}{why}: is that the scheduler's port, is it {other}://, and is the scheduler not overloaded?"
    if any(isinstance(c, socket.gaierror) for c in _causes(error)):
        return f"the host {parts.hostname!r} of the scheduler {address} is not known here: check its name"
    if isinstance(error, TimeoutError):
        return f"no answer from {address} within {ANSWER_S:g} s: check host and port, and that no firewall is between"
    return f"no scheduler can be reached at {address} ({_reason(error)}): start it there, or give another address"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _reason(error: BaseException) -> str:
    """Few words: those of the operating system or of TLS, where it was these."""
    for cause in _causes(error):
        if isinstance(cause, ssl.SSLError) and cause.reason:
            return str(cause.reason).replace("_", " ").lower()
        if isinstance(cause, OSError) and cause.errno is not None:
            return os.strerror(cause.errno).lower()
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
