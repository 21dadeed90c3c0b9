"""Describes l(b), the time that one GPU class needs for a batch of b requests of one model."""

from __future__ import annotations

import operator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

#: The longest l(b), ns: nine years.
LONGEST_NS = 1 << 58

#: Batches beyond this size are never formed unless a profile or a deployment allows more.
DEFAULT_MAX_BATCH = 128


@dataclass(frozen=True)
class LatencyProfile:
    """l(b) = alpha*b + beta, or a measured table of it.

    alpha_ms: time that each request adds, in ms, at least 0.
    beta_ms: time of a batch whatever its size, in ms, at least 0.
    table: measured (batch size, ms) pairs in rising order of size; where it is given it is used, linearly interpolated
        and made non-decreasing, and alpha*b + beta only extends it past its last size.
    max_batch: the largest batch that may be formed.
    """

    alpha_ms: float
    beta_ms: float
    max_batch: int = DEFAULT_MAX_BATCH
    table: tuple[tuple[int, float], ...] = field(default=())

    def __post_init__(self) -> None:
        if not (0 <= self.alpha_ms < 1e9 and 0 <= self.beta_ms < 1e9):
            raise ValueError(f"profile alpha={self.alpha_ms}, beta={self.beta_ms}: both must be finite ms, at least 0")
        if not 1 <= self.max_batch <= 4096:
            raise ValueError(f"profile max_batch={self.max_batch}: must lie between 1 and 4096")
        sizes = [b for b, _ in self.table]
        if sizes != sorted(set(sizes)) or any(b < 1 for b in sizes):
            raise ValueError(f"profile table has batch sizes {sizes!s:.80}: they must be positive and rising")
        if not all(0 <= ms < 1e12 for _, ms in self.table):
            raise ValueError("profile table has a time that is none: give finite ms, at least 0")
        last = self.table[-1] if self.table else (0, self.beta_ms)
        longest_ms = max(last[1], last[1] + self.alpha_ms * (self.max_batch + 1 - last[0]))
        if longest_ms * 1e6 >= LONGEST_NS:
            raise ValueError(
                f"profile alpha={self.alpha_ms}, beta={self.beta_ms}: a batch of {self.max_batch} takes years"
            )

    @classmethod
    def parse(cls, text: str, max_batch: int = DEFAULT_MAX_BATCH) -> LatencyProfile:
        """The profile written "alpha,beta" in ms, as in "1.053,5.072"; raises ``ValueError``."""
        try:
            alpha, beta = (float(part) for part in text.split(","))
        except ValueError:
            raise ValueError(
                f'profile {text!r} cannot be read: write "alpha,beta" in ms, such as "1.053,5.072"'
            ) from None
        return cls(alpha, beta, max_batch)

    def latency_ns(self) -> npt.NDArray[np.int64]:
        """l(b) in ns for b = 0 .. max_batch + 1; entry 0 is 0, the rest never falls. Shape (max_batch + 2,)."""
        sizes = np.arange(self.max_batch + 2)
        ms = float(self.alpha_ms) * sizes + self.beta_ms
        if self.table:
            b, t = np.array(self.table, dtype=float).T
            inside = sizes <= b[-1]
            ms[inside] = np.interp(sizes[inside], b, t)
            ms[~inside] = t[-1] + self.alpha_ms * (sizes[~inside] - b[-1])
            ms = np.maximum.accumulate(ms)
        ns = np.rint(ms * 1e6).astype(np.int64)
        ns[0] = 0
        return ns

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON and msgpack; ``LatencyProfile.from_dict`` reads it back."""
        return {
            "alpha_ms": self.alpha_ms,
            "beta_ms": self.beta_ms,
            "max_batch": self.max_batch,
            "table": [list(row) for row in self.table],
        }

    @classmethod
    def from_dict(cls, d: dict[str, Any]) -> LatencyProfile:
        """What ``to_dict`` gave; raises ``ValueError`` for anything else."""
        try:
            table = tuple((int(b), float(t)) for b, t in d["table"])
            return cls(d["alpha_ms"], d["beta_ms"], operator.index(d["max_batch"]), table)
        except (TypeError, KeyError, OverflowError) as error:
            raise ValueError(f"profile {d!s:.80} cannot be read ({error!s:.80})") from None
