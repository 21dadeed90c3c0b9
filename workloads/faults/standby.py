"""Keeps a process ready that has imported what a scheduler, worker or client needs, and becomes one when told.

``python -m workloads.faults.standby KIND [wait]`` reads one line, a JSON list of arguments. A cluster that loses
processes often has others ready in this way, which join in a fraction of a second.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence


def _scheduler() -> Callable[[Sequence[str]], object]:
    from distributed.cli import dask_scheduler

    from symphony_dask.plugin import scheduler_plugin

    scheduler_plugin.warm_up()
    return lambda arguments: dask_scheduler.main(arguments, prog_name="dask scheduler")


def _worker() -> Callable[[Sequence[str]], object]:
    from distributed.cli import dask_worker

    import symphony_dask.plugin.worker_plugin  # noqa: F401  as it is sent here pickled

    return lambda arguments: dask_worker.main(arguments, prog_name="dask worker")


def _client() -> Callable[[Sequence[str]], object]:
    from workloads.faults.victim import main

    return lambda arguments: main(*arguments)


_KINDS = {"scheduler": _scheduler, "worker": _worker, "client": _client}


def main(kind: str, when: str = "now") -> None:
    if when == "wait":
        os.nice(15)  # others work meanwhile
    become = _KINDS[kind]()
    line = sys.stdin.readline()
    try:
        os.setpriority(os.PRIO_PROCESS, 0, 0)
    except OSError:  # only root may
        pass
    if line:
        become(json.loads(line))


if __name__ == "__main__":
    main(*sys.argv[1:])
