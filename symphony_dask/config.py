"""The ``symphony:`` section of Dask's configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dask.config
import yaml
from distributed.comm.addressing import get_address_host

from symphony_dask.errors import BadInput

_FILE = Path(__file__).with_name("symphony.yaml")


def load() -> None:
    """Make the defaults known to Dask, and put a commented copy beside its own configuration files."""
    dask.config.ensure_file(source=str(_FILE))
    dask.config.update_defaults(yaml.safe_load(_FILE.read_text()))


def listen_host(server: Any) -> str:
    """Where a Dask scheduler or worker listens; all interfaces of its address family if it is not reached over TCP."""
    for listener in server.listeners:
        protocol, _, _ = listener.listen_address.partition("://")
        if protocol in ("tcp", "tls", "ws", "wss") and (host := get_address_host(listener.listen_address)):
            return str(host)
    return "::" if ":" in get_address_host(server.address) else "0.0.0.0"


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
