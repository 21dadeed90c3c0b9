"""A deadline for everything that is asked of models within a block of code, however many calls it takes.

>>> with symphony_dask.deadline("80ms"):                              # doctest: +SKIP
...     boxes = detector(image)
...     labels = [f.result() for f in classifier.map(crops(image, boxes))]   # has what is left of the 80 ms
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from symphony_dask.lane import now_ns
from symphony_dask.units import parse_duration_ns

_ends_ns: ContextVar[int | None] = ContextVar("symphony_deadline", default=None)


@contextmanager
def deadline(within: str | float) -> Iterator[None]:
    """Requests that are submitted in this context must be answered ``within`` so long, "80ms" or seconds, from now.

    A request has the shorter of its own SLO and what is left; when nothing is left it is not sent, and its future
    raises ``DeadlineExceeded`` at once. In a block within another the earlier deadline holds. Tasks of asyncio inherit
    it; other threads do not, nor do Dask tasks (``client.submit(model, x)``), which have the annotation ``slo``.

    Raises ``BadInput``.
    """
    ends_ns = now_ns() + parse_duration_ns(within, "deadline")
    outer_ns = _ends_ns.get()
    token = _ends_ns.set(ends_ns if outer_ns is None else min(outer_ns, ends_ns))
    try:
        yield
    finally:
        _ends_ns.reset(token)


def remaining_ns() -> int | None:
    """What is left of the deadline in this context, below zero when it is over; None without one."""
    ends_ns = _ends_ns.get()
    return None if ends_ns is None else ends_ns - now_ns()
