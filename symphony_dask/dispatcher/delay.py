"""Estimates a delay that is measured over and over: what to expect, and what it nearly never exceeds."""

from __future__ import annotations

#: A sample may pass twice the bound by this much, ns, so that an estimate of zero can grow.
_STEP_NS = 1_000_000


class Latency:
    """A smoothed delay and how far it strays, as TCP keeps its round-trip time (RFC 6298).

    first_ns: what to expect before the first samples; 0 takes the first sample for it.
    """

    def __init__(self, first_ns: int = 0) -> None:
        self.mean_ns = float(first_ns)
        self.deviation_ns = first_ns / 2
        self.samples = 0

    def add(self, sample_ns: int) -> None:
        """Take in a sample. One stall counts as twice what was expected, or it would close every window for long."""
        sample = min(max(float(sample_ns), 0.0), 2.0 * self.bound_ns() + _STEP_NS)
        if self.mean_ns == 0.0:
            self.mean_ns, self.deviation_ns = sample, sample / 2
        else:
            self.deviation_ns += (abs(sample - self.mean_ns) - self.deviation_ns) / 4
            self.mean_ns += (sample - self.mean_ns) / 8
        self.samples += 1

    def relax(self) -> None:
        """Nothing was heard for a while: grow more hopeful, since what is thought too slow to try is never measured."""
        self.deviation_ns *= 0.9
        self.mean_ns *= 0.99

    def halve(self) -> None:
        """Requests are refused for what is expected, and nothing else could show whether it still holds."""
        self.deviation_ns /= 2
        self.mean_ns /= 2

    def bound_ns(self) -> int:
        """Mean plus four deviations, as TCP's time-out: what nearly all samples stay below."""
        return int(self.mean_ns) + self.spread_ns()

    def spread_ns(self) -> int:
        """The four deviations of ``bound_ns``."""
        return int(4.0 * self.deviation_ns)
