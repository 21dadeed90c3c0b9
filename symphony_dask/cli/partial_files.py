"""Writes files that are whole or not there when a command is interrupted, and says what is partial.

Rule 1: Ctrl-C and SIGTERM raise in the main thread (``interruptible``), so that what is under way is put in order.
Rule 2: a file is written beside its place, and renamed when it is whole (``whole_file``).
Rule 3: who writes something that is not one file says what is left of it (``report_if_interrupted``), and has marked it
        as partial before: a folder's run.json says so from its beginning (``trace.reader.partial``).
"""

from __future__ import annotations

import os
import signal
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from symphony_dask.errors import BadInput

#: What shells give for the two signals.
_EXIT_CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}


class Terminated(KeyboardInterrupt):
    """SIGTERM came; what stops for Ctrl-C stops for it."""


@contextmanager
def interruptible() -> Iterator[None]:
    """Within, SIGTERM raises ``Terminated`` in the main thread, unless something else was to be done at it."""
    ours = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    if not ours:
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise Terminated

    signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGTERM) is stop:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def interruption(error: BaseException | None) -> KeyboardInterrupt | None:
    """The interruption that ``error`` is, or that it came of."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error


def farewell(interrupted: KeyboardInterrupt) -> tuple[str, int]:
    """One line that says what is left, and the exit status."""
    number = signal.SIGTERM if isinstance(interrupted, Terminated) else signal.SIGINT
    left = "; ".join(dict.fromkeys(getattr(interrupted, "__notes__", [])))
    return f"interrupted by {number.name}: {left or 'nothing was written'}", _EXIT_CODES[number]


@contextmanager
def report_if_interrupted(left: Callable[[], str]) -> Iterator[None]:
    """Have an interruption within carry ``left()``: what is left then, as "FOLDER holds 7 requests and is partial"."""
    try:
        yield
    except KeyboardInterrupt as interrupted:
        interrupted.add_note(left())
        raise


@contextmanager
def whole_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A path to write to beside ``path``, of the same ending, that becomes ``path`` when the block ends well.

    After an error or an interruption ``path`` is as it was before. Raises ``BadInput`` if it cannot be written.
    """
    final = Path(path)
    beside = final.with_name(f".{final.stem}.{uuid.uuid4().hex[:8]}{final.suffix}")
    try:
        yield beside
        beside.replace(final)
    except OSError as error:
        raise BadInput(f"{str(final)!r} cannot be written ({error.strerror or error}): give another path") from error
    except KeyboardInterrupt as interrupted:
        interrupted.add_note(f"{final} was not written")
        raise
    finally:
        beside.unlink(missing_ok=True)


def write_whole(path: str | os.PathLike[str], text: str) -> None:
    """Write ``text`` as UTF-8; see ``whole_file``."""
    with whole_file(path) as beside:
        beside.write_text(text, encoding="utf-8")
