"""Runs a command in a process of its own, and says how it ended."""

from __future__ import annotations

import os
import resource
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

#: Memory that a command may take beyond what it had when it began, and how long it may take, s.
ROOM_BYTES, LIMIT_S = 4 << 30, 120


@dataclass(frozen=True)
class Ended:
    """How a command ended. status: below 0 for a signal; lines: those of standard error; said: both streams."""

    status: int
    lines: int
    said: str

    @property
    def how(self) -> str:
        """Nothing if it ended as it should: well, by a line and a status other than 0, or by what it found."""
        if self.status < 0:
            return f"signal {-self.status}"
        if "Traceback" in self.said or "panicked" in self.said:
            return "traceback"
        if self.status and (self.lines > 1 or not self.said.strip()):
            return f"{self.lines} lines"
        return "not foreseen" if "not foreseen" in self.said else ""


def in_a_fork(arguments: Sequence[str], scratch: Path) -> Ended:
    """``symphony ARGUMENTS`` in a fork of this process, so that a crash is seen as such."""
    out, err = scratch / "stdout", scratch / "stderr"
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        status = 70
        try:
            for path, stream in ((out, 1), (err, 2)):
                os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
            sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
            size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (size + ROOM_BYTES, size + ROOM_BYTES))
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(LIMIT_S)
            status = _command(arguments)
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(status)
    _, ended = os.waitpid(pid, 0)
    said = err.read_text(errors="replace")
    status = os.waitstatus_to_exitcode(ended)
    return Ended(
        status, sum(bool(line.strip()) for line in said.splitlines()), (out.read_text(errors="replace") + said)[-3000:]
    )


def _command(arguments: Sequence[str]) -> int:
    from symphony_dask.cli.main import symphony

    try:
        symphony(list(arguments), prog_name="symphony")
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        import traceback

        traceback.print_exc()
        return 71
    return 0
