"""Says how long the peer of a lane connection may take before it is cut off."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ConnectionTimeouts:
    """Seconds for TLS and for HELLO, and for one frame after that."""

    hello_s: float = 10.0
    frame_s: float = 30.0
