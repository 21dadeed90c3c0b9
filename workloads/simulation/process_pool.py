"""Runs simulations side by side on all cores, one process each: longest first, results in the order asked for."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from multiprocessing import get_context, parent_process
from threading import Thread
from typing import TypeVar

from symphony_dask.errors import BadInput

T = TypeVar("T")
R = TypeVar("R")

#: Called with the costs of what is done and of all there is to do.
OnProgress = Callable[[float, float], None]


#: How often a signal is looked for, s.
_LOOK_S = 0.2


def no_progress(done: float, total: float) -> None:
    """Shows nothing."""


def run_all(
    function: Callable[[T], R],
    items: Sequence[T],
    costs: Sequence[float],
    *,
    processes: int | None = None,
    on_progress: OnProgress = no_progress,
) -> list[R]:
    """``function(item)`` of each item, in their order; dearer items start first, so that the last ones are short.

    function: at the top level of a module, so that a process can find it; with one process it runs in this one.
    processes: by default one for each core that this process may use.

    Raises what ``function`` raises, and ``BadInput`` when ``processes`` is below 1.
    """
    if processes is not None and processes < 1:
        raise BadInput(f"processes is {processes}: give at least 1")
    workers = min(processes or len(os.sched_getaffinity(0)), len(items))
    results: dict[int, R] = {}
    total = float(sum(costs))
    done = 0.0
    on_progress(done, total)

    def finish(i: int, result: R) -> None:
        nonlocal done
        results[i] = result
        done += costs[i]
        on_progress(done, total)

    dearest = sorted(range(len(items)), key=lambda i: -costs[i])
    if workers <= 1:
        for i in dearest:
            finish(i, function(items[i]))
    else:
        # Spawned: a fork of a process whose libraries have threads can hang.
        pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_end_with_parent)
        try:
            # Ctrl-C is for this process, which ends the others: they are started with it blocked, and have it so.
            before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
            try:
                futures = {pool.submit(function, items[i]): i for i in dearest}
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
            left = set(futures)
            while left:
                # Not for ever: a signal that another thread takes wakes nobody.
                ready, left = wait(left, timeout=_LOOK_S, return_when=FIRST_COMPLETED)
                for future in ready:
                    finish(futures[future], future.result())
        except KeyboardInterrupt:
            for process in list((pool._processes or {}).values()):
                process.kill()  # what they work on may take minutes
            raise
        finally:
            pool.shutdown(cancel_futures=True)
    return [results[i] for i in range(len(items))]


def _end_with_parent() -> None:
    """Have this process end when the one that started it is killed; it would wait for work for ever."""
    parent = parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    Thread(target=watch, daemon=True).start()
