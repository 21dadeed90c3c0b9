"""The tests' own order: what several tests use lies in ``tests/helpers``, and a folder can be looked through."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
FILES = sorted(TESTS.rglob("*.py"))
MOST_FILES = 15


def imported(file: Path) -> Iterator[str]:
    """The dotted names of what ``file`` imports, wherever in it, each with the names that it takes from a module."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module or ''}.{alias.name}" for alias in node.names)


def is_of_a_test(name: str) -> bool:
    """Whether a dotted name leads through a module of tests, which may be run alone, moved or deleted."""
    return any(part.startswith("test_") for part in name.split("."))


def test_no_module_imports_from_a_test() -> None:
    found = {str(file.relative_to(TESTS)): sorted(filter(is_of_a_test, imported(file))) for file in FILES}
    assert {file: names for file, names in found.items() if names} == {}


@pytest.mark.parametrize("folder", sorted({file.parent for file in FILES}), ids=lambda f: str(f.relative_to(TESTS)))
def test_a_folder_holds_at_most_fifteen_files(folder: Path) -> None:
    assert len([file for file in folder.glob("*.py") if file.name != "__init__.py"]) <= MOST_FILES
