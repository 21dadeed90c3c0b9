"""Sets one deadline for all requests within a block of code, however many calls it takes.

>>> with symphony_dask.deadline("80ms"):                              # doctest: +SKIP
...     boxes = detector(image)
...     labels = [f.result() for f in classifier.map(crops(image, boxes))]   # has what is left of the 80 ms
"""

from __future__ import annotations

from contextvars import ContextVar

from symphony_dask.clock import now_ns
from symphony_dask.units import parse_duration_ns

_ends_ns: ContextVar[int | None] = ContextVar("symphony_deadline", default=None)


class Until:
    """``deadline`` by its end, on ``clock.now_ns``.

    A class, since a generator's context manager writes to what is raised within it, which not every exception allows.
    """

    def __init__(self, ends_ns: int) -> None:
        self._at_ns = ends_ns

    def __enter__(self) -> None:
        outer_ns = _ends_ns.get()
        self._token = _ends_ns.set(self._at_ns if outer_ns is None else min(outer_ns, self._at_ns))

    def __exit__(self, *raised: object) -> None:
        _ends_ns.reset(self._token)


def deadline(within: str) -> Until:
    """Requests that are submitted in this context must be answered ``within`` so long, "80ms" or "2s", from now.

    A request has the shorter of its own SLO and what is left; when nothing is left it is not sent, and its future
    raises ``DeadlineExceeded`` at once. In a block within another the earlier deadline holds. Tasks of asyncio inherit
    it; other threads do not, nor do Dask tasks (``client.submit(model, x)``), which have the annotation ``slo``.

    Raises ``BadInput``.
    """
    return Until(now_ns() + parse_duration_ns(within, "deadline"))


def remaining_ns() -> int | None:
    """What is left of the deadline in this context, below zero when it is over; None without one."""
    ends_ns = _ends_ns.get()
    return None if ends_ns is None else ends_ns - now_ns()
