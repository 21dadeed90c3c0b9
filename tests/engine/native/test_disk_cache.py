"""Compiled code where it cannot be kept, or only be read."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.confined import make_writable, package_copy, run

#: Compiles one function; says whether it was found compiled, and what it gives.
SIZE = """
from symphony_dask.engine.native import heap
size = heap.size(heap.make_heap(3))
print(sum(heap.size.stats.cache_hits.values()), size)
"""


@pytest.fixture(scope="module")
def package() -> Iterator[Path]:
    """One that its user cannot write, as it comes from an index: without compiled code."""
    with package_copy(caches=False) as root:
        make_writable(root, False)
        yield root


@pytest.fixture
def home() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="symphony-home-") as folder:
        yield Path(folder)


def test_a_client_starts_where_no_file_can_be_written_and_says_once_what_that_costs(package: Path) -> None:
    found = run(package, "import symphony_dask.client.serving" + SIZE)
    assert (found.returncode, found.stdout) == (0, "0 0\n")
    [line] = found.stderr.splitlines()
    assert "compiled code cannot be kept" in line
    assert "about a minute" in line
    assert "NUMBA_CACHE_DIR" in line


def test_code_that_was_compiled_before_the_package_became_read_only_is_used(package: Path) -> None:
    make_writable(package, True)
    try:
        assert run(package, SIZE).stdout == "0 0\n"
        make_writable(package, False)
        found = run(package, SIZE)
        assert (found.stdout, found.stderr) == ("1 0\n", "")
    finally:
        make_writable(package, False)


def test_shipped_code_is_used_where_new_code_goes_into_a_home(package: Path, home: Path) -> None:
    shipped = package / "symphony_dask/engine/native/__pycache__"
    assert list(shipped.glob("heap.size-*.nbi")), "the test before compiled it"
    found = run(package, SIZE, HOME=str(home))
    assert (found.stdout, found.stderr) == ("1 0\n", "")


def test_damaged_and_unreadable_code_is_compiled_anew(package: Path, home: Path) -> None:
    cache = {"NUMBA_CACHE_DIR": str(home)}
    shipped = package / "symphony_dask/engine/native/__pycache__"
    [index] = shipped.glob("heap.size-*.nbi")
    index.write_bytes(b"no index")
    assert run(package, SIZE, **cache).stdout == "0 0\n"
    assert run(package, SIZE, **cache).stdout == "1 0\n"
    for file in home.rglob("*.nbc"):
        file.write_bytes(file.read_bytes()[:100])
    assert run(package, SIZE, **cache).stdout == "0 0\n"
    assert run(package, SIZE, **cache).stdout == "1 0\n"
    for file in home.rglob("*.nb?"):
        file.chmod(0)
    found = run(package, SIZE, **cache)
    assert (found.returncode, found.stdout) == (0, "0 0\n")


def test_a_folder_that_fills_up_or_closes_after_the_start_costs_no_request(package: Path, home: Path) -> None:
    begin, rest = SIZE.strip().split("\n", 1)
    closing = f"{begin}\nimport os\nfor folder, _, _ in os.walk({str(home)!r}): os.chmod(folder, 0o555)\n{rest}"
    found = run(package, closing, NUMBA_CACHE_DIR=str(home))
    for folder, _, _ in os.walk(home):
        os.chmod(folder, 0o777)
    assert found.stdout == "0 0\n"
    [line] = found.stderr.splitlines()
    assert "Permission denied" in line
