"""A run folder on disk: what its files are called, and how they appear whole or not at all.

Every path of a trace goes through here, so another file system (pyarrow.fs) needs a change in this file only.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from symphony_dask.errors import BadInput
from symphony_dask.trace.schema import SCHEMA_VERSION, SCHEMAS

INFO_NAME = "run.json"


def local(path: str | os.PathLike[str]) -> Path:
    """``path`` as a local path; raises ``BadInput`` for a URL."""
    text = os.fspath(path)
    if "://" in text:
        raise BadInput(f"trace path {text!r} is a URL: give a local path, and copy the folder once it is written")
    return Path(text)


def create(folder: Path) -> None:
    """Make ``folder`` ready for a new run; raises ``BadInput`` if it holds a run already or cannot be made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        taken = (folder / INFO_NAME).exists() or any(parts(folder, table) for table in SCHEMAS)
    except OSError as exc:
        raise BadInput(f"trace folder {str(folder)!r} cannot be used ({exc}): give a writable folder") from exc
    if taken:
        raise BadInput(f"trace folder {str(folder)!r} already holds a run: give a new folder, or empty this one")


def parts(folder: Path, table: str) -> list[Path]:
    """The complete parts of ``table``, oldest first."""
    return sorted(folder.glob(f"{table}-*.parquet"), key=lambda part: (len(part.name), part.name))


def write_part(folder: Path, table: str, number: int, rows: Any) -> None:
    """Write the Arrow table ``rows`` as part ``number`` (from 1) of ``table``; readers see all of it or nothing."""
    final = folder / f"{table}-{number:06d}.parquet"
    temporary = final.with_name(final.name + ".tmp")
    try:
        with temporary.open("wb") as file:
            pq.write_table(rows, file, compression="zstd")
            # Without this a power failure can leave the final name on an empty file.
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(final)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def plain(info: dict[str, Any]) -> dict[str, Any]:
    """A deep copy of ``info`` as JSON keeps it; raises ``BadInput`` for a value that JSON has no form for."""
    try:
        copy: dict[str, Any] = json.loads(json.dumps(info, allow_nan=False))
    except (TypeError, ValueError) as exc:
        raise BadInput(f"run info cannot be written as JSON ({exc}): use plain finite values") from exc
    return copy


def write_info(folder: Path, info: dict[str, Any]) -> None:
    """Replace run.json by ``info``; readers see the old or the new one."""
    temporary = folder / f"{INFO_NAME}.tmp"
    temporary.write_text(json.dumps(info, indent=2) + "\n", encoding="utf-8")
    temporary.replace(folder / INFO_NAME)


def read_info(folder: Path) -> dict[str, Any]:
    """run.json of ``folder``; raises ``BadInput`` if there is none, or if this version cannot read the run."""
    path = folder / INFO_NAME
    try:
        info: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        version = int(info["schema_version"])
    except OSError as exc:
        raise BadInput(f"{str(folder)!r} is not a run folder ({exc}): give the folder that holds {INFO_NAME}") from exc
    except (ValueError, KeyError, TypeError) as exc:
        raise BadInput(f"{str(path)!r} is not the description of a run ({exc!r}): give a folder of a run") from exc
    if version > SCHEMA_VERSION:
        raise BadInput(
            f"{str(folder)!r} has trace schema version {version}, and this symphony-dask reads up to {SCHEMA_VERSION}: "
            "upgrade symphony-dask"
        )
    return info


def software() -> dict[str, str | None]:
    """Versions of what decides how a run behaves; None for a distribution that is not installed."""
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for name in ("symphony-dask", "dask", "distributed", "numpy", "numba"):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    return versions
