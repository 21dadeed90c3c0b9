"""Shows progress bars on standard error."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def amount_bar(what: str, total: int | None, *, in_bytes: bool = False) -> Iterator[Callable[[int], None]]:
    """A bar that vanishes in the end; gives what to call with how much is done. total: None where it is unknown."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    amount = DownloadColumn() if in_bytes else MofNCompleteColumn()
    columns = (TextColumn("{task.description}"), BarColumn(), amount, TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(what, total=total)
        yield lambda done: progress.update(task, completed=done)


@contextmanager
def reading_bar(*paths: str) -> Iterator[Callable[[int], None]]:
    """A bar for reading all requests of some traces."""
    from symphony_dask.trace import count_requests

    with amount_bar("reading", sum(count_requests(path) for path in paths)) as on_progress:
        yield on_progress


@contextmanager
def estimate_bar(title: str) -> Iterator[Callable[[float, float], None]]:
    """A bar with the time that is left; gives what to call with what is done and what there is to do."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )  # fmt: skip

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as progress:
        task = progress.add_task(f"{title}: compiling", total=None)
        yield lambda done, total: progress.update(task, description=title, completed=done, total=total)


@contextmanager
def bars_by_name() -> Iterator[Callable[[str, int, int], None]]:
    """A bar for each name that is told of; gives what to call with a name, what is done and what there is to do."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description:>10}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        waiting = progress.add_task("starting", total=None)
        tasks: dict[str, TaskID] = {}

        def on_progress(name: str, done: int, total: int) -> None:
            if name not in tasks:
                progress.update(waiting, visible=False)
                tasks[name] = progress.add_task(name, total=total)
            progress.update(tasks[name], completed=done)

        yield on_progress
