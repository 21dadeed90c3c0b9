"""Running a target: so many inputs or seconds, from a seed, with what must hold all the while."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import logging
import random
import resource
import time
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from tests.fuzz import body_targets, lane_targets

#: Of inputs, between looks at what must hold.
SETTLE_EVERY = 200

#: No input may take longer, s of CPU time: whoever else is served waits so long.
LONGEST_S = 0.5

#: Memory may grow by so much in a run, bytes: caches fill.
GROWTH_BYTES = 30 << 20


class Target(Protocol):
    """Something that takes hostile input. An exception from any of these is a finding."""

    name: str

    async def start(self) -> None: ...

    def step(self, by: random.Random) -> bytes:
        """Make one input, have it taken, and return it."""

    async def settle(self) -> None:
        """Check that nothing was kept, and that others are served."""

    async def end(self) -> None: ...


def targets() -> list[Target]:
    return [
        lane_targets.Strangers(),
        lane_targets.OfTheCluster("client"),
        lane_targets.OfTheCluster("worker"),
        lane_targets.AtAWorker(),
        body_targets.Payloads(),
        body_targets.Bodies(),
        body_targets.Http(),
    ]


@dataclass
class Report:
    target: str
    seed: int
    inputs: int = 0
    seconds: float = 0.0
    longest_ms: float = 0.0
    grown_mib: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def run(target: Target, *, seed: int = 0, inputs: int | None = None, seconds: float = float("inf")) -> Report:
    """Give a target mutated input; raises ``AssertionError``, naming the input, for whatever it should not do."""
    report = Report(target.name, seed)
    by = random.Random(seed)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        escaped: list[dict[str, Any]] = []
        loop.set_exception_handler(lambda loop, context: escaped.append(context))
        await target.start()
        gc.collect()
        gc.freeze()  # a full collection of all that is loaded takes longer than any input, and is not theirs
        began = time.monotonic()
        grown_from = 0
        while (inputs is None or report.inputs < inputs) and time.monotonic() - began < seconds:
            data = b""
            state = by.getstate()
            before = time.thread_time()
            try:
                data = target.step(by)
            except Exception as error:
                by.setstate(state)
                text = f"{target.name}, seed {seed}, input {report.inputs}: {type(error).__name__}: {error}"
                raise AssertionError(text) from error
            took = time.thread_time() - before
            report.longest_ms = max(report.longest_ms, took * 1e3)
            assert took < LONGEST_S, f"{target.name}, seed {seed}, input {report.inputs} took {took:.1f} s: {data!r}"
            report.inputs += 1
            if report.inputs % SETTLE_EVERY == 0:
                await target.settle()
                assert not escaped, f"{target.name}, seed {seed}, before input {report.inputs}: {escaped[0]}"
            if report.inputs == 10 * SETTLE_EVERY:
                grown_from = _rss_bytes()
        await target.settle()
        await target.end()
        await asyncio.sleep(0)
        assert not escaped, f"{target.name}, seed {seed}: {escaped[0]}"
        if grown_from:
            report.grown_mib = round((_rss_bytes() - grown_from) / (1 << 20), 1)
            assert report.grown_mib < GROWTH_BYTES >> 20, f"{target.name}: grew by {report.grown_mib} MiB"
        report.seconds = round(time.monotonic() - began, 1)
        report.longest_ms = round(report.longest_ms, 1)

    # Each refused frame would be a line.
    quiet = [logging.getLogger(name) for name in ("symphony_dask", "uvicorn")]
    levels = [logger.level for logger in quiet]
    for logger in quiet:
        logger.setLevel(logging.CRITICAL)
    try:
        asyncio.run(main())
    finally:
        gc.unfreeze()
        for logger, level in zip(quiet, levels, strict=True):
            logger.setLevel(level)
    return report


def _rss_bytes() -> int:
    """Without what the allocator keeps for later."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()
