"""Reads the ``symphony:`` section of Dask's configuration."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import dask.config
import yaml
from dask.utils import parse_bytes
from distributed.comm.addressing import get_address_host

from symphony_dask.errors import BadInput
from symphony_dask.timeouts import ConnectionTimeouts
from symphony_dask.units import NS_PER_S, parse_duration_ns

if TYPE_CHECKING:
    from distributed.core import Server

_FILE = Path(__file__).with_name("symphony.yaml")


def load() -> None:
    """Make the defaults known to Dask, and put a commented copy beside its own configuration files."""
    dask.config.ensure_file(source=str(_FILE))
    dask.config.update_defaults(yaml.safe_load(_FILE.read_text()))


def listen_host(server: Server) -> str:
    """Where a Dask scheduler or worker listens; all interfaces of its address family if it is not reached over TCP."""
    for listener in server.listeners:
        protocol, _, _ = listener.listen_address.partition("://")
        if protocol in ("tcp", "tls", "ws", "wss") and (host := get_address_host(listener.listen_address)):
            return str(host)
    return "::" if ":" in get_address_host(server.address) else "0.0.0.0"  # noqa: S104 - as Dask does


def memory_bytes(setting: str) -> int | None:
    """The bytes that a setting names, "2GiB"; None for no limit. Raises ``BadInput``."""
    value = dask.config.get(setting, None)
    return None if value is None else parse_memory(value, f"setting {setting}")


def parse_memory(value: Any, what: str) -> int:
    """Bytes in ``value``: a number, or a string with a unit ("2GiB", "500 MB"); raises ``BadInput``."""
    try:
        found = parse_bytes(value) if isinstance(value, str) else int(value)
    except (TypeError, ValueError):
        found = -1
    if found < 0 or isinstance(value, bool):
        raise BadInput(f'{what} is {value!r}: give bytes, or a number with a unit, as in "2GiB"')
    return found


def ports(setting: str) -> range:
    """The ports that a setting names, "8790" or "8790:8799" (both included), 0 for any; raises ``BadInput``."""
    value = dask.config.get(setting)
    first, _, last = str(value).partition(":")
    try:
        found = range(int(first), int(last or first) + 1)
    except ValueError:
        found = range(0)
    if not found or found[0] < 0 or found[-1] > 65_535:
        raise BadInput(f"setting {setting} is {value!r}: give a port, or a range of ports as in 8790:8799")
    return found


def connection_timeouts() -> ConnectionTimeouts:
    """Of lane connections that say nothing, or drip; raises ``BadInput``."""
    names = ("symphony.lane.hello-timeout", "symphony.lane.frame-timeout")
    return ConnectionTimeouts(
        *(parse_duration_ns(dask.config.get(name), f"setting {name}") / NS_PER_S for name in names)
    )
