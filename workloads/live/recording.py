"""Records what a tool does: the run.json says that it is partial until the tool has done all that it set out to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from symphony_dask.cli.partial_files import report_if_interrupted
from symphony_dask.client.serving import Serving


@contextmanager
def recorded(serving: Serving, folder: Path, **info: object) -> Iterator[None]:
    """Record what happens within into ``folder``; info: goes into run.json. Raises what ``Serving.record`` raises.

    "complete" there is false until the block ends well, also if this process or the scheduler is killed.
    """
    serving.record(str(folder), complete=False, **info)
    complete = False
    try:
        with report_if_interrupted(lambda: f"the run in {folder} is partial, and its run.json says so"):
            yield
        complete = True
    finally:
        serving.stop_recording(complete=complete)
