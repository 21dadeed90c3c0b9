"""Programs as a hardened container runs them: a package that cannot be written, a user without a home."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_ROOT = Path(__file__).parents[2]

#: Root without its capabilities, to which permissions mean something.
_POWERLESS = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"]


@contextmanager
def package_copy(*, caches: bool) -> Iterator[Path]:
    """A folder with a copy of this package that everybody can read, with new times as an image's build gives them.

    caches: whether what has been compiled comes along.
    """
    with tempfile.TemporaryDirectory(prefix="symphony-package-") as folder:
        root = Path(folder, "site")
        for name in ("symphony_dask", "workloads", "autoscale", "infra"):
            ignore = None if caches else shutil.ignore_patterns("__pycache__")
            shutil.copytree(_ROOT / name, root / name, ignore=ignore, copy_function=shutil.copyfile)
        os.chmod(folder, 0o755)
        try:
            yield root
        finally:
            make_writable(root, True)


def make_writable(root: Path, yes: bool) -> None:
    """Give the folders below ``root`` the right to be written, or take it."""
    for folder, _, _ in os.walk(root):
        os.chmod(folder, 0o755 if yes else 0o555)


def command(root: Path, *arguments: str, **settings: str) -> dict[str, object]:
    """Arguments for ``subprocess`` that run Python on the package in ``root`` as somebody without a home."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("NUMBA_", "XDG_", "DASK_", "SYMPHONY_", "PYTHON"))}
    environment = {**kept, "PYTHONPATH": str(root), "HOME": str(root / "no-home"), **settings}
    who = _POWERLESS if os.geteuid() == 0 else []
    return {"args": [*who, sys.executable, *arguments], "env": environment, "cwd": root}


def run(root: Path, code: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run ``code`` in that way."""
    return subprocess.run(**command(root, "-c", code, **settings), capture_output=True, text=True, timeout=120)  # type: ignore[call-overload]
