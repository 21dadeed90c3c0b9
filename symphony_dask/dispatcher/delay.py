"""Estimates a delay that is measured over and over: what to expect, and what it nearly never exceeds."""

from __future__ import annotations

from collections import deque

#: A sample may pass twice the bound by this much, ns, so that an estimate of zero can grow.
_STEP_NS = 1_000_000

#: ``RecentDelay`` goes by so many samples at most, and by none that is older than this, ns.
_RECENT, _OLD_NS = 32, 10_000_000_000


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


class RecentDelay:
    """The last samples of a delay in their order: single ones that stray change nothing, however far they do.

    least_ns: the smallest; typical_ns: half of them are below; bound_ns: nine tenths are. All are 0 without samples.
    samples: how many there are.
    """

    def __init__(self) -> None:
        self.least_ns = self.typical_ns = self.bound_ns = self.samples = 0
        self._recent: deque[tuple[int, int]] = deque(maxlen=_RECENT)  # when, and the sample

    def add(self, sample_ns: int, now_ns: int) -> None:
        """Take in a sample; one below 0 counts as 0."""
        self._recent.append((now_ns, max(sample_ns, 0)))
        self.forget(now_ns)
        self._sort()

    def forget(self, now_ns: int) -> None:
        """Let go of old samples: no estimate outlives what it was made of."""
        recent, before = self._recent, len(self._recent)
        while recent and recent[0][0] < now_ns - _OLD_NS:
            recent.popleft()
        if len(recent) < before:
            self._sort()

    def _sort(self) -> None:
        self.samples = len(self._recent)
        by_size = sorted(sample for _, sample in self._recent) or [0]
        last = len(by_size) - 1
        self.least_ns, self.typical_ns, self.bound_ns = by_size[0], by_size[last // 2], by_size[last * 9 // 10]
