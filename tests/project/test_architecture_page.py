"""The architecture page names every folder of the code, in an order in which imports only go up the table."""

from __future__ import annotations

import re
from pathlib import Path

from tests.helpers.import_graph import import_graph

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/architecture.md").read_text()
TABLE = PAGE.partition("\n## Rooms\n")[2].partition("\n## ")[0]
ROOMS = [
    room.replace("/", ".")
    for cell in re.findall(r"^\| (`[^|]*`) ", TABLE, re.M)
    for room in re.findall(r"`([\w/]+)`", cell)
]


PACKAGES = ("symphony_dask", "autoscale", "workloads", "infra")


def room_of(module: str) -> str:
    """The row of a module; folders inside a folder stand with it."""
    parts = module.split(".")
    room = next(name for n in range(len(parts), 0, -1) if (name := ".".join(parts[:n])) in [*ROOMS, *PACKAGES])
    whole = ".".join(room.split(".")[:2])
    return whole if whole in ROOMS else room


def test_every_folder_with_code_has_a_row() -> None:
    folders = {path.parent for package in PACKAGES for path in (ROOT / package).rglob("*.py")}
    named = {".".join(folder.relative_to(ROOT).parts) for folder in folders}
    assert set(ROOMS) == named - {"autoscale", "workloads"}  # public names only


def test_no_row_of_the_table_imports_from_one_below_it() -> None:
    rank = {room: i for i, room in enumerate(ROOMS)}
    wrong = []
    for module, imported in import_graph().items():
        here = room_of(module)
        for other in imported:
            there = room_of(other)
            if here in PACKAGES or there in PACKAGES or here == there:
                continue
            if rank[there] > rank[here]:
                wrong.append(f"{module} imports {other}")
    assert sorted(wrong) == []


def test_a_picture_comes_first() -> None:
    assert PAGE.index("```text") < PAGE.index("\n| ")


def test_files_that_the_page_names_are_there() -> None:
    for path in re.findall(r"`((?:\w+/)+\w+\.py)`", PAGE):
        assert (ROOT / path).exists() or (ROOT / "symphony_dask" / path).exists(), path
    for row in TABLE.splitlines():
        folder = re.match(r"\| `([\w/]+)`", row)
        for name in re.findall(r"`(\w+\.py)`", row) if folder else ():
            assert (ROOT / folder[1] / name).exists(), (folder[1], name)
