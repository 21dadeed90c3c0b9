"""Asks EC2 what an instance can know about itself (instance metadata service, version 2)."""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.request
from typing import Any

#: Only the loopback of the instance's own hypervisor answers here; tests put a server of theirs in its place.
ENDPOINT = "http://169.254.169.254"
_TIMEOUT_S = 2.0
_TOKEN_TTL_S = 60


def read(path: str) -> str | None:
    """The metadata at ``path`` (below ``/latest/meta-data/``), or None if there is none; raises ``OSError``."""
    base = os.environ.get("SYMPHONY_IMDS", ENDPOINT)
    ask = urllib.request.Request(
        f"{base}/latest/api/token", method="PUT", headers={"X-aws-ec2-metadata-token-ttl-seconds": str(_TOKEN_TTL_S)}
    )
    # A proxy must never see the token.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(ask, timeout=_TIMEOUT_S) as reply:
        token = reply.read().decode()
    get = urllib.request.Request(f"{base}/latest/meta-data/{path}", headers={"X-aws-ec2-metadata-token": token})
    try:
        with opener.open(get, timeout=_TIMEOUT_S) as reply:
            return str(reply.read().decode())
    except urllib.error.HTTPError as error:
        if error.code == 404:
            return None
        raise


def must_read(path: str) -> str:
    """As ``read``; raises ``LookupError`` where there is none."""
    value = read(path)
    if value is None:
        raise LookupError(f"the instance has no metadata {path!r}")
    return value


def spot_notice() -> dict[str, Any] | None:
    """``{"action": "terminate", "time": ...}`` from two minutes before a spot instance is taken back, else None."""
    notice = read("spot/instance-action")
    return None if notice is None else json.loads(notice)
