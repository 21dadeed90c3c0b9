"""Rings one wall-clock timer in an event loop, finer than the loop's own.

``loop.call_at`` waits in epoll, whose timeout is whole milliseconds, rounded up: 0.5 ms late on average, as much as a
batch window is wide. A timerfd is a file descriptor that becomes readable at an absolute time in ns.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
from collections.abc import Callable
from typing import Any

from symphony_dask.units import NS_PER_S

_CLOCK_MONOTONIC = 1
_ABSOLUTE = 1


class _Timerspec(ctypes.Structure):
    """struct itimerspec: interval, then the time; 64-bit Linux."""

    _fields_ = (
        ("interval_s", ctypes.c_long),
        ("interval_ns", ctypes.c_long),
        ("at_s", ctypes.c_long),
        ("at_ns", ctypes.c_long),
    )


def _timerfd() -> tuple[Any, int]:
    """libc and a new timerfd; raises ``OSError`` or ``AttributeError`` where there is none."""
    libc = ctypes.CDLL(None, use_errno=True)
    fd = libc.timerfd_create(_CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
    if fd < 0:
        raise OSError(ctypes.get_errno(), "timerfd_create")
    return libc, fd


class Timer:
    """Calls ``callback()`` once at the time last set.

    Times are ns on ``time.monotonic_ns``. Where the system or the loop has no timerfd, ``loop.call_at`` does it.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, callback: Callable[[], None]) -> None:
        self._loop = loop
        self._callback = callback
        self._handle: asyncio.TimerHandle | None = None
        self._fd = -1
        #: The time set, None when none is.
        self.at_ns: int | None = None
        try:
            self._libc, self._fd = _timerfd()
            loop.add_reader(self._fd, self._readable)
        except (OSError, AttributeError, NotImplementedError):
            self.close()

    def set(self, at_ns: int) -> None:
        """Call back at ``at_ns``, instead of at any time set before."""
        self.at_ns = at_ns
        if self._fd >= 0:
            spec = _Timerspec(0, 0, *divmod(max(at_ns, 1), NS_PER_S))
            self._libc.timerfd_settime(self._fd, _ABSOLUTE, ctypes.byref(spec), None)
        else:
            self._cancel_handle()
            self._handle = self._loop.call_at(at_ns / NS_PER_S, self._fire)

    def clear(self) -> None:
        """Do not call back."""
        self.at_ns = None  # a timerfd may still become readable, and nobody will care
        self._cancel_handle()

    def close(self) -> None:
        self.clear()
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1

    def _readable(self) -> None:
        try:
            os.read(self._fd, 8)
        except BlockingIOError:  # set again since it became readable
            return
        self._fire()

    def _fire(self) -> None:
        self._handle = None
        if self.at_ns is not None:
            self.at_ns = None
            self._callback()

    def _cancel_handle(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
