"""Records launches that controllers of a fleet are about to make, where all of them look: in the scheduler.

A cloud lists a new instance only after a while, and a controller can die before it hears of the one it asked for. So
each launch is written here first, and counts until the cloud must have listed it (``autoscale.fleet.reconcile``).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

#: Entries older than this are forgotten, s; no controller waits for one so long.
KEEP_S = 3600.0


@dataclass
class Ledger:
    """The launches of one fleet. ``version`` grows with each one that is written, so that of two controllers that saw
    the same state only one goes ahead.

    report: what a controller last said of the fleet, for people.
    """

    clock: Callable[[], float] = time.monotonic
    version: int = 0
    report: dict[str, Any] | None = None
    _entries: dict[tuple[int, int], tuple[float, dict[str, Any]]] = field(default_factory=dict)
    _reported_s: float = 0.0

    def intend(self, version: int, slot: int, generation: int, launch: dict[str, Any]) -> int | None:
        """Write down a launch, or one again; the new version, or None if ``version`` is not the present one."""
        if version != self.version:
            return None
        self._entries[slot, generation] = (self.clock(), launch)
        self.version += 1
        return self.version

    def forget(self, slot: int, generation: int) -> None:
        """Nothing came of a launch."""
        self._entries.pop((slot, generation), None)

    def entries(self) -> list[dict[str, Any]]:
        """Each as {slot, generation, age_s, launch}, oldest first."""
        now = self.clock()
        self._entries = {k: e for k, e in self._entries.items() if now - e[0] < KEEP_S}
        return [
            {"slot": slot, "generation": generation, "age_s": now - since, "launch": launch}
            for (slot, generation), (since, launch) in sorted(self._entries.items(), key=lambda item: item[1][0])
        ]

    def set_report(self, report: dict[str, Any]) -> None:
        self.report, self._reported_s = report, self.clock()

    def last_report(self) -> dict[str, Any] | None:
        """What was last reported, with ``age_s``."""
        return None if self.report is None else {**self.report, "age_s": self.clock() - self._reported_s}
